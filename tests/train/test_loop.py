"""The one loop: equal to AdamW written out, exact masks, micro-batches that change nothing, the model left as found."""

import numpy as np
import pytest
import torch

from tests.reference.adamw import adamw
from tests.tiny import tiny, tiny_sets
from workbench.core.delta import applied
from workbench.core.errors import InputError, MismatchError, NumericsError
from workbench.core.mask import Mask
from workbench.core.records import Provenance
from workbench.load.batches import encode_all
from workbench.train import AnswerTask, Check, fit
from workbench.train.check import largest_within
from workbench.train.settings import share_of_rate, step_rows

NAME = "model.layers.0.mlp.up_proj.weight"


class Quadratic:
    """loss_e = 1/2 ||w - target_e||^2 for one parameter: its gradient is known without autograd."""

    def __init__(self, model, n=5):
        self.weight = model.hf.get_parameter(NAME)
        self.target = torch.randn(n, *self.weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def __len__(self):
        return len(self.target)

    def losses(self, chosen, epoch):
        return 0.5 * (self.weight - self.target[list(chosen)].to(self.weight.dtype)).square().flatten(1).sum(1)

    def tokens(self, chosen, epoch):
        return 10 * len(chosen)


def about(model):
    return Provenance("test", model.fingerprint())


def answers(model):
    return AnswerTask(model, encode_all(model, tiny_sets()[1]))


def bits(model):
    return {n: p.detach().clone() for n, p in model.hf.named_parameters()}


def random_mask(model, fraction, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Mask.of({n: torch.rand(p.shape, generator=g) < fraction for n, p in model.hf.named_parameters()}, about(model))


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_equals_adamw_written_out(weight_decay):
    model = tiny()
    task = Quadratic(model)
    before = bits(model)[NAME]
    found = fit(model, task, about(model), epochs=3, batch_size=2, lr=0.05, weight_decay=weight_decay, clip_norm=None, seed=3)
    w, gradients, rates = before.numpy().astype(float), [], []
    # the gradient at each step depends on the weight, so the reference is advanced one step at a time
    for step in range(9):
        _, rows = step_rows(step, 5, 2, 3)
        now = adamw(w, gradients, rates, weight_decay=weight_decay) if gradients else w
        gradients.append((now - task.target[rows].numpy()).mean(0))
        rates.append(0.05 * (1 - step / 9))
    expected = adamw(w, gradients, rates, weight_decay=weight_decay)
    change = found.delta.changes[NAME].dense().double()
    np.testing.assert_allclose((before + change).numpy(), expected, rtol=1e-6, atol=1e-6)  # a Delta is float32
    assert found.audit.steps == 9
    assert found.audit.tokens == 150


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_frozen_weights_keep_their_bits(dtype, weight_decay):
    model = tiny(dtype)
    before = bits(model)
    mask = random_mask(model, 0.3)
    found = fit(model, answers(model), about(model), mask=mask, epochs=4, batch_size=2, lr=0.05, weight_decay=weight_decay)
    assert all(torch.equal(p, before[n]) for n, p in model.hf.named_parameters()), "the model was not left as it was"
    with applied(model, found.delta):
        for name, p in model.hf.named_parameters():
            assert torch.equal(p[~mask[name]].view(torch.uint8), before[name][~mask[name]].view(torch.uint8)), name
    assert found.audit.trainable == mask.count
    assert found.audit.moved_of_trainable > 0.9
    assert found.delta.n_touched <= mask.count


def test_the_model_is_left_as_it_was():
    model = tiny(torch.bfloat16)
    model.hf.model.norm.weight.requires_grad_(False)
    before, fingerprint = bits(model), model.fingerprint()
    fit(model, answers(model), about(model), epochs=2, batch_size=2, lr=0.05)
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in model.hf.named_parameters())
    assert not model.hf.model.norm.weight.requires_grad
    assert model.fingerprint() == fingerprint


def test_the_model_is_left_as_it_was_after_an_error():
    model = tiny(torch.float32)
    before = bits(model)

    class Breaks(AnswerTask):
        def losses(self, chosen, epoch):
            return super().losses(chosen, epoch) * (float("nan") if epoch == 1 else 1.0)

    with pytest.raises(NumericsError, match="the loss at step 2 is NaN"):
        fit(model, Breaks(model, encode_all(model, tiny_sets()[1])), about(model), epochs=2, batch_size=2, lr=0.05)
    assert all(torch.equal(before[n], p) for n, p in model.hf.named_parameters())


def test_micro_batches_change_memory_not_the_result():
    model = tiny()
    whole, split = (fit(model, answers(model), about(model), epochs=2, batch_size=4, micro_batch=m, lr=0.01) for m in (4, 1))
    for name in whole.delta.changes:
        torch.testing.assert_close(whole.delta.changes[name].dense(), split.delta.changes[name].dense(), rtol=1e-5, atol=1e-7)
    for one, other in zip(whole.history, split.history, strict=True):  # AdamW would hide a gradient that is too large
        assert one == pytest.approx(other, rel=1e-6)


def test_same_seed_same_bits_and_another_seed_another_order():
    model = tiny(torch.float32)
    one, same, other = (fit(model, answers(model), about(model), epochs=2, batch_size=2, lr=0.01, seed=s).delta for s in (0, 0, 1))
    assert one.id == same.id
    assert one.id != other.id


def test_clip_norm_sees_only_what_may_move():
    # the gradient outside the mask is made enormous; with a leak the clipped step inside would vanish
    model = tiny()
    mask = random_mask(model, 0.1)
    inside = mask[NAME]

    class Lopsided(Quadratic):
        def losses(self, chosen, epoch):
            scale = torch.where(inside, 1e-3, 1e6)
            return (scale * self.weight).flatten().sum()[None].expand(len(chosen))

    found = fit(model, Lopsided(model), about(model), mask=mask, epochs=1, batch_size=5, lr=0.01, clip_norm=1.0)
    expected = 1e-3 * float(inside.sum()) ** 0.5
    assert found.history[0]["grad_norm"] == pytest.approx(expected, rel=1e-6)


def test_optimizer_state_scales_with_the_mask(monkeypatch):
    model = tiny(torch.float32)
    held = {}

    class Spy(torch.optim.AdamW):
        def step(self, closure=None):
            out = super().step(closure)
            held["now"] = sum(t.numel() for s in self.state.values() for k, t in s.items() if k != "step")
            return out

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    total = sum(p.numel() for p in model.hf.parameters())
    fit(model, answers(model), about(model), epochs=1, batch_size=4, lr=0.01)
    assert held["now"] == 2 * total
    fit(model, answers(model), about(model), mask=random_mask(model, 0.05), epochs=1, batch_size=4, lr=0.01)
    assert held["now"] <= 0.1 * 2 * total


def test_small_steps_are_not_lost_in_half_precision():
    # lr 1e-5 is below half an ulp of most bfloat16 weights: without float32 masters 20 steps would move next to nothing
    model = tiny(torch.bfloat16)
    found = fit(model, answers(model), about(model), epochs=20, batch_size=4, lr=1e-5, schedule="constant")
    change = torch.cat([c.dense().flatten() for c in found.delta.changes.values()])
    assert float((change != 0).float().mean()) > 0.8
    assert 0.05 < found.audit.moved < 0.6, "the audit must say how many weights really changed in the model's dtype"


def test_check_keeps_the_last_state_within_the_limit():
    model = tiny(torch.float32)
    values = iter([1.0, 1.1, 1.2, 5.0])
    stopped = fit(
        model, answers(model), about(model), epochs=6, batch_size=2, lr=0.01, schedule="constant",
        check=Check(lambda: next(values), 2.0, "loss_elsewhere"),
    )  # fmt: skip
    free = fit(model, answers(model), about(model), epochs=2, batch_size=2, lr=0.01, schedule="constant")
    assert stopped.delta.id == free.delta.id
    assert "loss_elsewhere reached 5.0000 after epoch 3" in stopped.audit.stopped
    assert stopped.audit.steps == 6


def test_grouping_rows_by_length_changes_nothing():
    model = tiny()
    rows = encode_all(model, tiny_sets()[1])
    whole, grouped = (AnswerTask(model, rows, group=g).losses([2, 0, 3, 1], epoch=0) for g in (None, 3))
    alone = torch.cat([AnswerTask(model, rows).losses([i], epoch=0) for i in (2, 0, 3, 1)])
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=0)
    torch.testing.assert_close(grouped, alone, rtol=1e-12, atol=0)


def test_an_epoch_goes_through_everything_once():
    for epoch in range(3):
        rows = [r for step in range(3 * epoch, 3 * epoch + 3) for r in step_rows(step, 7, 3, 5)[1]]
        assert sorted(rows) == list(range(7))
    assert step_rows(0, 7, 7, 5)[1] != step_rows(1, 7, 7, 5)[1]


def test_rates_by_hand():
    # ten steps, two of warm-up: 1/2, 1, then 1 - 0/8, 1 - 1/8, ...
    assert [share_of_rate(s, 10, warmup=0.2, schedule="linear") for s in (0, 1, 2, 3, 9)] == [0.5, 1.0, 1.0, 0.875, 0.125]
    assert share_of_rate(6, 10, warmup=0.2, schedule="cosine") == pytest.approx(0.5)
    assert share_of_rate(9, 10, warmup=0.0, schedule="constant") == 1.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"schedule": "cos"}, "schedule is 'cos'"),
        ({"micro_batch": -1}, "micro_batch is -1"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"warmup": 1.5}, "warmup is 1.5"),
        ({"weight_decay": -0.1}, "weight_decay -0.1"),
        ({"check": Check(lambda: 3.0, 2.0, "retain_nll")}, "exceeded before the first step: retain_nll reached 3"),
    ],
)
def test_bad_options(options, match):
    model = tiny(torch.float32)
    with pytest.raises(InputError, match=match):
        fit(model, answers(model), about(model), **options)


def test_masks_that_cannot_be_used():
    model = tiny(torch.float32)
    with pytest.raises(InputError, match="chooses no weight"):
        fit(model, answers(model), about(model), mask=random_mask(model, 0.0))
    with pytest.raises(MismatchError, match="made for model"):
        fit(model, answers(model), about(model), mask=random_mask(tiny(torch.float32, seed=1), 0.5))


def test_a_gradient_that_was_there_before_is_not_added_and_comes_back():
    model = tiny(torch.float32)
    clean = fit(model, answers(model), about(model), epochs=1, batch_size=4, lr=0.01).delta
    for p in model.hf.parameters():
        p.grad = torch.full_like(p, 7.0)
    again = fit(model, answers(model), about(model), epochs=1, batch_size=4, lr=0.01).delta
    assert again.id == clean.id
    assert all(torch.equal(p.grad, torch.full_like(p, 7.0)) for p in model.hf.parameters())


def test_training_mode_is_refused():
    model = tiny(torch.float32)
    model.hf.train()
    with pytest.raises(InputError, match="training mode"):
        fit(model, answers(model), about(model))


def distance(model, start):
    """How far the model is from some bits: grows along every straight line away from them."""
    return lambda: float(sum((p.detach() - start[n]).square().sum() for n, p in model.hf.named_parameters()) ** 0.5)


def test_a_partial_check_ends_at_the_limit_on_the_way_to_the_state_beyond():
    model = tiny()
    far = distance(model, bits(model))
    options = {"batch_size": 2, "lr": 0.01, "schedule": "constant"}
    free = fit(model, answers(model), about(model), epochs=2, check=Check(far, 1e9, "far", every=1), **options)
    reached = [row["far"] for row in free.history if "far" in row]
    assert [row["step"] for row in free.history if "far" in row and "step" in row] == [0, 1, 2, 3]
    limit = 0.5 * (reached[2] + reached[3])  # crossed in the third step
    found = fit(model, answers(model), about(model), epochs=2, check=Check(far, limit, "far", 1, True), **options)
    assert found.audit.steps == 3
    assert 0 < found.audit.part < 1
    last = found.history[-1]
    assert last["part"] == found.audit.part
    assert limit - 0.01 * limit <= last["far"] <= limit  # the search ends within a hundredth of the way from 0 to the limit
    with applied(model, found.delta):
        assert far() == pytest.approx(last["far"], rel=1e-6)  # a Delta is float32
    # the state is on the straight line from the second state to the third
    two, three = (_steps(model, free, k, options) for k in (2, 3))
    for name, p in two.items():
        expected = p + found.audit.part * (three[name] - p)
        torch.testing.assert_close(found.delta.changes[name].dense(), expected, rtol=0, atol=1e-7)  # float32 changes of 0.03
    assert "after step 2, above" in found.audit.stopped
    assert f"{found.audit.part:.4f} of the way from there" in found.audit.stopped


def _steps(model, free, k, options):
    """The change after the first k of the steps of an unlimited run."""
    values = [row["far"] for row in free.history if "far" in row]
    far = distance(model, bits(model))
    cut = fit(model, answers(model), about(model), epochs=2, check=Check(far, values[k] * (1 + 1e-9), "far", 1), **options)
    assert cut.audit.part == 1.0
    return {name: change.dense() for name, change in cut.delta.changes.items()}


def test_a_check_every_few_steps_also_looks_at_the_last_one():
    model = tiny(torch.float32)
    seen = []
    check = Check(lambda: float(len(seen)) if seen.append(1) is None else 0.0, 100.0, "looks", every=3)
    found = fit(model, answers(model), about(model), epochs=2, batch_size=1, lr=0.01, check=check)
    assert [row["step"] for row in found.history if "looks" in row and "step" in row] == [2, 5, 7]
    assert found.audit.stopped == ""
    assert found.audit.part == 1.0
    with pytest.raises(InputError, match="check.every is 0"):
        fit(model, answers(model), about(model), check=Check(lambda: 0.0, 1.0, "looks", every=0))


def test_largest_within_by_hand():
    # x^2 <= 0.25 up to x = 1/2: 1/2 is tried first and is within, at the limit
    assert largest_within(lambda x: x * x, 0.25, start=0.0, tolerance=0.0) == (0.5, 0.25)
    # x <= 0.3: 1/2 no, 1/4 yes with 0.05 left, 3/8 no, 5/16 no, 9/32 yes with 0.01875 left
    tried = []
    found = largest_within(lambda x: tried.append(x) or x, 0.3, start=0.0, tolerance=0.02)
    assert found == (0.28125, 0.28125)
    assert tried == [0.5, 0.25, 0.375, 0.3125, 0.28125]
    assert largest_within(lambda x: float("nan"), 0.3, start=0.1, tolerance=0.02) == (0.0, 0.1)


@pytest.mark.parametrize("share", [0.2, 0.35, 0.8])
def test_a_limit_that_is_jumped_over_leaves_a_state_within_it(share):
    # a value that jumps never comes close to the limit, so the search runs out of halvings, perhaps on a state beyond
    model = tiny()
    far = distance(model, bits(model))
    options = {"batch_size": 4, "lr": 0.01, "schedule": "constant", "epochs": 1}
    whole = fit(model, answers(model), about(model), check=Check(far, 1e9, "far", every=1), **options).history[-1]["far"]
    jump = Check(lambda: 10.0 if far() > share * whole else 0.0, 1.0, "jump", 1, True)
    found = fit(model, answers(model), about(model), check=jump, **options)
    assert found.audit.part == pytest.approx(share, abs=2**-15)  # sixteen halvings, and the distance is float32 in the Delta
    with applied(model, found.delta):
        assert far() == pytest.approx(found.audit.part * whole, rel=1e-6)
