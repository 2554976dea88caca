"""NaN in training: what the message names, what is kept, the model as it was; and the task that is told of every step."""

from types import SimpleNamespace

import pytest
import torch

from tests.tiny import tiny, tiny_sets
from tests.train.test_loop import NAME, Quadratic, about, bits
from workbench.core.delta import applied
from workbench.core.errors import InputError, NumericsError, TrainingStopped
from workbench.load.batches import encode_all
from workbench.train import AnswerTask, Check, Lora, Stepping, fit
from workbench.train.settings import Settings, step_rows

OPTIONS = {"epochs": 2, "batch_size": 1, "lr": 0.01, "schedule": "constant"}


class Breaks(AnswerTask):
    """The loss of row f2 becomes NaN (or its log-probability raises, as it does in `answer_logprobs`) after some steps."""

    def __init__(self, model, steps, how="nan"):
        super().__init__(model, encode_all(model, tiny_sets()[0]))
        self.steps, self.how = steps, how

    def stepped(self):
        self.steps -= 1

    def losses(self, chosen, epoch):
        values = super().losses(chosen, epoch)
        bad = torch.tensor([self.rows[i].id == "f2" and self.steps <= 0 for i in chosen])
        if self.how == "raises" and bool(bad.any()):
            raise NumericsError("answer_logprobs: row 0 of the batch has a log-probability that is NaN or infinite.")
        if self.how == "gradient":
            return values + (values - values.detach()).abs().sqrt() if bool(bad.any()) else values  # the slope of sqrt at 0
        return torch.where(bad, float(self.how) if self.how != "raises" else values, values)


def f2_comes(epoch):
    """The step of an epoch, counted over the run, that has row f2; three rows, one a step, seed 0."""
    return next(step for step in range(3 * epoch, 3 * epoch + 3) if step_rows(step, 3, 1, 0)[1] == [2])


@pytest.mark.parametrize("how", ["nan", "inf", "raises"])
def test_the_row_and_the_step_are_named_and_what_was_good_is_kept(how):
    model = tiny()
    before, fingerprint = bits(model), model.fingerprint()
    step = f2_comes(1)
    assert step >= 3
    with pytest.raises(TrainingStopped, match=rf"the loss at step {step} is NaN or infinite for 'f2'; try a lower lr") as stopped:
        fit(model, Breaks(model, 3, how), about(model), **OPTIONS)
    assert isinstance(stopped.value, NumericsError)
    assert isinstance(stopped.value, ArithmeticError)
    assert all(torch.equal(p, before[n]) for n, p in bits(model).items())
    assert model.fingerprint() == fingerprint
    kept = stopped.value.kept
    # the state whose loss was not finite came of the update before, so that update is not kept either
    assert [row["step"] for row in kept.history] == list(range(step - 1))
    assert kept.audit.steps == step - 1
    assert kept.audit.stopped == str(stopped.value)
    # the state is that of a run without the row's NaN, after as many steps; at a constant rate a check can stop it there
    looks = iter([0.0] * step + [9.0])
    whole = fit(model, Breaks(model, 99), about(model), check=Check(lambda: next(looks), 1.0, "looks", every=1), **OPTIONS)
    assert kept.delta.id == whole.delta.id
    with applied(model, kept.delta):
        assert model.fingerprint() != fingerprint


def test_in_a_batch_only_the_bad_rows_are_named():
    model = tiny()
    for how in ("nan", "raises"):
        with pytest.raises(TrainingStopped, match="the loss at step 1 is NaN or infinite for 'f2'; try"):
            fit(model, Breaks(model, 1, how), about(model), **OPTIONS | {"batch_size": 3})


def test_what_cannot_be_told_apart_is_named_whole():
    model = tiny()

    class Together(AnswerTask):
        """Raises for two rows or more, for none of them alone."""

        def losses(self, chosen, epoch):
            if len(chosen) > 1:
                raise NumericsError("together they overflow")
            return super().losses(chosen, epoch)

    task = Together(model, encode_all(model, tiny_sets()[0]))
    with pytest.raises(TrainingStopped, match="for 'f\\d', 'f\\d', 'f\\d'; try") as stopped:
        fit(model, task, about(model), **OPTIONS | {"batch_size": 3})
    assert stopped.value.kept.delta.is_empty
    assert stopped.value.kept.history == []


def test_a_task_without_names_has_numbers():
    model = tiny()

    class Bad(Quadratic):
        def losses(self, chosen, epoch):
            return super().losses(chosen, epoch) * torch.tensor([float("inf") if i == 4 else 1.0 for i in chosen])

    with pytest.raises(TrainingStopped, match="is NaN or infinite for example 4; try"):
        fit(model, Bad(model), about(model), epochs=1, batch_size=5)


def test_a_gradient_that_is_not_finite_names_step_and_weight():
    model = tiny()
    before = bits(model)
    step = f2_comes(1)
    with pytest.raises(TrainingStopped, match=rf"the gradient at step {step} is NaN or infinite, first in model\.") as stopped:
        fit(model, Breaks(model, 3, "gradient"), about(model), **OPTIONS)
    assert stopped.value.kept.audit.steps == step - 1
    assert all(torch.equal(p, before[n]) for n, p in bits(model).items())

    class Slope(Quadratic):
        def losses(self, chosen, epoch):
            return (self.weight - self.weight.detach()).abs().sqrt().sum()[None].expand(len(chosen))

    for options in ({}, {"sharpness": 0.1}):
        with pytest.raises(TrainingStopped, match=f"the gradient at step 0 is NaN or infinite, first in {NAME}"):
            fit(model, Slope(model), about(model), epochs=1, **options)


@pytest.mark.parametrize(("rate", "at"), [(1e30, 2), (1e39, 2), (1e39, 5)])
def test_what_is_kept_of_a_run_that_really_diverges_is_good(rate, at, monkeypatch):
    """One update of a huge rate: its loss was finite, that of the weights it leaves is not (1e39 is infinite in float32)."""
    model = tiny(torch.float32)
    task = AnswerTask(model, encode_all(model, tiny_sets()[0]))
    monkeypatch.setattr(Settings, "rate", lambda self, step, steps: rate if step == at else 0.01)
    for lora in (None, Lora(rank=2)):
        with pytest.raises(TrainingStopped, match="NaN or infinit") as stopped:
            fit(model, task, about(model), lora=lora, snapshots=True, **OPTIONS)
        kept = stopped.value.kept
        assert [row["step"] for row in kept.history] == list(range(at))
        assert len(kept.checkpoints) == at // 3
        looks = iter([0.0] * (at + 1) + [9.0])
        check = Check(lambda looks=looks: next(looks), 1.0, "looks", every=1)
        assert kept.delta.id == fit(model, task, about(model), lora=lora, check=check, **OPTIONS).delta.id
        with applied(model, kept.delta), torch.no_grad():
            assert bool(torch.isfinite(task.losses([0, 1, 2], 0)).all())


def test_with_a_check_what_is_kept_is_the_last_state_within_it():
    model = tiny()
    step = f2_comes(1)
    every = 2
    check = Check(lambda: 0.0, 1.0, "looks", every=every)
    with pytest.raises(TrainingStopped, match="'f2'") as stopped:
        fit(model, Breaks(model, 3), about(model), check=check, **OPTIONS)
    good = step // every * every  # steps before the last look
    looks = iter([0.0] * (good + 1) + [9.0] * 9)
    whole = fit(model, Breaks(model, 99), about(model), check=Check(lambda: next(looks), 1.0, "looks", every=1), **OPTIONS)
    assert stopped.value.kept.delta.id == whole.delta.id


def test_a_check_that_meets_nan_keeps_what_was_before():
    model = tiny()
    looks = iter([0.0, 0.0, None])

    def measure():
        value = next(looks)
        if value is None:
            raise NumericsError("answer_logprobs: row 0 of the batch has a log-probability that is NaN or infinite.")
        return value

    with pytest.raises(TrainingStopped, match="row 0 of the batch") as stopped:
        fit(model, Breaks(model, 99), about(model), check=Check(measure, 1.0, "looks", every=1), **OPTIONS)
    one = iter([0.0, 0.0, 9.0])
    whole = fit(model, Breaks(model, 99), about(model), check=Check(lambda: next(one), 1.0, "looks", every=1), **OPTIONS)
    assert stopped.value.kept.delta.id == whole.delta.id


def test_adapters_are_kept_too_and_moments_are_those_of_the_last_good_step():
    model = tiny()
    with pytest.raises(TrainingStopped, match="'f2'") as stopped:
        fit(model, Breaks(model, 3), about(model), lora=Lora(rank=2), **OPTIONS)
    assert stopped.value.kept.delta.changes
    with pytest.raises(TrainingStopped, match="'f2'") as stopped:
        fit(model, Breaks(model, 3), about(model), moments=True, **OPTIONS)
    assert stopped.value.kept.moments.step == f2_comes(1)  # with the gradient of the update that was undone


def test_a_task_is_told_of_every_step_when_the_weights_have_moved():
    model = tiny()
    start = bits(model)

    class Counting(Quadratic):
        def __init__(self, model):
            super().__init__(model)
            self.told, self.asked = [], 0

        def losses(self, chosen, epoch):
            self.asked += 1
            return super().losses(chosen, epoch)

        def stepped(self):
            self.told.append((self.asked, float((self.weight.detach() - start[NAME]).abs().max())))

    task = Counting(model)
    assert isinstance(task, Stepping)
    fit(model, task, about(model), epochs=2, batch_size=2, micro_batch=1, lr=0.01, schedule="constant")
    # five examples, two a step, one at a time: 2, 4, 5 losses an epoch; an Adam step of lr 0.01 moves by about as much
    assert [asked for asked, _ in task.told] == [2, 4, 5, 7, 9, 10]
    assert task.told[0][1] == pytest.approx(0.01, rel=1e-3)
    assert task.told[-1][1] > 0.03


@pytest.mark.parametrize("name", ["epochs", "batch_size", "micro_batch"])
def test_counts_are_whole(name):
    plain = {"epochs": 1, "batch_size": 1, "micro_batch": None, "lr": 0.1, "schedule": "linear", "warmup": 0.0, "weight_decay": 0.0}
    given = plain | {"betas": (0.9, 0.99), "clip_norm": None, "optimizer": "adamw", "sharpness": 0.0, "seed": 0, name: 2.5}
    with pytest.raises(InputError, match=f"{name} is 2.5, expected a whole number"):
        Settings.__post_init__(SimpleNamespace(**given))  # the tests check types before that
