"""A second model to compare with: another checkpoint of the same shape, or the first one with a change applied.

with beside(full, delta) as other:      # `full` itself with the change applied; the same bits back afterwards
    states = ...
with beside(full, retrained) as other:  # `retrained`, once it is checked to be comparable
"""

from collections.abc import Iterator
from contextlib import contextmanager

from workbench.core.delta import Delta, applied
from workbench.core.errors import MismatchError
from workbench.load.models import Model


@contextmanager
def beside(model: Model, other: Model | Delta) -> Iterator[Model]:
    """The other model, ready to read the same rows.

    Raises: MismatchError for a Delta of a third model, or a model whose layers, width or tokenizer differ from `model`'s.
    """
    if isinstance(other, Delta):
        with applied(model, other):
            yield model
        return
    mine, its = (model.n_layers, model.d_model), (other.n_layers, other.d_model)
    if mine != its:
        raise MismatchError(
            f"{other.name!r} has {its[0]} layers of width {its[1]}, {model.name!r} has {mine[0]} of width {mine[1]}: their hidden "
            "states cannot be set side by side. Compare models of one architecture and size."
        )
    if model.text_key() != other.text_key():
        raise MismatchError(
            f"{other.name!r} and {model.name!r} turn text into different tokens, so their positions do not match. Load both with "
            "one tokenizer and one chat template."
        )
    yield other
