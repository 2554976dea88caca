"""The gradient at the worst point nearby: against autograd on the definition, by hand on a parabola, and what must not move."""

import pytest
import torch
from torch.func import functional_call

from tests.reference.sam import sam_gradient
from tests.tiny import tiny, tiny_sets
from tests.train.test_loop import NAME, Quadratic, about, answers, bits, random_mask
from workbench.core.errors import InputError, TrainingStopped
from workbench.core.numerics import mean_nll
from workbench.load.batches import collate, encode_all
from workbench.trace.forward import forward
from workbench.train import AnswerTask, Lora, Sharp, fit
from workbench.train.gradient import step_gradient
from workbench.train.masters import masters
from workbench.train.settings import Turn


class ForgetAndKeep(AnswerTask):
    """- NLL of a forget row is the sharp part, 2 x NLL of a retain row the rest; what the weights were is noted at every call."""

    def __init__(self, model):
        forget, retain = tiny_sets()
        super().__init__(model, encode_all(model, forget))
        self.retain = encode_all(model, retain)
        self.calls = []

    def sharp_losses(self, chosen, epoch):
        self.calls.append(("sharp", bits(self.model)))
        return -super().losses(chosen, epoch)

    def other_losses(self, chosen, epoch):
        self.calls.append(("other", bits(self.model)))
        return 2 * mean_nll(forward(self.model, collate([self.retain[i] for i in chosen])))

    def losses(self, chosen, epoch):
        return self.sharp_losses(chosen, epoch) + self.other_losses(chosen, epoch)


def gradient_of(model, task, rho, mask=None, micro_batch=3):
    """The masters' gradients of one step over three examples by name, whole tensors, and what the history says."""
    with masters(model, mask) as made:
        said = step_gradient(task, Turn(0, 0, [2, 0, 1]), made, micro_batch=micro_batch, sharpness=rho)
        return {m.name: m.master.grad.clone() for m in made if m.master.grad is not None}, said


def written_out(model, task):
    """The two parts of the loss as functions of a list of weights, row by row, without padding or this package's code."""
    names = [n for n, _ in model.hf.named_parameters()]

    def nll(weights, rows):
        total = 0.0
        for row in rows:
            tokens = torch.tensor([row.tokens])
            out = functional_call(model.hf, dict(zip(names, weights, strict=True)), (tokens,)).logits[0].log_softmax(-1)
            picked = [out[p - 1, row.tokens[p]] for p in range(row.start, len(row.tokens))]
            total = total - sum(picked) / len(picked) / len(rows)
        return total

    return lambda w: -nll(w, task.rows), lambda w: 2 * nll(w, task.retain[:3]), names


@pytest.mark.parametrize("rho", [0.05, 1.0])
def test_it_is_the_gradient_at_the_worst_point_written_out(rho):
    model = tiny()
    task = ForgetAndKeep(model)
    sharp, other, names = written_out(model, task)
    weights = [p for _, p in model.hf.named_parameters()]
    expected, rise = sam_gradient(sharp, other, weights, rho)
    plain, _ = sam_gradient(sharp, other, weights, 0.0)
    found, said = gradient_of(model, task, rho)
    size = sum(float(g.square().sum()) for g in expected) ** 0.5
    apart = sum(float((a - b).square().sum()) for a, b in zip(expected, plain, strict=True)) ** 0.5
    assert apart > 1e-2 * size, "the worst point must make a difference that the tolerance can see"
    for name, g in zip(names, expected, strict=True):
        # Llama's RMSNorm is float32 in any dtype, and three padded rows add in another order than three alone
        torch.testing.assert_close(found[name].view_as(g), g, rtol=1e-4, atol=1e-6 * size)
    assert said["sharpness"] == pytest.approx(rise, rel=1e-4)
    assert said["loss"] == pytest.approx(float((sharp(weights) + other(weights)).detach()), rel=1e-5)
    assert rise > 0


def test_a_parabola_by_hand():
    # mean over e of 1/2 ||w - t_e||^2 has the gradient g = w - mean t; at w + rho g / ||g|| it is g (1 + rho / ||g||), of norm
    # ||g|| + rho, and the loss is higher by rho ||g|| + rho^2 / 2
    model = tiny()
    task = Quadratic(model)
    g = float((bits(model)[NAME] - task.target.mean(0)).norm())
    found = fit(model, task, about(model), epochs=1, batch_size=5, lr=0.01, sharpness=0.5, clip_norm=None)
    line = found.history[0]
    assert line["grad_norm"] == pytest.approx(g + 0.5, rel=1e-9)
    assert line["sharpness"] == pytest.approx(0.5 * g + 0.125, rel=1e-9)
    plain = fit(model, task, about(model), epochs=1, batch_size=5, lr=0.01, clip_norm=None).history[0]
    assert line["loss"] == pytest.approx(plain["loss"], rel=1e-12)
    assert "sharpness" not in plain


def test_inside_a_mask_only_its_entries_are_displaced():
    # on the parabola again, with g over the mask alone: the other entries neither move nor count in the norm
    model = tiny()
    mask = random_mask(model, 0.3)
    task = Quadratic(model)
    inside = float((bits(model)[NAME] - task.target[:3].mean(0))[mask[NAME]].norm())
    before = bits(model)

    class Watching(Quadratic):
        apart = 0

        def losses(self, chosen, epoch):
            now = bits(self.model)
            assert all(torch.equal(now[n][~mask[n]], before[n][~mask[n]]) for n in now), "a frozen weight is displaced"
            self.apart += int((now[NAME] != before[NAME]).sum())
            return super().losses(chosen, epoch)

    watching = Watching(model)
    watching.model = model
    found, _ = gradient_of(model, watching, 0.5, mask)
    assert watching.apart == int(mask[NAME].sum())  # once, at the worst point, and all of them
    assert float(found[NAME].norm()) == pytest.approx(inside + 0.5, rel=1e-9)


def test_no_gradient_no_displacement():
    model = tiny()
    task = Quadratic(model, n=3)
    task.target = bits(model)[NAME].expand(3, -1, -1).clone()
    found, said = gradient_of(model, task, 0.5)
    assert said == {"loss": 0.0, "sharpness": 0.0}
    assert not found[NAME].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_weights_come_back_to_the_same_bits(dtype):
    model = tiny(dtype)
    task = ForgetAndKeep(model)
    before = bits(model)
    with masters(model, None) as made:
        step_gradient(task, Turn(0, 0, [0, 1, 2]), made, micro_batch=2, sharpness=0.3)
        assert all(torch.equal(p, before[n]) for n, p in bits(model).items()), "not restored after the step"
    at = {kind: [all(torch.equal(w[n], before[n]) for n in w) for k, w in task.calls if k == kind] for kind in ("sharp", "other")}
    assert at == {"sharp": [True, True, False, False], "other": [True, True]}  # two micro-batches each


def test_after_an_error_at_the_worst_point_the_weights_are_the_kept_ones():
    model = tiny()
    before = bits(model)

    class Breaks(ForgetAndKeep):
        def sharp_losses(self, chosen, epoch):
            return super().sharp_losses(chosen, epoch) * (float("nan") if len(self.calls) == 3 else 1.0)

    with masters(model, None) as made:
        with pytest.raises(ArithmeticError, match="the loss at step 0 is NaN"):
            step_gradient(Breaks(model), Turn(0, 0, [0, 1, 2]), made, micro_batch=3, sharpness=0.3)
        assert all(torch.equal(p, before[n]) for n, p in bits(model).items())
    with pytest.raises(TrainingStopped, match="'f0', 'f2', 'f1'") as stopped:
        fit(model, Breaks(model), about(model), epochs=1, sharpness=0.3)
    assert stopped.value.kept.delta.is_empty


def test_micro_batches_change_memory_not_the_gradient():
    model = tiny()
    whole, said = gradient_of(model, ForgetAndKeep(model), 0.5, micro_batch=3)
    split, again = gradient_of(model, ForgetAndKeep(model), 0.5, micro_batch=1)
    assert said == pytest.approx(again, rel=1e-5)
    for name, g in whole.items():
        torch.testing.assert_close(split[name], g, rtol=1e-4, atol=1e-6)  # Llama's RMSNorm is float32 in any dtype


def test_a_task_without_parts_is_sharp_as_a_whole():
    model = tiny()
    task = ForgetAndKeep(model)
    sharp, other, names = written_out(model, task)
    expected, _ = sam_gradient(lambda w: sharp(w) + other(w), None, [p for _, p in model.hf.named_parameters()], 0.5)

    class Whole(AnswerTask):
        def losses(self, chosen, epoch):
            return task.losses(chosen, epoch)

    found, _ = gradient_of(model, Whole(model, task.rows), 0.5)
    assert isinstance(task, Sharp)
    assert not isinstance(Whole(model, task.rows), Sharp)
    size = sum(float(g.square().sum()) for g in expected) ** 0.5
    for name, g in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name].view_as(g), g, rtol=1e-4, atol=1e-6 * size)


def test_a_vanishing_radius_is_no_radius():
    model = tiny()
    none, _ = gradient_of(model, ForgetAndKeep(model), 0.0)
    small, _ = gradient_of(model, ForgetAndKeep(model), 1e-9)
    for name, g in none.items():
        torch.testing.assert_close(small[name], g, rtol=1e-4, atol=1e-6)
    plain = fit(model, answers(model), about(model), epochs=2, batch_size=2, lr=0.01).delta
    assert fit(model, answers(model), about(model), epochs=2, batch_size=2, lr=0.01, sharpness=0.0).delta.id == plain.id
    assert fit(model, answers(model), about(model), epochs=2, batch_size=2, lr=0.01, sharpness=0.2).delta.id != plain.id


def test_a_rest_that_is_a_constant_has_no_gradient():
    model = tiny()

    class NoRest(ForgetAndKeep):
        def other_losses(self, chosen, epoch):
            return torch.full((len(chosen),), 3.0)

    found, said = gradient_of(model, NoRest(model), 0.5)
    whole, alone = gradient_of(model, SharpAlone(model), 0.5)
    assert said["loss"] == pytest.approx(alone["loss"] + 3.0)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


class SharpAlone(AnswerTask):
    """The sharp part of ForgetAndKeep and nothing else."""

    def __init__(self, model):
        super().__init__(model, encode_all(model, tiny_sets()[0]))

    def losses(self, chosen, epoch):
        return -super().losses(chosen, epoch)


def test_what_is_observed_is_what_the_weights_themselves_showed():
    model = tiny()

    class Seen(Quadratic):
        seen = 0

        def losses(self, chosen, epoch):
            self.seen += len(chosen)
            return super().losses(chosen, epoch)

        def observed(self):
            was, self.seen = self.seen, 0
            return {"seen": float(was)}

    found = fit(model, Seen(model), about(model), epochs=1, batch_size=2, micro_batch=1, sharpness=0.1)
    assert [row["seen"] for row in found.history] == [2.0, 2.0, 1.0]


def test_it_goes_together_with_adapters():
    model = tiny(torch.float32)
    options = {"epochs": 2, "batch_size": 2, "lr": 0.02, "lora": Lora(rank=2)}
    plain = fit(model, ForgetAndKeep(model), about(model), **options)
    found = fit(model, ForgetAndKeep(model), about(model), sharpness=0.5, **options)
    assert found.delta.id != plain.delta.id
    assert all(row["sharpness"] > 0 for row in found.history)


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
def test_a_radius_that_cannot_be(rho):
    model = tiny()
    with pytest.raises(InputError, match="sharpness is"):
        fit(model, answers(model), about(model), sharpness=rho)
