"""A measurement during training that must not go beyond a limit, and the search for the point where it would."""

from collections.abc import Callable
from typing import NamedTuple

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
