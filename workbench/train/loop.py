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
from dataclasses import dataclass, field

import torch

from workbench.core.delta import Delta
from workbench.core.errors import DataError, InputError, NumericsError
from workbench.core.mask import Mask
from workbench.core.numerics import isolated_rng, permutation
from workbench.core.records import Provenance
from workbench.core.runtime import progress
from workbench.load.models import Model
from workbench.train.check import Check, Watch
from workbench.train.masters import Master, difference, masters, write_back
from workbench.train.optimizers import Checkpoint, Moments, adam_moments, check_rule, make
from workbench.train.task import Observing, Task

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Audit:
    """What the training really did.

    moved: share of all the model's weights whose bits, in its own dtype, differ afterwards.
    moved_of_trainable: the same of those that were allowed to move.   trainable: how many those were.
    tokens: tokens fed, padding not counted.   stopped: why it ended before its last step, or "".
    part: share of the last stretch between two checks that was kept; below 1 only where a partial check stopped the run.
    """

    moved: float
    moved_of_trainable: float
    trainable: int
    steps: int
    tokens: int
    seconds: float
    stopped: str = ""
    part: float = 1.0


@dataclass(frozen=True, eq=False)
class Trained:
    """delta: what to add to the weights.   history: one dict a step (epoch, step, loss, lr, grad_norm) and check.   audit.

    A step's line also has what the task observed, see `task.Observing`.   checkpoints: the weights after every epoch, where asked
    for.   moments: what Adam remembered in the state that is returned, where asked for; after a check that was partial, in the
    last state measured within the limit, where the stretch began of which a part was kept.
    """

    delta: Delta
    history: list[dict[str, float]]
    audit: Audit
    checkpoints: list[Checkpoint] = field(default_factory=list)
    moments: Moments | None = None


def fit(
    model: Model,
    task: Task,
    provenance: Provenance,
    *,
    mask: Mask | None = None,
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
        micro_batch: examples per backward pass; changes memory, not the result beyond rounding.
        lr: peak rate.   warmup: share of the steps with a linearly rising rate.
        schedule: "constant", "linear" or "cosine", down to 0 after the warm-up.
        weight_decay: decoupled, on trainable entries only.
        clip_norm: largest norm of the trainable entries' gradient; None for no clipping.
        optimizer: "adamw", or "sign" for w -= lr * sign(gradient), which has no use for `betas`.
        snapshots: keep the weights after every epoch, a float32 copy of all that may move for each.
        moments: keep Adam's two averages of the gradient, two numbers for every weight of the model; with a check, a copy of
            them is held at every one that is within the limit.
        check: measured before the first step and after every epoch, or every `check.every` steps; what is returned is the last
            state measured within the limit or, with `check.partial`, the last one on the way to the state beyond it.
    Raises: DataError if there are no examples; NumericsError if a loss or gradient is not finite, naming the step.
    """
    if len(task) == 0:
        raise DataError("train: there are no examples.")
    if schedule not in SCHEDULES:
        raise InputError(f"train: schedule is {schedule!r}, expected one of {', '.join(SCHEDULES)}.")
    check_rule(optimizer, moments=moments)
    numbers = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "micro_batch": micro_batch, "clip_norm": clip_norm}
    numbers["check.every"] = check.every if check is not None else None
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise InputError(f"train: {name} is {value}, expected a positive number.")
    if not 0 <= warmup < 1 or weight_decay < 0:
        raise InputError(f"train: warmup is {warmup} and weight_decay {weight_decay}; expected 0 <= warmup < 1, weight_decay >= 0.")
    begin = time.perf_counter()
    steps = math.ceil(len(task) / batch_size) * epochs
    every = steps // epochs if check is None or check.every is None else check.every
    history: list[dict[str, float]] = []
    checkpoints: list[Checkpoint] = []
    remembered: Moments | None = None
    tokens = 0
    with isolated_rng(seed), masters(model, mask) as made:
        rule = make(optimizer, made, lr=lr, betas=betas, weight_decay=weight_decay)
        watch = Watch(check, made, history)
        if not watch.within(epoch=0):
            raise InputError(f"train: the limit is exceeded before the first step: {watch.stopped.split(' after')[0]}.")
        if moments:
            remembered = adam_moments(rule, made, model)
        for step in progress(range(steps), label=provenance.method, show=show):
            epoch, chosen = _step_rows(step, len(task), batch_size, seed)
            for group in rule.param_groups:
                group["lr"] = lr * _rate(step, steps, warmup, schedule)
            value = _backward(task, chosen, epoch, micro_batch or batch_size, made, step)
            norm = torch.nn.utils.clip_grad_norm_([m.master for m in made], math.inf if clip_norm is None else clip_norm)
            if not math.isfinite(float(norm)):
                raise NumericsError(f"train: the gradient at step {step} is NaN or infinite; try a lower lr.")
            rule.step()
            rule.zero_grad(set_to_none=True)
            write_back(made)
            tokens += task.tokens(chosen, epoch)
            now = {"epoch": epoch, "step": step, "loss": value, "lr": rule.param_groups[0]["lr"], "grad_norm": float(norm)}
            history.append(now | task.observed() if isinstance(task, Observing) else now)
            if check is not None and ((step + 1) % every == 0 or step + 1 == steps):
                if not watch.within(epoch=epoch if check.every else epoch + 1, step=step):
                    watch.go_back()
                    break
                watch.keep()
                if moments:
                    remembered = adam_moments(rule, made, model)
            if snapshots and (step + 1) % (steps // epochs) == 0:
                rates = [row["lr"] for row in history if row["epoch"] == epoch and "lr" in row]
                checkpoints.append(Checkpoint(difference(made, provenance), sum(rates) / len(rates)))
        delta = difference(made, provenance)
        if moments and check is None:  # a check measures the last state too
            remembered = adam_moments(rule, made, model)
        trainable = sum(m.initial.numel() for m in made)
    moved = delta.moved(model)  # of the Delta that is returned, in the dtype the model has
    audit = Audit(
        moved=moved,
        moved_of_trainable=moved * sum(p.numel() for p in model.hf.parameters()) / trainable,
        trainable=trainable,
        steps=len([row for row in history if "loss" in row]),
        tokens=tokens,
        seconds=time.perf_counter() - begin,
        stopped=watch.stopped,
        part=watch.part,
    )
    return Trained(delta, history, audit, checkpoints, remembered)


def _step_rows(step: int, n: int, batch_size: int, seed: int) -> tuple[int, list[int]]:
    """The epoch a step belongs to and its examples: each epoch goes through all of them once, in an order of its own."""
    per_epoch = math.ceil(n / batch_size)
    epoch, place = divmod(step, per_epoch)
    order = permutation(n, seed * 1_000_003 + epoch)
    return epoch, order[place * batch_size : (place + 1) * batch_size]


def _rate(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Share of the peak learning rate at a step."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


def _backward(task: Task, chosen: list[int], epoch: int, micro_batch: int, made: list[Master], step: int) -> float:
    """Gradient of the mean loss over `chosen` in the masters; returns that mean."""
    total = 0.0
    for first in range(0, len(chosen), micro_batch):
        values = task.losses(chosen[first : first + micro_batch], epoch)
        summed = values.sum() / len(chosen)
        if not bool(torch.isfinite(summed)):
            raise NumericsError(f"train: the loss at step {step} is NaN or infinite; try a lower lr or dtype='float32'.")
        summed.backward()
        for m in made:
            m.collect_gradient()
        total += float(summed.detach())
    return total
