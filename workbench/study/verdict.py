"""The verdict on located weights: from the points, one number a set with its interval over seeds, and the word for it.

A size counts where both sides spent the budget. It also counts where one side did not, and yet forgot more than the other, which
did: it is the better one whatever the rest of its budget would add, and the difference found is a bound on the advantage.

    inside spent less and forgot more     the advantage is at least what was found: the interval is open above
    inside spent it all and forgot less   ... at most ...: the interval is open below
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import t as student

from workbench.core.errors import DataError, unknown
from workbench.core.records import Provenance
from workbench.core.statistics import LEVEL
from workbench.report.curves import COLORS, FEW_STEPS, Row, budget_line, drawn, records, spent_sizes
from workbench.study.intervene import Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AGAINST = ("random", "outside")
_SAID = {"inside": "inside the set", "random": "in a random set", "outside": "outside the set"}
EVEN, LEAST, MOST, NEITHER = "", "at least", "at most", "neither"


class Interval(NamedTuple):
    """A mean over seeds and its Student-t interval; low and high are NaN with one seed, which has no spread."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, eq=False)
class Verdict:
    """points: one row an intervention; its columns are the fields of `intervene.Point`.   settings: what they share.

    provenance: fingerprints of the model and of the rows by role (forget, train, budget, report).
    """

    points: pd.DataFrame
    settings: Settings
    provenance: Provenance

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that were asked for."""
        return self.settings.seeds

    def areas(self) -> pd.DataFrame:
        """One row a set and a comparison ("random", "outside"); see `area` for the number.

        Columns: set, against, area, low, high (nats per token), bound ("" for a value, "at least" or "at most" where some side
        did not spend the budget, "neither" where sizes are bounded in both directions), seeds (how many values the interval
        rests on), sizes (those that count), steps and steps_against (mean optimization steps of inside and of the other side at
        these sizes; NaN for ablations), verdict, note.
        """
        rows = records(self.points)
        names = dict.fromkeys(str(row["set"]) for row in rows)
        return pd.DataFrame([_judged(rows, name, against, self.seeds) for name in names for against in AGAINST])

    def __repr__(self) -> str:
        table = self.areas().to_string(index=False, float_format="%.4g")
        return f"Verdict({len(self.points)} points; {budget_line(asdict(self.settings))})\n{table}"

    def _repr_html_(self) -> str:
        return str(drawn(self.points, self.areas(), asdict(self.settings)))

    def plot(self, ax: "Axes | None" = None, *, name: str | None = None) -> "Axes":
        """Forget change over the size of the set `name` (the first one without it): a line a side, a dot a seed.

        The line goes through the means over seeds of the sizes at which all of them spent the budget; a hollow dot did not.

        Raises: UnknownNameError for a set that was not judged.
        """
        import matplotlib.pyplot as plt

        every = records(self.points)
        names = dict.fromkeys(str(row["set"]) for row in every)
        name = next(iter(names)) if name is None else name
        if name not in names:
            raise unknown("located set", name, names)
        ax = plt.subplots(figsize=(5, 3.5))[1] if ax is None else ax
        for side, color in COLORS.items():
            here = [row for row in every if (row["set"], row["side"]) == (name, side)]
            sizes = spent_sizes(here)
            means = [float(np.mean([row["forget_change"] for row in here if row["size"] == size])) for size in sizes]
            ax.plot(sizes, means, color=color, label=side)
            for reached, fill in ((True, color), (False, "none")):
                dots = [(row["size"], row["forget_change"]) for row in here if row["reached"] == reached]
                if dots:
                    said = None if reached else f"{side}, budget not spent"
                    ax.plot(*zip(*dots, strict=True), "o", color=color, markerfacecolor=fill, markersize=3, label=said)
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
    """beats, worse than, or not told apart, by whether the interval lies above, below or around zero; or that there is none."""
    if interval.value != interval.value:
        return "not measured"
    if interval.low != interval.low:
        return "no interval"
    if interval.low > 0:
        return f"beats {against}"
    return f"worse than {against}" if interval.high < 0 else "not told apart"


class _Size(NamedTuple):
    """One size of one comparison. advantage: by seed, in nats per token; None where it cannot be had, and `note` says why.

    bound: EVEN, LEAST or MOST.
    """

    advantage: Float[np.ndarray, "seed"] | None
    bound: str = EVEN
    note: str = ""


def _judged(points: Sequence[Row], name: str, against: str, seeds: Sequence[int]) -> Row:
    rows = [row for row in points if row["set"] == name and row["side"] in ("inside", against)]
    drawn_at_all = any(not pd.isna(row["seed"]) for row in rows)
    used = seeds if drawn_at_all else seeds[:1]
    sizes = sorted({float(row["size"]) for row in rows})
    compared = {size: _compared([row for row in rows if row["size"] == size], against, used) for size in sizes}
    kept = [size for size in sizes if compared[size].advantage is not None]
    notes = [f"size {size:g} {one.note}" for size, one in compared.items() if one.note]
    found, bound = Interval(float("nan"), float("nan"), float("nan"), 0), EVEN
    if kept:
        table = np.array([compared[size].advantage for size in kept]).T
        bound = _joint({compared[size].bound for size in kept})
        found = _opened(student_interval(np.array([area(kept, d) for d in table])), bound)
        if len(used) == 1:
            notes.append("one seed, so no interval" if drawn_at_all else "nothing is drawn at random here, so no interval")
    effort = {side: _steps([row for row in rows if row["side"] == side and row["size"] in kept]) for side in ("inside", against)}
    few = [_SAID[side] for side, steps in effort.items() if steps and min(steps) < FEW_STEPS]
    if few:
        notes.append(f"fewer than {FEW_STEPS} steps {' and '.join(few)}")
    return {
        "set": name,
        "against": against,
        "area": found.value,
        "low": found.low,
        "high": found.high,
        "bound": bound,
        "seeds": found.n,
        "sizes": ", ".join(f"{size:g}" for size in kept),
        "steps": _mean(effort["inside"]),
        "steps_against": _mean(effort[against]),
        "verdict": word(found, against),
        "note": "; ".join(notes),
    }


def _compared(rows: Sequence[Row], against: str, seeds: Sequence[int]) -> _Size:
    """Inside less the other side at one size, seed by seed, and which way it is bounded where a budget was not spent."""
    pairs = [(_of(rows, "inside", seed), _of(rows, against, seed)) for seed in seeds]
    bounds = {_bound(inside, other) for inside, other in pairs}
    failed = {row["side"] for row in rows if not row["reached"]}
    missed = " and ".join(said for side, said in _SAID.items() if side in failed)
    if NEITHER in bounds:
        return _Size(None, note=f"left out, the budget was not spent {missed}")
    bound = _joint(bounds)
    if bound == NEITHER:
        return _Size(
            None, note=f"left out, the budget was not spent {missed}, and the seeds bound the advantage in both directions"
        )
    advantage = np.array([inside["forget_change"] - other["forget_change"] for inside, other in pairs])
    more = f"counts as {bound} what was found: the budget was not spent {missed}, where more was forgotten all the same"
    return _Size(advantage, bound, more if bound else "")


def _of(rows: Sequence[Row], side: str, seed: int) -> Row:
    """The point of a seed; what draws nothing has one point for all seeds."""
    found = {None if pd.isna(row["seed"]) else row["seed"]: row for row in rows if row["side"] == side}
    return found[seed if seed in found else None]


def _bound(inside: Row, other: Row) -> str:
    """How a difference binds the advantage; NEITHER where it says nothing, because the dearer side also forgot more."""
    if inside["reached"] and other["reached"]:
        return EVEN
    if not inside["reached"] and other["reached"] and inside["forget_change"] > other["forget_change"]:
        return LEAST
    if inside["reached"] and not other["reached"] and other["forget_change"] > inside["forget_change"]:
        return MOST
    return NEITHER


def _joint(bounds: set[str]) -> str:
    """The bound of a mean of bounded differences."""
    directions = bounds - {EVEN}
    return NEITHER if len(directions) > 1 else next(iter(directions), EVEN)


def _opened(found: Interval, bound: str) -> Interval:
    """The interval without the end that a bound says nothing about; one seed has no interval to open."""
    if found.low != found.low:
        return found
    low = float("-inf") if bound in (MOST, NEITHER) else found.low
    high = float("inf") if bound in (LEAST, NEITHER) else found.high
    return Interval(found.value, low, high, found.n)


def _steps(rows: Sequence[Row]) -> list[float]:
    """Optimization steps of each run; none of ablations."""
    return [float(row["steps"]) for row in rows if not pd.isna(row.get("steps", float("nan")))]


def _mean(steps: Sequence[float]) -> float:
    """NaN where there are none."""
    return float(np.mean(steps)) if steps else float("nan")
