"""Scores from the forget set's mean gradient: saliency and SNIP."""

from jaxtyping import Float
from torch import Tensor

from workbench.attribute.formula import weight_score


@weight_score("forget.gradient")
def saliency(weight: Float[Tensor, "..."], forget_gradient: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Size of the forget loss's gradient at each weight: S_i = |g_f,i|.

    g_f is the mean over examples of the gradient of `forget_loss`. The retain rows are not looked at.

    Reference: Fan et al. 2024 (SalUn), arXiv:2310.12508. Their code sums over batches of batch means in the model's dtype.
    """
    del weight
    return forget_gradient.abs()


@weight_score("forget.gradient")
def snip(weight: Float[Tensor, "..."], forget_gradient: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """How much the forget loss would change, to first order, if the weight went to zero: S_i = |theta_i g_f,i|.

    g_f is the mean over examples of the gradient of `forget_loss`. The retain rows are not looked at. It is WAGLE for
    gamma -> infinity.

    Reference: Lee et al. 2019, arXiv:1810.02340, where the sum of all scores is normalized to 1; the ranking is the same.
    """
    return (weight * forget_gradient).abs()
