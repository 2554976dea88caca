"""How many tokens of an answer the model would have chosen itself."""

import numpy as np
from jaxtyping import Float

from workbench.core.registry import metric
from workbench.evaluate.spans import RESPONSE, spans
from workbench.evaluate.table import Table


@metric(unit="share of tokens", better="lower")
def exact_memorization(
    table: Table, reference: Table | None = None, *, variant: str = RESPONSE, end: bool = True
) -> Float[np.ndarray, "example"]:
    """Share of each answer's tokens that are the model's first choice, every earlier token of the answer given.

    (1/|y|) * sum_t 1[argmax_v p(v | x, y_<t) = y_t], under teacher forcing. Where several tokens are equally likely the arg max is
    one of them, as in greedy decoding: a model that is uniform over the vocabulary has about 1/|V|, not the 1 that counting
    "no token is likelier" would give. OpenUnlearning leaves the last token out, whatever it is; `end=False` leaves it out where it
    is the end-of-text token.

    Args:
        table: a token table.   reference: not used.
        variant: which answer.   end: whether the end-of-text token counts.
    Returns: [example] in [0, 1].
    Raises: as `spans`.
    Reference: Tirumala et al. 2022, arXiv:2205.10770; as a measure of unlearning: Dorna et al. 2025 (OpenUnlearning),
        arXiv:2506.12618.
    """
    read = spans("exact_memorization", table, variant=variant, end=end)
    return read.average(read.right.astype(np.float64))
