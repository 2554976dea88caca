"""How probable the true answer is, per token."""

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError, unknown
from workbench.core.registry import metric
from workbench.evaluate.table import Table, answers

VARIANTS = ("response", "paraphrase")


@metric(unit="probability", better="higher")
def probability(table: Table, reference: Table | None = None, *, variant: str = "response") -> Float[np.ndarray, "example"]:
    """Length-normalized probability of the true answer of each example.

    exp(-NLL / |y|) = p(y | prompt)^(1/|y|), where |y| counts the answer's tokens, its end-of-text token included: the geometric
    mean of the tokens' probabilities. `exp(-loss)` of a padded batch is another number, for it weighs long answers more.

    Args:
        reference: not used.
        variant: "response", or "paraphrase", the true answer in other words (OpenUnlearning's Q_A_PARA_Prob).
    Returns: [example] in [0, 1]; 1/|V| for a uniform model.
    Raises: UnknownNameError for another variant; DataError naming a row without a paraphrase where that is asked for.
    Reference: Maini et al. 2024 (TOFU), arXiv:2401.06121; TOFU applies it to the forget and retain sets.
    """
    if variant not in VARIANTS:
        raise unknown("variant of probability", variant, VARIANTS)
    given = answers(table)
    nll = given.response if variant == "response" else given.paraphrase
    if np.isnan(nll).any():
        row = given.ids[int(np.flatnonzero(np.isnan(nll))[0])]
        raise DataError(f"probability: row {row!r} of {given.name!r} has no {variant}. Leave such rows out.")
    return np.exp(-nll)
