"""Sign descent and Adam's averages against their definitions, and the weights kept after every epoch."""

import numpy as np
import pytest
import torch

from tests.reference.adamw import moments, sign_descent
from tests.tiny import tiny
from tests.train.test_loop import NAME, Quadratic, about, answers, bits, random_mask
from workbench.core.delta import applied
from workbench.core.errors import InputError, UnknownNameError
from workbench.train import Check, fit
from workbench.train.settings import step_rows


def gradients_on_the_way(model, task, steps, seed, batch_size, move):
    """The gradient of every step, from the definition of the task, and the weight after the last."""
    w = bits(model)[NAME].numpy().astype(float)
    start, gradients = w, []
    for step in range(steps):
        _, rows = step_rows(step, len(task), batch_size, seed)
        gradients.append((w - task.target[rows].numpy()).mean(0))
        w = move(start, gradients)
    return gradients, w


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_sign_descent_is_its_definition(weight_decay):
    model = tiny()
    task = Quadratic(model)
    options = {"lr": 0.05, "weight_decay": weight_decay, "schedule": "constant"}
    found = fit(model, task, about(model), epochs=2, batch_size=2, optimizer="sign", clip_norm=None, seed=3, **options)
    _, expected = gradients_on_the_way(
        model, task, 6, 3, 2, lambda start, g: sign_descent(start, g, [0.05] * len(g), weight_decay=weight_decay)
    )
    after = (bits(model)[NAME] + found.delta.changes[NAME].dense().double()).numpy()
    np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-6)  # a Delta is float32


def test_sign_descent_by_hand():
    # one weight 2, gradient -0.001, rate 0.5, decay 0.1: 2 * (1 - 0.05) + 0.5 = 2.4; a zero gradient only decays: 1.9
    from workbench.train.optimizers import SignDescent

    leaf = torch.tensor([2.0, 2.0], requires_grad=True)
    leaf.grad = torch.tensor([-0.001, 0.0])
    SignDescent([leaf], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(leaf.detach(), torch.tensor([2.4, 1.9]))


@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_adams_averages_are_those_of_the_gradients_it_saw(fraction):
    model = tiny()
    task = Quadratic(model)
    mask = None if fraction == 1.0 else random_mask(model, fraction)
    found = fit(model, task, about(model), mask=mask, epochs=1, batch_size=2, lr=1e-9, clip_norm=None, seed=3, moments=True)
    # at a rate of 1e-9 the weight stands still to 1e-8, so every gradient is that of the first weight
    still = bits(model)[NAME].numpy()
    gradients = [still - task.target[step_rows(step, 5, 2, 3)[1]].numpy().mean(0) for step in range(3)]
    first, second = moments(gradients)
    keep = np.ones_like(first, dtype=bool) if mask is None else mask[NAME].numpy()
    assert found.moments is not None
    assert found.moments.step == 3
    np.testing.assert_allclose(found.moments.first[NAME].numpy(), np.where(keep, first, 0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.moments.second[NAME].numpy(), np.where(keep, second, 0), rtol=1e-6, atol=1e-7)
    other = "model.layers.0.mlp.down_proj.weight"  # never reached by the loss
    assert not found.moments.first[other].any()
    assert found.moments.first[other].shape == model.shapes()[other]


def test_a_snapshot_is_what_the_run_had_then():
    model = tiny()
    before = bits(model)
    whole = fit(model, answers(model), about(model), epochs=3, batch_size=2, lr=0.01, schedule="constant", snapshots=True, seed=1)
    assert len(whole.checkpoints) == 3
    for epochs, kept in enumerate(whole.checkpoints, 1):
        # at a constant rate the first epochs of a long run are a short run
        short = fit(model, answers(model), about(model), epochs=epochs, batch_size=2, lr=0.01, schedule="constant", seed=1)
        assert kept.lr == pytest.approx(0.01)
        for name, change in short.delta.changes.items():
            torch.testing.assert_close(kept.delta.changes[name].dense(), change.dense(), rtol=0, atol=0)
    with applied(model, whole.checkpoints[0].delta):
        pass
    for name, tensor in bits(model).items():
        assert torch.equal(tensor, before[name]), name


def test_the_rate_of_a_snapshot_is_the_mean_of_its_epoch():
    model = tiny()
    found = fit(model, answers(model), about(model), epochs=2, batch_size=2, lr=0.1, schedule="linear", snapshots=True)
    # 4 rows, 2 a step: four steps at 0.1 * (1, 3/4, 1/2, 1/4); means 0.0875 and 0.0375
    assert [kept.lr for kept in found.checkpoints] == pytest.approx([0.0875, 0.0375])


def test_nothing_is_kept_unless_asked_for():
    model = tiny()
    found = fit(model, answers(model), about(model), epochs=1)
    assert found.checkpoints == []
    assert found.moments is None


def test_what_cannot_be():
    model = tiny()
    with pytest.raises(UnknownNameError, match="sign"):
        fit(model, answers(model), about(model), optimizer="sgn")
    with pytest.raises(InputError, match="moments are Adam's"):
        fit(model, answers(model), about(model), epochs=1, optimizer="sign", moments=True)


def test_a_frozen_parameter_has_moments_of_zero():
    from workbench.core.mask import Mask

    model = tiny(torch.float32)
    mask = Mask.of({n: torch.full(p.shape, n == NAME) for n, p in model.hf.named_parameters()}, about(model))
    found = fit(model, answers(model), about(model), mask=mask, epochs=1, batch_size=2, lr=0.01, moments=True).moments
    assert found is not None
    for kept in (found.first, found.second):
        assert {name: tuple(t.shape) for name, t in kept.items()} == {n: tuple(p.shape) for n, p in model.hf.named_parameters()}
        assert [name for name, t in kept.items() if t.any()] == [NAME]
        assert {t.dtype for t in kept.values()} == {torch.float32}


@pytest.mark.parametrize("partial", [False, True])
def test_after_a_check_the_moments_are_those_of_the_state_that_was_kept(partial):
    model = tiny()
    options = {"batch_size": 2, "lr": 0.01, "schedule": "constant", "seed": 1, "moments": True}
    values = iter([0.0, 1.0, 1.0, 9.0])  # start, and after steps 0, 1, 2: the third is undone
    found = fit(
        model, answers(model), about(model), epochs=2, check=Check(lambda: next(values, 9.0), 2.0, "far", 1, partial), **options
    )
    short = fit(model, answers(model), about(model), epochs=1, **options)  # two steps, the same at a constant rate
    assert found.moments is not None
    assert short.moments is not None
    assert found.audit.steps == 3
    assert found.moments.step == short.moments.step == 2
    for name in short.moments.first:
        assert torch.equal(found.moments.first[name], short.moments.first[name]), name
        assert torch.equal(found.moments.second[name], short.moments.second[name]), name


def test_a_check_that_is_never_exceeded_changes_no_moment():
    model = tiny()
    options = {"epochs": 2, "batch_size": 2, "lr": 0.01, "moments": True}
    plain = fit(model, answers(model), about(model), **options).moments
    checked = fit(model, answers(model), about(model), check=Check(lambda: 0.0, 1.0, "none", every=3), **options).moments
    assert plain is not None
    assert checked is not None
    assert checked.step == plain.step == 4
    assert all(torch.equal(checked.first[name], values) for name, values in plain.first.items())


class Watched(Quadratic):
    """It says how many examples it gave a loss since it was last asked."""

    seen = 0

    def losses(self, chosen, epoch):
        self.seen += len(chosen)
        return super().losses(chosen, epoch)

    def observed(self):
        was, self.seen = self.seen, 0
        return {"seen": float(was)}


def test_what_a_task_observes_stands_in_the_line_of_its_step():
    model = tiny()
    found = fit(model, Watched(model), about(model), epochs=1, batch_size=2, micro_batch=1)
    assert [row["seen"] for row in found.history] == [2.0, 2.0, 1.0]  # five examples, two a step
    assert "seen" not in fit(model, Quadratic(model), about(model), epochs=1).history[0]
