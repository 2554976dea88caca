"""How long, how fast and in which order a training goes: its settings, checked, and what follows from them step by step."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

from workbench.core.errors import InputError
from workbench.core.numerics import permutation
from workbench.train.optimizers import check_rule

SCHEDULES = ("constant", "linear", "cosine")


class Turn(NamedTuple):
    """One step. epoch, step: counted from 0.   chosen: its examples."""

    epoch: int
    step: int
    chosen: list[int]


@dataclass(frozen=True)
class Settings:
    """The options of `fit` that are numbers or names.

    Raises: InputError or UnknownNameError for one that cannot be.
    """

    epochs: int
    batch_size: int
    micro_batch: int | None
    lr: float
    schedule: str
    warmup: float
    weight_decay: float
    betas: tuple[float, float]
    clip_norm: float | None
    optimizer: str
    sharpness: float
    seed: int

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise InputError(f"train: schedule is {self.schedule!r}, expected one of {', '.join(SCHEDULES)}.")
        check_rule(self.optimizer)
        for name in ("epochs", "batch_size", "lr", "micro_batch", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"train: {name} is {value}, expected a positive number.")
            if value is not None and name not in ("lr", "clip_norm") and not isinstance(value, Integral):
                raise InputError(f"train: {name} is {value}, expected a whole number.")
        if not 0 <= self.warmup < 1 or self.weight_decay < 0:
            raise InputError(
                f"train: warmup is {self.warmup} and weight_decay {self.weight_decay}; expected 0 <= warmup < 1, weight_decay >= 0."
            )
        if not (math.isfinite(self.sharpness) and self.sharpness >= 0):
            raise InputError(f"train: sharpness is {self.sharpness}, expected a radius in the space of the weights, or 0 for none.")

    def steps_per_epoch(self, n: int) -> int:
        """Of n examples; the last one may have fewer of them."""
        return math.ceil(n / self.batch_size)

    def turn(self, step: int, n: int) -> Turn:
        """A step of a training on n examples."""
        epoch, chosen = step_rows(step, n, self.batch_size, self.seed)
        return Turn(epoch, step, chosen)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at a step of `steps`."""
        return self.lr * share_of_rate(step, steps, warmup=self.warmup, schedule=self.schedule)


def step_rows(step: int, n: int, batch_size: int, seed: int) -> tuple[int, list[int]]:
    """The epoch a step belongs to and its examples: each epoch goes through all of them once, in an order of its own."""
    epoch, place = divmod(step, math.ceil(n / batch_size))
    order = permutation(n, seed * 1_000_003 + epoch)
    return epoch, order[place * batch_size : (place + 1) * batch_size]


def share_of_rate(step: int, steps: int, *, warmup: float, schedule: str) -> float:
    """Share of the peak learning rate at a step: rising linearly during the warm-up, then constant or falling to 0."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]
