"""Wanda: weights that see large inputs."""

from torch import Tensor

from workbench.attribute.gather import Gathered, Patterns, gather
from workbench.core.errors import InputError
from workbench.core.records import Examples
from workbench.core.registry import attribution
from workbench.core.scores import Scores
from workbench.load.models import Model
from workbench.load.weights import transposed

NEEDS = ("forget.inputs",)


@attribution(needs=NEEDS)
def wanda(
    model: Model,
    forget: Examples,
    retain: Examples,
    *,
    include: Patterns = "*",
    exclude: Patterns = (),
    batch_tokens: int = 4096,
    gathered: Gathered | None = None,
    show: bool = False,
) -> Scores:
    """Size of a weight times the size of what it is multiplied with: S_oi = |W_oi| sqrt(mean_t x_ti^2).

    x is the input of the linear map, over all real tokens t of the forget rows. Meant to be compared within one output:
    `scores.mask(fraction, scope="row")`. Only linear maps have inputs: embeddings, norms and biases get no score (an embedding
    that unembeds too has one, as the linear map it is there), and `coverage` says what share of the weights has one.

    Args:
        retain: its rows are not looked at; every attribution has the same signature.
        include, exclude, batch_tokens, gathered, show: see `attribute.gather`.
    Returns: Scores >= 0 of the matrices of linear maps.
    Raises: InputError if no linear map is among the parameters; ModelError naming the module if rows of a batch cannot be told
        apart in it (mixtures of experts).
    Reference: Sun et al. 2024, arXiv:2306.11695, with the norm in place of the root mean square, which is the same within a
        row. WAGLE's code reuses the last sample's attention mask for all, and keeps embeddings and norms trainable.
    """
    found = gather(
        model,
        forget,
        retain,
        NEEDS,
        include=include,
        exclude=exclude,
        batch_tokens=batch_tokens,
        gathered=gathered,
        shared=False,
        show=show,
    )
    names = [name for name in found.names if name in found.parts["forget.inputs"]]
    if not names:
        raise InputError(f"wanda: there is no linear map among the parameters; include is {include!r}, exclude {exclude!r}.")
    turned = transposed(model.hf, names)

    def formula(name: str, weight: Tensor) -> Tensor:
        size = found.take("forget.inputs", name).sqrt().to(weight)
        return weight.abs() * (size[:, None] if name in turned else size)

    return found.scores("wanda", model, formula, {}, names=names)
