"""How much less probable an answer is than another model finds it."""

import numpy as np
from jaxtyping import Float

from workbench.core.errors import InputError
from workbench.core.registry import metric
from workbench.evaluate.nll import mean_nll
from workbench.evaluate.spans import RESPONSE
from workbench.evaluate.table import Table, answers


@metric(unit="nats/token", better="reference")
def reference_nll_difference(
    table: Table, reference: Table | None = None, *, variant: str = RESPONSE, end: bool = True
) -> Float[np.ndarray, "example"]:
    """NLL of each answer under the model less that under a reference model. Higher = less of a member.

    NLL(y) - NLL_reference(y), nats per token each, row by row: what the reference, which did not see the rows, finds hard is not
    held against the model. 0 for a model against itself.

    Args:
        table, reference: the same rows as read by the two models, in any order.
        variant: which answer.   end: whether the end-of-text token counts.
    Returns: [example], of either sign.
    Raises: InputError without a reference; DataError if it holds other rows; else as `nll`.
    Reference: Carlini et al. 2021, arXiv:2012.07805; Mireshghallah et al. 2022, arXiv:2203.03929.
    """
    if reference is None:
        raise InputError(
            "reference_nll_difference compares with another model; pass reference= what that model says about the same rows: its "
            "token table or its log. `nll` needs none."
        )
    mine, theirs = (mean_nll("reference_nll_difference", each, variant=variant, end=end) for each in (table, reference))
    given, other = answers(table), answers(reference)
    given.aligned(other)  # refuses other rows
    where = {id: i for i, id in enumerate(other.ids)}
    return mine - theirs[[where[id] for id in given.ids]]
