"""How probable the true answer is among a few false ones."""

import numpy as np
from jaxtyping import Float

from workbench.core.registry import metric
from workbench.evaluate.table import Table, answers


@metric(unit="probability", better="higher")
def probability_options(table: Table, reference: Table | None = None) -> Float[np.ndarray, "example"]:
    """Probability of the true answer of each example, normalized over it and its false answers.

    q_0 / (q_0 + sum_j q_j), where q = exp(-NLL / |y|) is each answer's length-normalized probability; computed as a softmax of
    -NLL / |y|, so that no answer underflows. OpenUnlearning adds 1e-10 to the denominator, which pulls a model that finds all
    of them impossible toward 0; here such a model is at chance.

    Args: reference: not used.
    Returns: [example] in [0, 1]; 1/(1 + number of false answers) at chance.
    Raises: DataError if an example has no false answer.
    Reference: Maini et al. 2024 (TOFU), arXiv:2401.06121; TOFU applies it to real_authors and world_facts, 3 false answers each.
    """
    given = answers(table)
    nll = np.concatenate([given.response[:, None], given.options()], axis=1)
    least = np.nanmin(nll, axis=1, keepdims=True)
    weight = np.where(np.isnan(nll), 0.0, np.exp(least - nll))  # NaN: an example with fewer false answers than others
    return weight[:, 0] / weight.sum(axis=1)
