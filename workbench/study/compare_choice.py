"""Which learning rate a method is run with, from one short trial of each.

A run of less than an epoch changes the rows it has not met by spill-over alone, and a budget spent in one large step can drive
validation rows far away that way, before the rows to be forgotten were met. So what the validation rows lost is looked at among the
trials that spent the budget in as many steps as meet every row of a run, which trains on more rows than a trial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Search:
    """The trials of a method in a mask, in the order of their rates, and the rate that was chosen; None if all failed."""

    method: str
    mask: str
    trials: tuple[Mapping[str, Any], ...]
    lr: float | None


def choose(trials: Sequence[Mapping[str, Any]], epoch: int) -> float | None:
    """The rate to run with; None if after no rate the loss was finite.

    Of the trials that spent the budget in `epoch` steps or more: the rate after which the validation rows have the highest mean
    NLL. If there is none, of those that spent it at all: the rate of the most steps, which saw the most rows. If none spent it:
    the highest mean NLL. Of equal ones the smallest rate.
    """
    found = [trial for trial in trials if trial["validation_nll"] is not None]
    spent = [trial for trial in found if trial["reached"]]
    whole = [trial for trial in spent if trial["steps"] >= epoch]
    left, value = (spent, "steps") if spent and not whole else (whole or found, "validation_nll")
    return min(left, key=lambda trial: (-trial[value], trial["lr"]))["lr"] if left else None
