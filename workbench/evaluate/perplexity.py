"""How many equally likely tokens a model would be as unsure between, on a set of answers."""

import numpy as np

from workbench.core.registry import metric
from workbench.core.statistics import Estimate, bootstrap
from workbench.evaluate.spans import RESPONSE, spans
from workbench.evaluate.table import Table


@metric(unit="perplexity", better="lower")
def perplexity(
    table: Table, reference: Table | None = None, *, variant: str = RESPONSE, end: bool = True, seed: int = 0
) -> Estimate:
    """Perplexity of a set of answers, their tokens pooled.

    exp(-sum_i sum_t ln p(y_it | x_i, y_i,<t) / sum_i |y_i|): long answers count for more, as in the perplexity of a corpus. Two
    other numbers go by the name: the mean over answers of exp(mean NLL), which one bad answer decides, and exp of the mean over
    answers of their mean NLL, exp(mean(`nll`)). This is of true answers; the perplexity of generated text needs a second model.

    Args:
        table: a token table.   reference: not used.
        variant: which answers.   end: whether the end-of-text tokens count.   seed: of the bootstrap, which draws answers whole.
    Returns: Estimate >= 1; |V| for a uniform model. n: answers.
    Raises: as `spans`.
    """
    read = spans("perplexity", table, variant=variant, end=end)
    each = np.stack([np.add.reduceat(read.logprob, read.first), read.length.astype(np.float64)], axis=1)
    return bootstrap(_pooled, each, seed=seed)


def _pooled(each: np.ndarray) -> np.ndarray:
    total = each.sum(axis=1)  # [resample, (ln p, tokens)]
    return np.exp(-total[:, 0] / total[:, 1])
