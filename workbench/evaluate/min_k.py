"""How improbable the least probable tokens of an answer are: the Min-K% score of membership."""

import numpy as np
from jaxtyping import Float

from workbench.core.errors import InputError
from workbench.core.registry import metric
from workbench.evaluate.spans import RESPONSE, spans
from workbench.evaluate.table import Table

SHARE = 0.4  # MUSE's and OpenUnlearning's configurations; the paper recommends 0.2


@metric(unit="nats/token", better="reference")
def min_k(
    table: Table, reference: Table | None = None, *, k: float = SHARE, variant: str = RESPONSE, end: bool = True
) -> Float[np.ndarray, "example"]:
    """Min-K% score of each answer: the mean NLL of its least probable tokens. Higher = less of a member.

    -(1/m) * sum of the m lowest ln p(y_t | x, y_<t), m = max(1, floor(k |y|)). A text the model was trained on has few tokens that
    surprise it. With k = 1 it is `nll`. The paper and MUSE's code have the other sign; MUSE's m may be 0, whose mean is NaN.

    Args:
        table: a token table.   reference: not used.
        k: share of the tokens, in (0, 1].   variant: which answer.   end: whether the end-of-text token counts.
    Returns: [example] >= 0, nats per token.
    Raises: InputError for k out of range; else as `spans`.
    Reference: Shi et al. 2024, arXiv:2310.16789; Shi et al. 2025 (MUSE), arXiv:2407.06460.
    """
    check_share("min_k", k)
    read = spans("min_k", table, variant=variant, end=end)
    return -read.lowest(read.logprob, k)


def check_share(name: str, k: float) -> None:
    """InputError unless k is in (0, 1]."""
    if not 0 < k <= 1:
        raise InputError(f"{name}: k is {k}, expected a share of the tokens above 0 and at most 1, such as {SHARE}.")
