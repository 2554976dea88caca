"""What `validate_data` finds out about each method, and how the removal of rows becomes a number with an interval."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.statistics import LEVEL, RESAMPLES, Estimate
from workbench.study.bank import Bank
from workbench.study.lds import Lds
from workbench.study.validate_data_methods import Method


class Removal(NamedTuple):
    """rise: of the queries' mean loss without the rows a method ranks highest.   beyond: how much more than without random rows."""

    rise: Estimate
    beyond: Estimate


@dataclass(frozen=True, eq=False)
class Outcome:
    """One method. removed: ids of the rows it ranks highest over all queries.   seconds: for one seed's model."""

    method: Method
    lds: Lds
    removal: Removal
    removed: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """One line of methods.parquet."""
        numbers = {"lds": self.lds.estimate, "rise": self.removal.rise, "beyond_random": self.removal.beyond}
        flat = {f"{name}{end}": value for name, found in numbers.items() for end, value in _ends(found).items()}
        about = {"method": self.method.name, "kind": self.method.kind, "member": self.method.member}
        return {**about, **flat, "note": self.lds.note, "removed": list(self.removed), "seconds": self.seconds}


def _ends(found: Estimate) -> dict[str, float]:
    return {"": found.value, "_low": found.low, "_high": found.high}


@dataclass(frozen=True, eq=False)
class Result:
    """A whole comparison. random: rise without `removed` random rows, over `drops` draws.   start: losses with all rows."""

    bank: Bank
    outcomes: tuple[Outcome, ...]
    random: Estimate
    drops: int
    removed: int
    start: Float[np.ndarray, "seed query"]


def removal(rise: Float[np.ndarray, "seed query"], random: Float[np.ndarray, "drop seed query"], *, seed: int = 0) -> Removal:
    """Mean rise of a method and its distance from the mean rise of random drops, with intervals that draw queries, seeds and drops.

    Queries and seeds are drawn once for both sides: the same query under the same seed is compared.
    """
    rng = np.random.default_rng(seed)
    drops, seeds, queries = random.shape
    drawn = np.empty((RESAMPLES, 2))
    for k in range(RESAMPLES):
        s, q, d = (rng.integers(0, n, n) for n in (seeds, queries, drops))
        mine = rise[np.ix_(s, q)].mean()
        drawn[k] = mine, mine - random[np.ix_(d, s, q)].mean()
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    values = float(rise.mean()), float(rise.mean() - random.mean())
    return Removal(*(Estimate(values[i], float(low[i]), float(high[i]), queries) for i in range(2)))


def mean_rise(random: Float[np.ndarray, "drop seed query"], *, seed: int = 0) -> Estimate:
    """Mean rise of random drops, with an interval that draws drops, seeds and queries."""
    rng = np.random.default_rng(seed)
    drawn = [random[np.ix_(*(rng.integers(0, n, n) for n in random.shape))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(random.mean()), float(low), float(high), random.shape[2])
