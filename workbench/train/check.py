"""A measurement during training that must not go beyond a limit, the way back, and the search for the point where it would."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.train.masters import Master, write_back

HALVINGS = 16
PRECISION = 0.01
"""How close to the limit a partial stretch must end, as a share of the way from the first measurement to the limit."""


class Check(NamedTuple):
    """A measurement between epochs, or every few steps: training stops before its value exceeds `limit`.

    measure: the present value.   name: what it is called in the history.
    every: steps between two measurements; None for once an epoch. The state after the last step is always measured.
    partial: False goes back to the last state within the limit. True goes on from there along the straight line to the state
        that exceeds it, as far as the limit allows.
    """

    measure: Callable[[], float]
    limit: float
    name: str
    every: int | None = None
    partial: bool = False


class Within(NamedTuple):
    """part: how far along, 0 to 1.   value: what was measured there."""

    part: float
    value: float


def largest_within(measure: Callable[[float], float], limit: float, *, start: float, tolerance: float) -> Within:
    """A part from 0 to 1 at which a value crosses `limit`, by bisection: the lower side of the bracket, within the limit.

    The bracket begins as [0, 1] and is halved until limit - tolerance <= measure(part) <= limit, at most HALVINGS times. Where
    the value crosses the limit more than once, one of the crossings is found.

    Args:
        measure: the value at a part; above the limit at 1.
        start: the value at 0, at most the limit.
        tolerance: in the value's unit, >= 0.
    Returns: the largest part tried that is within the limit; (0, start) if there was none. Larger ones that were not tried may
        be within it too.
    """
    found, high = Within(0.0, start), 1.0
    for _ in range(HALVINGS):
        middle = (found.part + high) / 2
        value = measure(middle)
        if value > limit or value != value:
            high = middle
            continue
        found = Within(middle, value)
        if limit - value <= tolerance:
            break
    return found


class Watch:
    """A check over one run: what it measured goes into the history, and the run can go back to the last state within the limit.

    stopped: why the run must end, or "".   part: share of the last stretch that was kept; below 1 only with a partial check.
    Without a check it does nothing.
    """

    def __init__(self, check: Check | None, made: list[Master], history: list[dict[str, float]]) -> None:
        self.check = check
        self.made = made
        self.history = history
        self.stopped = ""
        self.part = 1.0
        self.kept: list[Tensor] = []
        self.keep()

    def keep(self) -> None:
        """Remember the present state as one within the limit."""
        if self.check is not None:
            self.kept = _copy(self.made)

    def within(self, *, epoch: int, step: int | None = None) -> bool:
        """Measure and note; false if the limit is exceeded."""
        check = self.check
        if check is None:
            return True
        value = check.measure()
        where: dict[str, float] = {"epoch": epoch}
        if check.every is not None and step is not None:
            where["step"] = step
        self.history.append({**where, check.name: value})
        if value <= check.limit:
            return True
        when, kept = (f"step {step}", "the check before") if "step" in where else (f"epoch {epoch}", "the epoch before")
        self.stopped = f"{check.name} reached {value:.4f} after {when}, above {check.limit:.4f}; {kept} is kept"
        return False

    def drop(self) -> None:
        """Undo what came after the last state within the limit; without a check nothing."""
        if self.check is not None:
            _restore(self.made, self.kept)

    def go_back(self) -> None:
        """Undo the stretch that went beyond the limit or, with a partial check, as much of it as must be."""
        check, before = self.check, self.kept
        if check is None or not check.partial:
            return _restore(self.made, before)
        beyond = _copy(self.made)

        def measure(part: float) -> float:
            _restore(self.made, _between(before, beyond, part))
            return check.measure()

        values = [row[check.name] for row in self.history if check.name in row]
        tolerance = PRECISION * (check.limit - values[0])
        found = largest_within(measure, check.limit, start=values[-2], tolerance=tolerance)
        _restore(self.made, _between(before, beyond, found.part))
        self.history.append({**self.history[-1], check.name: found.value, "part": found.part})
        self.part = found.part
        self.stopped += f", and {found.part:.4f} of the way from there, where {check.name} is {found.value:.4f}"
        return None


class LastUpdate:
    """The masters as they were before the last update: one that breaks a model is seen only in the loss of the next step.

    It holds one more copy of all that may move, made anew, in place, before each update.
    """

    def __init__(self, made: list[Master]) -> None:
        self.made = made
        self.kept = _copy(made)

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the present state."""
        for kept, m in zip(self.kept, self.made, strict=True):
            kept.copy_(m.master)

    def undo(self) -> None:
        """Go back to the state remembered."""
        _restore(self.made, self.kept)


def _between(before: list[Tensor], beyond: list[Tensor], part: float) -> list[Tensor]:
    """A part of the way; at 0 where it began, also if its end is infinite."""
    return [torch.lerp(a, b, part) for a, b in zip(before, beyond, strict=True)] if part else before


def _copy(made: list[Master]) -> list[Tensor]:
    return [m.master.detach().clone() for m in made]


@torch.no_grad()
def _restore(made: list[Master], values: list[Tensor]) -> None:
    for m, value in zip(made, values, strict=True):
        m.master.copy_(value)
    write_back(made)
