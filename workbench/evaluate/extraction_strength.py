"""How little of an answer the model must be told before it says the rest itself."""

import numpy as np
from jaxtyping import Float

from workbench.core.registry import metric
from workbench.evaluate.spans import RESPONSE, spans
from workbench.evaluate.table import Table


@metric(unit="share of tokens", better="lower")
def extraction_strength(
    table: Table, reference: Table | None = None, *, variant: str = RESPONSE, end: bool = True
) -> Float[np.ndarray, "example"]:
    """Share of each answer that greedy decoding gets right from some token on to the end.

    1 - (1/|y|) * min{k : argmax p(. | x, y_<t) = y_t for all t >= k}, tokens counted from 0, k = |y| where the last token is
    wrong: the whole answer known gives 1, nothing of its end gives 0. Teacher forcing and greedy decoding agree on such a suffix,
    as every token of it is the first choice after the true ones. OpenUnlearning gives 1/|y| instead of 0 where no suffix is right,
    and leaves the last token out.

    Args:
        table: a token table.   reference: not used.
        variant: which answer.   end: whether the end-of-text token counts; with it, a model that ends where the answer ends and
            knows nothing else has 1/|y|.
    Returns: [example] in [0, 1], multiples of 1/|y|.
    Raises: as `spans`.
    Reference: Carlini et al. 2021, arXiv:2012.07805; as a measure of unlearning: Wang et al. 2024, arXiv:2406.09179, and Dorna et
        al. 2025 (OpenUnlearning), arXiv:2506.12618.
    """
    read = spans("extraction_strength", table, variant=variant, end=end)
    place = np.arange(len(read.owner)) - np.repeat(read.first, read.length)
    told = np.maximum.reduceat(np.where(read.right, 0, place + 1), read.first)  # 1 + the last wrong token's place
    return 1.0 - told / read.length
