"""The one optimization loop: a task of examples with a loss each and an optional mask in; a Delta, a history and an audit out.

Whatever trains runs through `fit`. Every step
    1. takes `batch_size` examples in an order fixed by the seed,
    2. sums their losses micro-batch by micro-batch and divides by how many they are, so that the gradient is that of the mean
       over examples whatever the micro-batch size,
    3. clips the norm of the trainable entries' gradient, and
    4. lets the optimizer, AdamW unless told otherwise, move the float32 masters of exactly those entries.
Dropout stays off: a policy that equals its reference must score as equal.
"""

import math
import time

import torch

from workbench.core.delta import Delta
from workbench.core.errors import DataError, InputError, NumericsError, TrainingStopped
from workbench.core.mask import Mask
from workbench.core.numerics import isolated_rng
from workbench.core.records import Provenance
from workbench.core.runtime import progress
from workbench.load.models import Model
from workbench.train.check import Check, LastUpdate, Watch
from workbench.train.gradient import check_gradient, step_gradient
from workbench.train.lora import Lora
from workbench.train.masters import write_back
from workbench.train.optimizers import Checkpoint, Moments, adam_moments, check_moments, make
from workbench.train.result import Audit, Trained
from workbench.train.settings import Settings
from workbench.train.task import Stepping, Task
from workbench.train.trainable import Trainable, trainable

__all__ = ["Audit", "Check", "Checkpoint", "Moments", "Trained", "fit"]


def fit(
    model: Model,
    task: Task,
    provenance: Provenance,
    *,
    mask: Mask | None = None,
    lora: Lora | None = None,
    epochs: int = 5,
    batch_size: int = 16,
    micro_batch: int | None = None,
    lr: float = 1e-4,
    schedule: str = "linear",
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    clip_norm: float | None = 1.0,
    optimizer: str = "adamw",
    sharpness: float = 0.0,
    seed: int = 0,
    check: Check | None = None,
    snapshots: bool = False,
    moments: bool = False,
    show: bool = False,
) -> Trained:
    """Minimize the mean of a task's per-example losses, and leave the model as it was found.

    Args:
        task: the examples and the loss of each.
        provenance: of the resulting Delta.
        mask: the weights that may move; None for all.
        lora: train low-rank adapters instead of the weights; the Delta is then low rank. Their rates are usually higher.
        micro_batch: examples per backward pass; changes memory, not the result beyond rounding.
        lr: peak rate.   warmup: share of the steps with a linearly rising rate.
        schedule: "constant", "linear" or "cosine", down to 0 after the warm-up.
        weight_decay: decoupled, on trainable entries only.
        clip_norm: largest norm of the trainable entries' gradient; None for no clipping.
        optimizer: "adamw", or "sign" for w -= lr * sign(gradient), which has no use for `betas`.
        sharpness: radius, in the trainable entries' Euclidean norm, within which the loss is minimized at its worst point (SAM), or
            a part of the loss where the task says so; twice the work. 0 for none. See `train.gradient`.
        check: measured before the first step and after every epoch, or every `check.every` steps; what is returned is the last
            state measured within the limit or, with `check.partial`, the last one on the way to the state beyond it.
        snapshots: keep the weights after every epoch, a float32 copy of all that may move for each.
        moments: keep Adam's two averages of the gradient, two numbers for every weight of the model; with a check, a copy of
            them is held at every one that is within the limit.
    Raises: DataError if there are no examples; TrainingStopped, a NumericsError, if a loss or gradient is not finite, or in the end
        a weight: it names the step and the examples, and its `kept` is the last state whose loss and gradient were finite, without
        the update that broke it; with a check it is the last state within the limit.
    """
    if len(task) == 0:
        raise DataError("train: there are no examples.")
    settings = Settings(
        epochs, batch_size, micro_batch, lr, schedule, warmup, weight_decay, betas, clip_norm, optimizer, sharpness, seed
    )
    if check is not None and check.every is not None and not check.every > 0:
        raise InputError(f"train: check.every is {check.every}, expected a positive number.")
    if moments:
        check_moments(optimizer, adapted=lora is not None)
    begin = time.perf_counter()
    with isolated_rng(seed), trainable(model, mask, lora) as weights:
        run = _Run(model, task, provenance, weights, settings, check, keep_moments=moments, keep_epochs=snapshots)
        delta, failure = run.go(show=show)
        entries, reached = weights.entries, weights.reached
    moved = delta.moved(model)  # of the Delta that is returned, in the dtype the model has
    audit = Audit(
        moved=moved,
        moved_of_trainable=moved * sum(p.numel() for p in model.hf.parameters()) / reached,
        trainable=entries,
        steps=len([row for row in run.history if "loss" in row]),
        tokens=run.tokens,
        seconds=time.perf_counter() - begin,
        stopped=run.watch.stopped if failure is None else str(failure),
        part=run.watch.part,
    )
    trained = Trained(delta, run.history, audit, run.checkpoints, run.moments)
    if failure is not None:
        raise TrainingStopped(str(failure), trained) from failure
    return trained


class _Run:
    """One training under way: the optimizer, and what has been gathered so far."""

    def __init__(
        self,
        model: Model,
        task: Task,
        provenance: Provenance,
        weights: Trainable,
        settings: Settings,
        check: Check | None,
        *,
        keep_moments: bool,
        keep_epochs: bool,
    ) -> None:
        self.model, self.task, self.provenance, self.weights, self.settings = model, task, provenance, weights, settings
        self.keep_moments, self.keep_epochs = keep_moments, keep_epochs
        self.history: list[dict[str, float]] = []
        self.checkpoints: list[Checkpoint] = []
        self.moments: Moments | None = None
        self.tokens = 0
        self.per_epoch = settings.steps_per_epoch(len(task))
        self.steps = self.per_epoch * settings.epochs
        self.every = self.per_epoch if check is None or check.every is None else check.every
        self.rule = make(settings.optimizer, weights.made, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
        self.watch = Watch(check, weights.made, self.history)
        self.before = LastUpdate(weights.made) if check is None else None

    def go(self, *, show: bool) -> tuple[Delta, NumericsError | None]:
        """Take all steps, or those until a check ends it; what came of it and, at the last good state, what was not finite."""
        if not self.watch.within(epoch=0):
            raise InputError(f"train: the limit is exceeded before the first step: {self.watch.stopped.split(' after')[0]}.")
        self._remember()
        failure: NumericsError | None = None
        try:
            self._steps(show)
            delta = self.weights.change(self.provenance)
        except NumericsError as error:
            failure = error
            self._drop()
            delta = self.weights.change(self.provenance)
        if self.watch.check is None:  # a check has remembered the last state within its limit
            self._remember()
        return delta, failure

    def _steps(self, show: bool) -> None:
        for step in progress(range(self.steps), label=self.provenance.method, show=show):
            epoch = self._step(step)
            if self.watch.check is not None and ((step + 1) % self.every == 0 or step + 1 == self.steps):
                if not self.watch.within(epoch=epoch if self.watch.check.every else epoch + 1, step=step):
                    return self.watch.go_back()
                self.watch.keep()
                self._remember()
            if self.keep_epochs and (step + 1) % self.per_epoch == 0:
                self._snapshot(epoch)
        return None

    def _drop(self) -> None:
        """Go back to the last good state: that of the last check or, without one, before the last update, which is forgotten."""
        if self.before is None:
            return self.watch.drop()
        if self.history:
            self.before.undo()
            self.history.pop()
            del self.checkpoints[len(self.history) // self.per_epoch :]
        return None

    def _step(self, step: int) -> int:
        """Move the weights once; returns the epoch."""
        settings, made = self.settings, self.weights.made
        turn = settings.turn(step, len(self.task))
        rate = settings.rate(step, self.steps)
        for group in self.rule.param_groups:
            group["lr"] = rate
        micro = settings.micro_batch or settings.batch_size
        found = step_gradient(self.task, turn, made, micro_batch=micro, sharpness=settings.sharpness)
        limit = math.inf if settings.clip_norm is None else settings.clip_norm
        norm = torch.nn.utils.clip_grad_norm_([m.master for m in made], limit)
        check_gradient(made, norm, step)
        if self.before is not None:
            self.before.keep()
        self.rule.step()
        self.rule.zero_grad(set_to_none=True)
        write_back(made)
        if isinstance(self.task, Stepping):
            self.task.stepped()
        self.tokens += self.task.tokens(turn.chosen, turn.epoch)
        line = {"epoch": turn.epoch, "step": step, "loss": found.pop("loss"), "lr": rate, "grad_norm": float(norm)}
        self.history.append(line | found)
        return turn.epoch

    def _remember(self) -> None:
        if self.keep_moments:
            self.moments = adam_moments(self.rule, self.weights.made, self.model)

    def _snapshot(self, epoch: int) -> None:
        rates = [row["lr"] for row in self.history if row["epoch"] == epoch and "lr" in row]
        self.checkpoints.append(Checkpoint(self.weights.change(self.provenance), sum(rates) / len(rates)))
