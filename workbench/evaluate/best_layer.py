"""The layer that shows most: the largest over the layers of a mean over rows, and its excess over a retrained model's.

The largest of several means lies above the mean of any layer chosen beforehand, and its percentile interval leans upward with it.
Another model's largest, on the same rows and layers, has gone through the same choice: compare with that, by `excess`.
"""

import numpy as np
from jaxtyping import Float

from workbench.core.statistics import Estimate, bootstrap


def best_layer(values: Float[np.ndarray, "row layer"], *, seed: int = 0) -> Estimate:
    """max_l (1/n) sum_i values_il, the layer chosen anew in every resample of rows; a single row has no interval."""
    return _drawn(values[:, None], seed)


def excess(values: Float[np.ndarray, "row layer"], reference: Float[np.ndarray, "row layer"], *, seed: int = 0) -> Estimate:
    """`best_layer` of the values less that of the reference, which may be at another layer; rows are drawn in pairs."""
    return _drawn(np.stack([values, reference], axis=1), seed)


def _drawn(sides: Float[np.ndarray, "row side layer"], seed: int) -> Estimate:
    """The first side's largest mean, less the second's if there are two."""

    def statistic(x: Float[np.ndarray, "resample row side layer"]) -> Float[np.ndarray, "resample"]:
        largest = x.mean(1).max(-1)
        return largest[:, 0] - largest[:, 1] if sides.shape[1] == 2 else largest[:, 0]

    found = bootstrap(statistic, sides, seed=seed)
    return found if len(sides) > 1 else found._replace(low=float("nan"), high=float("nan"))
