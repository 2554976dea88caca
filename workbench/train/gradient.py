"""The gradient of one step: of the mean loss over its examples, or of that loss at the worst point nearby (SAM).

With a radius rho, the loss of a step is

    max over ||d|| <= rho of L(w + d)  +  R(w)

where L is the part of the loss that a task calls sharp (all of it, unless the task says otherwise) and R is the rest. To first
order the maximum is at d = rho g / ||g|| with g the gradient of L at w, over all trainable entries together; the gradient that is
used is that of L at w + d, with d held fixed, plus that of R at w. Where g is zero, d is zero.

Reference: Foret et al. 2020, arXiv:2010.01412, here with one d for the whole step (their experiments have one for each
accelerator's share of it, "m-sharpness"). Taken of the loss of what is forgotten alone: Fan et al. 2025, arXiv:2502.05374.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import NumericsError
from workbench.train.masters import Master, write_back
from workbench.train.settings import Turn
from workbench.train.task import Named, Observing, Sharp, Task

Losses = Callable[[Sequence[int], int], Float[Tensor, "example"]]


def step_gradient(task: Task, turn: Turn, made: list[Master], *, micro_batch: int, sharpness: float) -> dict[str, float]:
    """Put the gradient of a step into the masters; the weights are afterwards what they were.

    Returns: what the history says of it: loss, the mean at the weights themselves, in the task's unit; with a sharpness also
        `sharpness`, how much the sharp part rose on the way to the worst point; and what the task observed at the weights.
    Raises: NumericsError naming step and examples if a loss is not finite, or step and weight if a gradient is not.
    """
    if not sharpness:
        loss = _backward(task, task.losses, turn, made, micro_batch)
        return {"loss": loss} | _observed(task)
    sharp = task.sharp_losses if isinstance(task, Sharp) else task.losses
    here = _backward(task, sharp, turn, made, micro_batch)
    away = _uphill(made, turn, sharpness)
    rest = _backward(task, task.other_losses, turn, made, micro_batch, constant=True) if isinstance(task, Sharp) else 0.0
    seen = _observed(task)
    with _displaced(made, away):
        there = _backward(task, sharp, turn, made, micro_batch)
    _observed(task)  # what it saw at the worst point is not the model's
    return {"loss": here + rest, "sharpness": there - here} | seen


def check_gradient(made: Sequence[Master], norm: float | Tensor, step: int) -> None:
    """NumericsError naming the step and the first weight if the norm of the masters' gradient is not finite."""
    if bool(torch.isfinite(torch.as_tensor(norm))):
        return
    first = next(
        (m.name for m in made if m.master.grad is not None and not bool(torch.isfinite(m.master.grad).all())), "the norm of all"
    )
    raise NumericsError(f"train: the gradient at step {step} is NaN or infinite, first in {first}; try a lower lr.")


def _backward(task: Task, losses: Losses, turn: Turn, made: Sequence[Master], micro_batch: int, *, constant: bool = False) -> float:
    """Add the gradient of the mean of `losses` over the step's examples to the masters'; returns that mean.

    Args: constant: whether losses may be constants, such as the rest of a loss that is all sharp.
    """
    total = 0.0
    for first in range(0, len(turn.chosen), micro_batch):
        rows = turn.chosen[first : first + micro_batch]
        try:
            values = losses(rows, turn.epoch)
        except NumericsError as error:
            raise _not_finite(task, _alone(losses, rows, turn), turn) from error
        summed = values.sum() / len(turn.chosen)
        if not bool(torch.isfinite(summed)):
            bad = [row for row, finite in zip(rows, torch.isfinite(values).tolist(), strict=True) if not finite]
            raise _not_finite(task, bad or rows, turn)
        if summed.requires_grad or not constant:
            summed.backward()
        for m in made:
            m.collect_gradient()
        total += float(summed.detach())
    return total


@torch.no_grad()
def _uphill(made: Sequence[Master], turn: Turn, radius: float) -> list[Tensor | None]:
    """radius g / ||g|| of each master, and its gradient taken away; zero where all gradients are."""
    gradients = [m.master.grad for m in made]
    norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
    check_gradient(made, norm, turn.step)
    for m in made:
        m.master.grad = None
    return [None if g is None else g * (radius / norm if norm > 0 else 0.0) for g in gradients]


@contextmanager
def _displaced(made: list[Master], away: Sequence[Tensor | None]) -> Iterator[None]:
    """The model at masters + away, each weight rounded to its dtype once; on exit at the masters, to the same bits."""
    with torch.no_grad():
        for m, by in zip(made, away, strict=True):
            if by is not None:
                m.write(m.master + by)
    try:
        yield
    finally:
        write_back(made)


def _observed(task: Task) -> dict[str, float]:
    return task.observed() if isinstance(task, Observing) else {}


@torch.no_grad()
def _alone(losses: Losses, rows: Sequence[int], turn: Turn) -> list[int]:
    """Which rows have no finite loss by themselves; all of them if that cannot be told."""
    bad: list[int] = []
    for row in rows:
        try:
            finite = bool(torch.isfinite(losses([row], turn.epoch)).all())
        except NumericsError:
            finite = False
        if not finite:
            bad.append(row)
    return bad or list(rows)


def _not_finite(task: Task, rows: Sequence[int], turn: Turn) -> NumericsError:
    named = [repr(name) for name in task.names(rows, turn.epoch)] if isinstance(task, Named) else [f"example {row}" for row in rows]
    listed = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
    return NumericsError(f"train: the loss at step {turn.step} is NaN or infinite for {listed}; try a lower lr or dtype='float32'.")
