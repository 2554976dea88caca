"""How far a training step on an answer would move the weights, as a score of membership; it needs the model, not a table."""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float

from workbench.core.records import Examples
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.trace.dots import gradient_norms
from workbench.trace.forward import check_eval, check_predicted


def gradient_norm(
    model: Model,
    examples: Examples,
    *,
    names: Collection[str] | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Float[np.ndarray, "example"]:
    """Norm of the gradient of each answer's loss. Higher = less of a member.

    ||grad_theta l_i||_2 over all parameters together, l_i = -(1/|y|) * sum_t ln p(y_t | x, y_<t), of every row by itself however
    rows are batched, summed in float64. OpenUnlearning takes the mean over tensors of each tensor's norm, so that the 4,096 weights
    of a norm layer count as much as the millions of the embedding.

    Args:
        names: parameters to look at; all without.
        batch_tokens: largest padded batch, in tokens; changes memory, not the result beyond rounding.
    Returns: [example] >= 0, nats per token per unit of weight.
    Raises: InputError for a model in training mode; DataError naming a row that is empty, too long or has nothing before its
        answer; NumericsError naming a row whose gradient is NaN or infinite.
    Reference: Wang et al. 2024, arXiv:2402.17012, among other scores of membership from gradients.
    """
    check_eval(model)
    rows = encode_all(model, examples)
    check_predicted(rows)
    return gradient_norms(model, rows, names=names, batch_tokens=batch_tokens, show=show).numpy()
