"""The verdict on located weights: from the points, one number a set with its interval over seeds, and the word for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import t as student

from workbench.core.errors import DataError
from workbench.core.statistics import LEVEL
from workbench.report.curves import COLORS, Row, drawn, records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AGAINST = ("random", "outside")


class Interval(NamedTuple):
    """A mean over seeds and its Student-t interval; low and high are NaN with one seed, which has no spread."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, eq=False)
class Verdict:
    """points: one row an intervention; its columns are the fields of `intervene.Point`.   seeds: those that were asked for."""

    points: pd.DataFrame
    seeds: tuple[int, ...]

    def areas(self) -> pd.DataFrame:
        """One row a set and a comparison ("random", "outside"); see `area` for the number.

        Columns: set, against, area, low, high (nats per token), seeds (how many values the interval rests on), sizes (those
        that count), verdict, note.
        """
        rows = records(self.points)
        names = dict.fromkeys(str(row["set"]) for row in rows)
        return pd.DataFrame([_judged(rows, name, against, self.seeds) for name in names for against in AGAINST])

    def __repr__(self) -> str:
        return f"Verdict({len(self.points)} points)\n{self.areas().to_string(index=False, float_format='%.4g')}"

    def _repr_html_(self) -> str:
        return str(drawn(self.points, self.areas()))

    def plot(self, ax: "Axes | None" = None, *, name: str | None = None) -> "Axes":
        """Forget change over the size of the set `name` (the first one without it): a line a side, a dot a seed."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5, 3.5))[1] if ax is None else ax
        every = records(self.points)
        name = name or str(every[0]["set"])
        for side, color in COLORS.items():
            here = [row for row in every if (row["set"], row["side"], row["reached"]) == (name, side, True)]
            sizes = sorted({row["size"] for row in here})
            means = [float(np.mean([row["forget_change"] for row in here if row["size"] == size])) for size in sizes]
            ax.plot(sizes, means, color=color, label=side)
            ax.plot([row["size"] for row in here], [row["forget_change"] for row in here], "o", color=color, markersize=3)
        ax.set_xscale("log")
        ax.set_xlabel("size of the set (share)")
        ax.set_ylabel("forget NLL rise (nats/token)")
        ax.legend(title=name)
        return ax


def area(sizes: Sequence[float], advantage: Float[np.ndarray, "size"]) -> float:
    """Mean advantage over the logarithm of the size: trapezoid area under the curve, divided by its width.

    sum_k (d_k + d_{k+1}) / 2 * (ln s_{k+1} - ln s_k) / (ln s_last - ln s_first); the plain difference with one size.

    Args: sizes: ascending.   advantage: d, in nats per token, at each size.
    Raises: DataError if there is no size.
    """
    if not sizes:
        raise DataError("area: there is no size, so there is no curve.")
    if len(sizes) == 1:
        return float(advantage[0])
    x = np.log(np.asarray(sizes, dtype=np.float64))
    return float(np.trapezoid(advantage, x) / (x[-1] - x[0]))


def student_interval(values: Float[np.ndarray, "seed"], *, level: float = LEVEL) -> Interval:
    """Mean of one value a seed with its Student-t interval: mean ± t_{(1 + level) / 2, n - 1} s / sqrt(n).

    s is the standard deviation with n - 1 below the line. A bootstrap of two or three values would only repeat them.
    """
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Interval(mean, float("nan"), float("nan"), n)
    half = float(student.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def word(interval: Interval, against: str) -> str:
    """beats, worse than, or not told apart, by whether the interval lies above, below or around zero."""
    if interval.value != interval.value:
        return "not measured"
    if interval.low > 0:
        return f"beats {against}"
    return f"worse than {against}" if interval.high < 0 else "not told apart"


def _judged(points: Sequence[Row], name: str, against: str, seeds: Sequence[int]) -> Row:
    rows = [row for row in points if row["set"] == name]
    sizes = sorted({float(row["size"]) for row in rows})
    missed = {size: _missed([row for row in rows if row["size"] == size], against) for size in sizes}
    kept = [size for size in sizes if not missed[size]]
    notes = [f"size {size:g} left out, the budget was not spent {who}" for size, who in missed.items() if who]
    if kept:
        drawn_at_all = any(not pd.isna(row["seed"]) for row in rows if row["side"] in ("inside", against))
        used = seeds if drawn_at_all else seeds[:1]
        advantage = _curves(rows, "inside", kept, used) - _curves(rows, against, kept, used)
        found = student_interval(np.array([area(kept, d) for d in advantage]))
        if len(used) == 1:
            notes.append("one seed, so no interval" if drawn_at_all else "nothing is drawn at random here, so no interval")
    else:
        found = Interval(float("nan"), float("nan"), float("nan"), 0)
    return {
        "set": name,
        "against": against,
        "area": found.value,
        "low": found.low,
        "high": found.high,
        "seeds": found.n,
        "sizes": ", ".join(f"{size:g}" for size in kept),
        "verdict": word(found, against),
        "note": "; ".join(notes),
    }


def _missed(rows: Sequence[Row], against: str) -> str:
    """The sides that did not all spend the budget at one size, or ""."""
    wanted = {"inside": "inside the set", "random": "in a random set", "outside": "outside the set"}
    failed = {row["side"] for row in rows if not row["reached"]}
    return " and ".join(said for side, said in wanted.items() if side in failed and side in ("inside", against))


def _curves(rows: Sequence[Row], side: str, sizes: Sequence[float], seeds: Sequence[int]) -> Float[np.ndarray, "seed size"]:
    """Forget change by seed and size; what draws nothing has one value for all seeds."""
    here = [row for row in rows if row["side"] == side]
    found = {(row["size"], None if pd.isna(row["seed"]) else row["seed"]): row["forget_change"] for row in here}
    return np.array([[found[size, seed if (size, seed) in found else None] for size in sizes] for seed in seeds])
