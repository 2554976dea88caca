"""Whether an unlearned model can be told from one that was retrained without the forget set, by its truth ratios.

The p-value is TOFU's headline, and a poor ruler: it depends on the number of rows (the same D = .397 is 1.8e-21 on 300 rows and
about 1e-27 on 400), cannot fall below 2 / C(2n, n), and climbs near 1 in steps of one row (n = 300: D = 21/300 is .46, 24/300 is
.29). So D is reported beside it, with an interval. Both ignore that the two models answered the same questions; the paired
difference of ln R uses it.
"""

from math import floor, lgamma, log

import numpy as np
from jaxtyping import Float

from workbench.core.errors import InputError
from workbench.core.ks import ks, ks_distances
from workbench.core.registry import metric
from workbench.core.statistics import Estimate, bootstrap
from workbench.evaluate.table import Table, answers
from workbench.evaluate.truth_ratio import log_ratio


@metric(unit="p-value", better="higher")
def forget_quality(table: Table, reference: Table | None = None, *, aggregate: str = "geometric") -> Estimate:
    """p-value of the two-sample Kolmogorov-Smirnov test between the truth ratios of a model and of a retrained one.

    Exact two-sided p (scipy) of D = max_x |F(x) - G(x)|, F and G the distributions of R on the forget set; invariant under
    monotone maps, so 1/R or ln R give the same.

    Args:
        table, reference: the forget set as read by the unlearned and by the retrained model; paraphrase and false answers.
        aggregate: "geometric" (published numbers) or "arithmetic" truth ratio.
    Returns: Estimate with NaN bounds: a p-value has no interval. n: rows of each model.
    Raises: InputError without a reference; DataError if the two hold different rows.
    Reference: Maini et al. 2024 (TOFU), arXiv:2401.06121.
    """
    paired = _log_ratios("forget_quality", table, reference, aggregate)
    return Estimate(ks(paired[:, 0], paired[:, 1]).p, float("nan"), float("nan"), len(paired))


@metric(unit="distance", better="lower")
def ks_distance(table: Table, reference: Table | None = None, *, aggregate: str = "geometric", seed: int = 0) -> Estimate:
    """Kolmogorov-Smirnov distance between the truth ratios of a model and of a retrained one.

    D = max_x |F(x) - G(x)| in [0, 1]. The interval resamples rows, each with both models' answers, so it is 0 for a model
    against itself. Sampling widens a D, and resampling widens it again: the interval is the `reflected` one, which holds D itself.
    With 80 rows it held D of all rows in 91 to 94 % of simulated cases; where two distributions are nearly one and rows are many it
    is less (D = .001, 300 rows: 73 %).

    Args: as `forget_quality`; seed: of the bootstrap.
    Raises: as `forget_quality`.
    """
    paired = _log_ratios("ks_distance", table, reference, aggregate)
    return bootstrap(ks_distances, paired, seed=seed, within=(0.0, 1.0))


@metric(unit="nats/token", better="reference")
def log_truth_ratio_difference(
    table: Table, reference: Table | None = None, *, aggregate: str = "geometric", seed: int = 0
) -> Estimate:
    """Mean paired difference of ln R between a model and a retrained one.

    mean_i [ln R_i(model) - ln R_i(reference)], question by question; 0 = like the reference, below: the truth is still
    preferred, above: it is avoided. Unlike KS it uses the pairing, so it sees a shift that the spread over questions hides.

    Args: as `forget_quality`; seed: of the bootstrap over rows.
    Raises: as `forget_quality`.
    """
    paired = _log_ratios("log_truth_ratio_difference", table, reference, aggregate)
    return bootstrap(lambda x: x.mean(axis=1), paired[:, 0] - paired[:, 1], seed=seed)


def p_floor(n: int, m: int) -> str:
    """Smallest p-value that n rows against m rows can give: 2 / C(n + m, n) at D = 1, as text, for it may underflow."""
    power = (log(2) - lgamma(n + m + 1) + lgamma(n + 1) + lgamma(m + 1)) / log(10)
    return f"{10 ** (power - floor(power)):.2f}e{floor(power)}"


def _log_ratios(name: str, table: Table, reference: Table | None, aggregate: str) -> Float[np.ndarray, "example model"]:
    """ln R of model and reference, row by row. KS is run on ln R: R itself may underflow into ties."""
    if reference is None:
        raise InputError(
            f"{name} compares with a model retrained without the forget set; pass reference= what that model says about the same "
            "rows: its token table, its log, or in `suite` the model itself."
        )
    mine = answers(table)
    theirs = mine.aligned(answers(reference))
    return np.stack([log_ratio(each, aggregate=aggregate, truth="paraphrase") for each in (mine, theirs)], axis=1)
