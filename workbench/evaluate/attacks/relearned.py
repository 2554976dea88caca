"""What relearning brought back: the held-out forget rows at every measured step, and the area between two models' curves."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from workbench.core.errors import InputError, MismatchError, unknown
from workbench.core.measurements import Measurement, Measurements
from workbench.core.records import Provenance
from workbench.core.statistics import Estimate, mean_estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Relearning:
    """The held-out forget rows, measured while the model is trained.

    kind: what was trained on.   seeds: of the orders of training.   steps: [point], from 0, at which it was measured.
    ids: of the held-out rows.
    nll: [seed point example], nats per token.   recall: ROUGE-L recall of the greedy answers, of the same shape, or None.
    trained: ids of the rows that each seed trained on, in the order of the rows.
    """

    kind: str
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    ids: tuple[str, ...]
    nll: Float[np.ndarray, "seed point example"]
    recall: Float[np.ndarray, "seed point example"] | None
    trained: tuple[tuple[str, ...], ...]
    provenance: Provenance

    def __repr__(self) -> str:
        p = self.probability.mean(axis=(0, 2))
        return (
            f"Relearning({self.kind!r}, {len(self.ids)} held-out rows, {self.steps[-1]} steps, {len(self.seeds)} seeds; "
            f"probability {p[0]:.4f} before, {p[-1]:.4f} after)"
        )

    def _repr_html_(self) -> str:
        return self.measurements()._repr_html_()

    @property
    def probability(self) -> Float[np.ndarray, "seed point example"]:
        """exp(-NLL): the length-normalized probability of each true answer."""
        return np.exp(-self.nll)

    def area(self, measure: str = "probability") -> Float[np.ndarray, "seed example"]:
        """Mean of a measure over the steps, (1/T) times the integral from 0 to T, by trapezoids between the measured points.

        Args: measure: "probability", "nll" or "recall".
        Raises: UnknownNameError for another; InputError for "recall" where nothing was generated.
        """
        steps = np.array(self.steps, dtype=np.float64)
        return np.trapezoid(self._values(measure), steps, axis=1) / steps[-1]

    def gap(self, control: "Relearning", measure: str = "probability") -> Float[np.ndarray, "seed example"]:
        """`area` of this model minus that of another under the same attack, such as a retrained one: row by row, seed by seed.

        Raises: MismatchError if the two attacks differ in kind, rows, seeds or steps.
        """
        for what in ("kind", "ids", "trained", "seeds", "steps"):
            mine, other = getattr(self, what), getattr(control, what)
            if mine != other:
                here, there = (str(one)[:60] for one in (mine, other))
                raise MismatchError(f"gap: {what} is {here} here and {there} in the control; run the same attack on both.")
        return self.area(measure) - control.area(measure)

    def frame(self) -> "pd.DataFrame":
        """A line for each seed, step and held-out row: seed, step, id, nll, probability, and recall where there is one."""
        import pandas as pd

        seeds, points, rows = self.nll.shape
        columns: dict[str, object] = {
            "seed": np.repeat(self.seeds, points * rows),
            "step": np.tile(np.repeat(self.steps, rows), seeds),
            "id": np.tile(self.ids, seeds * points),
            "nll": self.nll.ravel(),
            "probability": self.probability.ravel(),
        }
        return pd.DataFrame(columns | ({} if self.recall is None else {"recall": self.recall.ravel()}))

    def measurements(self, split: str = "forget", *, seed: int = 0) -> Measurements:
        """Before, after and area of every measure, over seeds ("probability_after") and for every seed ("probability_after/1").

        Intervals are over the held-out rows; over seeds, of each row's mean.
        """
        rows = []
        units = {"probability": "probability", "nll": "nats per token"} | ({} if self.recall is None else {"recall": "recall"})
        for measure, unit in units.items():
            values = self._values(measure)
            found = {"before": values[:, 0], "after": values[:, -1], "area": self.area(measure)}
            better = "higher" if measure == "nll" else "lower"
            for when, by_seed in found.items():
                note = f"{self.kind}, {self.steps[-1]} steps, mean of {len(self.seeds)} seeds"
                each = {"": by_seed.mean(axis=0)} | {f"/{s}": by_seed[i] for i, s in enumerate(self.seeds)}
                for suffix, one in each.items():
                    said = note if not suffix else f"{self.kind}, {self.steps[-1]} steps"
                    name = f"{measure}_{when}{suffix}"
                    rows.append(Measurement.of(name, split, estimate(one, seed), unit=unit, better=better, note=said))
        return Measurements(rows)

    def _values(self, measure: str) -> Float[np.ndarray, "seed point example"]:
        every = {"probability": self.probability, "nll": self.nll, "recall": self.recall}
        if measure not in every:
            raise unknown("measure of relearning", measure, every)
        found = every[measure]
        if found is None:
            raise InputError("Relearning: there is no recall, for nothing was generated; run relearning with generate=60, say.")
        return found


def estimate(values: Float[np.ndarray, "example"], seed: int = 0) -> Estimate:
    """Mean with its interval over rows; of a single row no interval, rather than one without a width."""
    if len(values) == 1:
        return Estimate(float(values[0]), math.nan, math.nan, 1)
    return mean_estimate(values, seed=seed)
