"""How improbable the least probable tokens are, beside what the model thought of the other tokens there: Min-K%++."""

import numpy as np
from jaxtyping import Float

from workbench.core.errors import InputError
from workbench.core.registry import metric
from workbench.evaluate.min_k import SHARE, check_share
from workbench.evaluate.spans import RESPONSE, spans
from workbench.evaluate.table import Table

FLOOR = 1e-6  # nats squared


@metric(unit="standard deviations", better="reference")
def min_k_plus_plus(
    table: Table,
    reference: Table | None = None,
    *,
    k: float = SHARE,
    floor: float = FLOOR,
    variant: str = RESPONSE,
    end: bool = True,
) -> Float[np.ndarray, "example"]:
    """Min-K%++ score of each answer. Higher = less of a member.

    -(1/m) * sum of the m lowest z_t, m = max(1, floor(k |y|)),
    z_t = (ln p(y_t | x, y_<t) - mu_t) / sigma_t, mu_t and sigma_t^2 the mean and the variance of ln p(v | x, y_<t) over the
    vocabulary v under p itself.

    sigma_t is 0 where the model is certain of one token, or uniform over several: ln p(y_t) then is mu_t, and z_t is 0 / 0. Its
    limit as a model gets certain of the right token is 0, which `floor` gives: sigma_t^2 is taken as max(sigma_t^2, floor). A
    rounding error of 1e-7 nats in a table's float32 columns then stays below 1e-3 in z.

    Args:
        table: a token table.   reference: not used.
        k: share of the tokens, in (0, 1].   floor: least variance, nats squared, above 0.
        variant: which answer.   end: whether the end-of-text token counts.
    Returns: [example], in standard deviations of the log-probability; below 0 where all tokens are likelier than mu_t.
    Raises: InputError for k or floor out of range; else as `spans`.
    Reference: Zhang et al. 2024, arXiv:2404.02936. OpenUnlearning takes the moments from bfloat16 logits as E[x^2] - E[x]^2.
    """
    check_share("min_k_plus_plus", k)
    if not floor > 0:
        raise InputError(f"min_k_plus_plus: floor is {floor}, expected a variance above 0, such as {FLOOR} nats squared.")
    read = spans("min_k_plus_plus", table, variant=variant, end=end)
    return -read.lowest((read.logprob - read.mean) / np.sqrt(np.maximum(read.variance, floor)), k)
