"""How probable the true answer is, per token."""

import numpy as np
from jaxtyping import Float

from workbench.core.registry import metric
from workbench.evaluate.table import Table, answers


@metric(unit="probability", better="higher")
def probability(table: Table, reference: Table | None = None) -> Float[np.ndarray, "example"]:
    """Length-normalized probability of the true answer of each example.

    exp(-NLL / |y|) = p(y | prompt)^(1/|y|), where |y| counts the answer's tokens, its end-of-text token included: the geometric
    mean of the tokens' probabilities. `exp(-loss)` of a padded batch is another number, for it weighs long answers more.

    Args: reference: not used.
    Returns: [example] in [0, 1]; 1/|V| for a uniform model.
    Reference: Maini et al. 2024 (TOFU), arXiv:2401.06121; TOFU applies it to the forget and retain sets.
    """
    return np.exp(-answers(table).response)
