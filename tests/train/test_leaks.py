"""Frozen weights are frozen: nothing of training reaches them, bit by bit, and nothing is kept for them, byte by byte.

A leak can come from weight decay, momentum, clipping, a rounded write or a change that is added as zero (-0.0 + 0.0 is 0.0), so
the runs here have all of these: decay, AdamW's two moments, a clip norm that bites, several epochs, and frozen weights of -0.0.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tests.reference import attribution as truth
from tests.tiny import tiny, tiny_sets
from workbench import unlearn
from workbench.core.delta import applied
from workbench.core.mask import Mask
from workbench.core.records import Provenance
from workbench.core.registry import objective
from workbench.load.batches import encode_all
from workbench.train import AnswerTask, Check, fit
from workbench.train.masters import masters

# whos_harry_potter trains another model first, all of it; rmu has no gradient behind its layer, and a mask of its own without one
OBJECTIVES = [member.name for member in objective if member.about["procedure"] != "reinforced"]
WHOLE = [name for name in OBJECTIVES if objective[name].about["reads"] != "states"]
UNLISTED, NOTHING = "model.norm.weight", "model.layers.0.mlp.down_proj.weight"  # no entry of these may move
EVERYTHING = "model.layers.1.self_attn.v_proj.weight"
SOME = "model.layers.0.mlp.up_proj.weight"
CLIP = 0.1  # below the gradients of every objective here
LEAKY = {"epochs": 4, "batch_size": 2, "lr": 0.02, "weight_decay": 0.3, "clip_norm": CLIP}


def leaky_model(dtype=torch.float32, **size):
    """A tiny model in which one weight in seven is -0.0: adding 0.0 to it flips its sign bit."""
    model = tiny(dtype, **size)
    with torch.no_grad():
        for p in model.hf.parameters():
            if p.ndim == 2:
                p.view(-1)[::7] = -0.0
    return model


def about(model):
    return Provenance("test", model.fingerprint())


def some_of(model, fraction=0.3):
    """One parameter not listed, one without a trainable entry, one that may move whole, and a share of all others."""
    g = torch.Generator().manual_seed(0)
    bits = {n: torch.rand(p.shape, generator=g) < fraction for n, p in model.hf.named_parameters() if n != UNLISTED}
    return Mask.of(bits | {NOTHING: bits[NOTHING] & False, EVERYTHING: bits[EVERYTHING] | True}, about(model))


def trainable_of(model, mask):
    return {n: mask[n] if n in mask else torch.zeros(p.shape, dtype=torch.bool) for n, p in model.hf.named_parameters()}


def bits_of(model):
    """The storage of every parameter as integers, so that -0.0 is not 0.0."""
    integer = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
    return {n: p.detach().view(integer[p.dtype]).clone() for n, p in model.hf.named_parameters()}


def unlearned(model, name, mask=None, **options):
    forget, retain = tiny_sets()
    return unlearn.run(model, forget, retain, objective=name, mask=mask, **{**LEAKY, **options})


@pytest.fixture
def watch(monkeypatch):
    """watch(look): call look(at) inside every optimizer step, before the update; at has n, made, optimizer and gradients.

    Also returns the namespace, which holds the optimizer's last state after training.
    """

    def install(look=lambda at: None):
        at = SimpleNamespace(n=0)

        @contextmanager
        def spying_masters(*args):
            with masters(*args) as at.made:
                yield at.made

        class Spy(torch.optim.AdamW):
            def step(self, closure=None):
                at.optimizer = self
                at.gradients = {m.name: None if m.master.grad is None else m.master.grad.clone() for m in at.made}
                look(at)
                at.n += 1
                return super().step(closure)

        monkeypatch.setattr("workbench.train.trainable.masters", spying_masters)
        monkeypatch.setattr(torch.optim, "AdamW", Spy)
        return at

    return install


# --- the weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_frozen_weights_have_the_same_bits_during_and_after_every_objective(name, dtype, watch):
    model = leaky_model(dtype)
    before, mask = bits_of(model), some_of(model)
    trainable = trainable_of(model, mask)
    moved = []

    def look(at):
        now = bits_of(model)
        for n, may_move in trainable.items():
            assert torch.equal(now[n][~may_move], before[n][~may_move]), f"{n} leaked before step {at.n}"
        assert all(p.grad is None for p in model.hf.parameters()), "a gradient is kept outside the masters"
        moved.append(sum(int((now[n] != before[n]).sum()) for n in now))

    at = watch(look)
    found = unlearned(model, name, mask)
    assert (len(moved), moved[0]) == (8, 0)  # 3 forget rows, 2 a step, 4 epochs
    assert min(moved[1:]) > 0.9 * mask.count
    assert at.optimizer.defaults["betas"][0] > 0
    assert at.optimizer.defaults["weight_decay"] > 0
    assert max(row["grad_norm"] for row in found.history) > CLIP, "the clip norm does nothing here, so it is not tested"
    for n, p in bits_of(model).items():
        assert torch.equal(p, before[n]), f"{n} was not put back"
    with applied(model, found.delta):
        after = bits_of(model)
    for n, may_move in trainable.items():
        assert torch.equal(after[n][~may_move], before[n][~may_move]), f"the Delta changes frozen weights of {n}"
        if n in found.delta.changes:
            assert not found.delta.changes[n].dense()[~may_move].any()
    share = sum(int((after[n] != before[n])[t].sum()) for n, t in trainable.items()) / mask.count
    assert share > 0.9, f"only {share:.2%} of the trainable weights moved"
    assert not {UNLISTED, NOTHING} & set(found.delta.changes)


@pytest.mark.parametrize(("name", "poison"), [("npo", 1e6), *((name, float("nan")) for name in WHOLE)])
def test_gradients_of_frozen_weights_change_no_bit_of_the_run(name, poison):
    """Clipping, moments and micro-batch sums see none of them: with NaN there instead, every number is the same."""
    model = leaky_model()
    mask = some_of(model)
    clean = unlearned(model, name, mask, micro_batch=1)
    fired = set()

    def poisoned(parameter_name, may_move):
        def hook(gradient):
            fired.add(parameter_name)
            return torch.where(may_move, gradient, poison)

        return hook

    hooks = [model.hf.get_parameter(n).register_hook(poisoned(n, t)) for n, t in trainable_of(model, mask).items()]
    dirty = unlearned(model, name, mask, micro_batch=1)
    for hook in hooks:
        hook.remove()
    assert dirty.delta.id == clean.delta.id
    assert dirty.history == clean.history
    assert fired == set(model.shapes()) - {UNLISTED, NOTHING}, "a gradient is computed for a tensor that cannot move"


@pytest.mark.parametrize("partial", [False, True])
def test_going_back_at_a_limit_leaves_frozen_bits_alone(partial):
    """The states a check goes back to, and those between that it tries, are written into the model too."""
    model = leaky_model()
    before, mask = bits_of(model), some_of(model)
    start, trainable = model.hf.get_parameter(EVERYTHING).detach().clone(), trainable_of(model, mask)
    looked = []

    def largest_move():
        now = bits_of(model)
        looked.append(all(torch.equal(now[n][~t], before[n][~t]) for n, t in trainable.items()))
        return float((model.hf.get_parameter(EVERYTHING).detach() - start).abs().max())

    check = Check(largest_move, 0.05, "largest_move", every=1, partial=partial)  # steps of at most about 0.02: in the third
    task = AnswerTask(model, encode_all(model, tiny_sets()[1]))
    found = fit(model, task, about(model), mask=mask, check=check, **{**LEAKY, "schedule": "constant"})
    assert "largest_move reached" in found.audit.stopped
    assert looked
    assert all(looked)
    assert 0.02 < float(found.delta.changes[EVERYTHING].dense().abs().max()) <= 0.05
    assert all(not c.dense()[~trainable[n]].any() for n, c in found.delta.changes.items())


class Given:
    """A loss whose gradient is `slope[epoch]` at every weight, whatever the weights are."""

    def __init__(self, model, slope):
        self.parameters, self.slope = list(model.hf.parameters()), slope

    def __len__(self):
        return 3

    def losses(self, chosen, epoch):
        return (self.slope[epoch] * sum(p.sum() for p in self.parameters)).expand(len(chosen))

    def tokens(self, chosen, epoch):
        return len(chosen)


def test_weight_decay_by_hand():
    # no gradient at all: two steps of lr 0.1 and decay 0.5 leave (1 - 0.05)^2 = 0.9025 of a trainable weight
    model = leaky_model(torch.float64)
    mask = some_of(model)
    found = fit(model, Given(model, [0.0, 0.0]), about(model), mask=mask, epochs=2, lr=0.1, weight_decay=0.5, schedule="constant")
    before = model.hf.get_parameter(SOME).detach()
    expected = torch.where(mask[SOME], -0.0975 * before, 0.0)
    torch.testing.assert_close(found.delta.changes[SOME].dense().double(), expected, rtol=1e-6, atol=0)  # a Delta is float32
    assert not {UNLISTED, NOTHING} & set(found.delta.changes)


def test_momentum_by_hand():
    """A gradient in the first epoch only: trainable weights coast on, frozen ones have nothing to coast on."""
    # Adam with betas (0.5, 0.75), g = 1 then 0: m = 1/2, v = 1/4, step lr x (m/(1-1/2)) / sqrt(v/(1-1/4)) = 1 lr;
    # then m = 1/4, v = 3/16, m/(1-1/4) = 1/3, v/(1-9/16) = 3/7, step lr x (1/3) / sqrt(3/7) = 0.50918 lr
    model = leaky_model(torch.float64)
    mask = some_of(model)
    options = {"epochs": 2, "lr": 0.01, "betas": (0.5, 0.75), "schedule": "constant", "clip_norm": None}
    found = fit(model, Given(model, [1.0, 0.0]), about(model), mask=mask, **options)
    moved = found.delta.changes[SOME].dense().double()
    expected = torch.where(mask[SOME], -0.01 * (1 + (1 / 3) / (3 / 7) ** 0.5), 0.0).double()
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=0)  # a Delta is float32; AdamW adds 1e-8 to the root
    assert not {UNLISTED, NOTHING} & set(found.delta.changes)


# --- the clip norm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_the_clip_norm_is_that_of_the_trainable_part_of_the_whole_gradient(name, watch):
    model = leaky_model(torch.float64)
    mask = some_of(model)
    whole = {}

    def keep_first(at):
        if at.n == 0:
            whole.update(at.gradients)

    watch(keep_first)
    unlearned(model, name, clip_norm=None)
    squares = [float(g) ** 2 for n, g in whole.items() if n in mask for g in g.view_as(mask[n])[mask[n]]]
    found = unlearned(model, name, mask).history[0]["grad_norm"]
    assert found == pytest.approx(sum(squares) ** 0.5, rel=1e-9)  # float64, a few hundred squares in another order
    assert found < 0.9 * float(torch.cat(list(whole.values())).norm()), "the mask must leave out a part that matters"


def test_the_clip_norm_equals_a_slow_one_at_every_step(watch):
    """One autograd pass an example, at the weights the model has inside the step; then the update is clipped to CLIP."""
    model = leaky_model(torch.float64)
    mask, rows = some_of(model), encode_all(model, tiny_sets()[1])
    slow, clipped = [], []

    def look(at):
        gradient = truth.mean_gradient(model.hf, [(row.tokens, row.start) for row in rows])
        slow.append(sum(float(gradient[n][mask[n]].square().sum()) for n in mask) ** 0.5)
        clipped.append(sum(float(g.square().sum()) for g in at.gradients.values()) ** 0.5)

    watch(look)
    found = fit(model, AnswerTask(model, rows), about(model), mask=mask, **{**LEAKY, "batch_size": 4, "clip_norm": CLIP})
    # Llama's RMSNorm is float32 in any dtype, and a batch of four adds in another order than four of one
    assert [row["grad_norm"] for row in found.history] == pytest.approx(slow, rel=1e-5)
    assert len(slow) == 4
    # torch scales by CLIP / (norm + 1e-6), and leaves a norm below CLIP alone
    assert clipped == pytest.approx([min(CLIP, norm * CLIP / (norm + 1e-6)) for norm in slow], rel=1e-5)
    assert max(slow) > CLIP


# --- what is kept for the weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype"), [("npo", torch.bfloat16), *((name, torch.float32) for name in WHOLE)])
def test_masters_and_moments_exist_for_trainable_entries_alone(name, dtype, watch):
    model = leaky_model(dtype)
    mask = some_of(model)
    expected = {n: bits for n, bits in trainable_of(model, mask).items() if bits.any()}
    at = watch()
    unlearned(model, name, mask)
    assert [m.name for m in at.made] == list(expected)
    assert not {UNLISTED, NOTHING} & {m.name for m in at.made}
    for m in at.made:
        where = expected[m.name].view(-1).nonzero().squeeze(-1)
        assert (m.index is None) == (m.name == EVERYTHING)
        assert m.index is None or torch.equal(m.index, where)
        assert m.master.dtype == torch.float32
        assert m.master.shape == m.initial.shape == where.shape
    held = [p for group in at.optimizer.param_groups for p in group["params"]]
    assert all(p is m.master for p, m in zip(held, at.made, strict=True))
    assert set(at.optimizer.state) == set(held)
    for p in held:
        assert at.optimizer.state[p]["exp_avg"].shape == at.optimizer.state[p]["exp_avg_sq"].shape == p.shape


def test_the_moments_are_those_of_the_trainable_gradients(watch):
    """m <- b1 m + (1 - b1) g and v <- b2 v + (1 - b2) g^2 over the entries of the mask, in their order, from nothing."""
    model = leaky_model(torch.float64)
    mask, rows = some_of(model), encode_all(model, tiny_sets()[1])
    seen = []
    at = watch(lambda at: seen.append(at.gradients))
    options = {"epochs": 3, "batch_size": 3, "lr": 0.02, "betas": (0.8, 0.95), "clip_norm": CLIP, "weight_decay": 0.3}
    fit(model, AnswerTask(model, rows), about(model), mask=mask, **options)
    for m in at.made:
        first = second = torch.zeros(int(mask[m.name].sum()), dtype=torch.float64)
        for gradients in seen:
            first = 0.8 * first + 0.2 * gradients[m.name]
            second = 0.95 * second + 0.05 * gradients[m.name] ** 2
        # float64, six terms; torch interpolates: m + 0.2 (g - m)
        torch.testing.assert_close(at.optimizer.state[m.master]["exp_avg"], first, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(at.optimizer.state[m.master]["exp_avg_sq"], second, rtol=1e-9, atol=1e-18)


def test_nothing_is_left_over_for_the_next_run():
    """Weights trained in one run and frozen in the next coast on nothing: the second run is that of a fresh model."""
    model, fresh = leaky_model(), leaky_model()
    first, second = some_of(model), ~some_of(model)
    unlearned(model, "npo", first)
    assert unlearned(model, "npo", second).delta.id == unlearned(fresh, "npo", second).delta.id


def storage_bytes(tensors):
    """Bytes of the memory behind some tensors: a view of a large tensor keeps all of it."""
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_scale_with_the_mask(dtype, watch):
    model = leaky_model(dtype, d_model=64)
    g = torch.Generator().manual_seed(0)
    mask = Mask.of({n: torch.rand(p.shape, generator=g) < 0.05 for n, p in model.hf.named_parameters()}, about(model))
    rows = encode_all(model, tiny_sets()[1])
    at, held = watch(), {}
    for name, chosen in (("dense", None), ("masked", mask)):
        fit(model, AnswerTask(model, rows), about(model), mask=chosen, **LEAKY)
        moments = [t for state in at.optimizer.state.values() for t in state.values()]
        index = [m.index for m in at.made if m.index is not None]
        held[name] = (storage_bytes([m.master for m in at.made] + moments), storage_bytes(index))
    weights, tensors = sum(p.numel() for p in model.hf.parameters()), len(list(model.hf.parameters()))
    # a trainable weight has 4 bytes of master and 8 of moments, a tensor 4 of step count; where a mask chooses a part of a
    # tensor, each of its trainable weights has 8 more of index: two thirds on top, 3.3 % of the dense run at a 5 % mask
    assert held["dense"] == (12 * weights + 4 * tensors, 0)
    with_a_bit = sum(bool(mask[n].any()) for n in mask)
    assert held["masked"] == (12 * mask.count + 4 * with_a_bit, 8 * mask.count)
    assert sum(held["masked"]) <= 0.1 * held["dense"][0], f"masked {held['masked']}, dense {held['dense']}"
