"""Which rows does an edit move: the change of every row's loss that a Delta makes, predicted from its first step."""

from jaxtyping import Float64
from torch import Tensor

from workbench.core.delta import Delta, applied
from workbench.core.records import Examples, Provenance
from workbench.core.row_scores import RowScores
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.trace.along import Method, directional_derivatives, pick_method
from workbench.trace.forward import row_nll


def edit_to_data(
    model: Model,
    delta: Delta,
    rows: Examples,
    *,
    method: Method = "auto",
    eps: float | None = None,
    exact: bool = False,
    batch_tokens: int = 4096,
    show: bool = False,
) -> RowScores:
    """Change of every row's loss under an edit to first order, d loss_i(theta + t Delta) / dt at t = 0, in nats per token.

    The loss is the mean NLL per answer token. A high value: the edit makes the row less likely, it is being forgotten; a negative
    one: it is learned. The whole Delta counts, so half of it has half the values; where an edit is large, its first step can say
    another thing than the edit, which `exact` shows.

    Args:
        delta: not applied to the model yet.
        method, eps: of `trace.along.directional_derivatives`.
        exact: also apply the Delta and measure: columns `exact`, the true change of the loss, and `before`, the loss without it;
            two more forward passes.
        batch_tokens: largest padded batch, in tokens.
    Returns: RowScores; provenance.options["method"] says how the derivative was taken.
    Raises: MismatchError for a Delta of another model; what `directional_derivatives` raises.
    """
    coded = encode_all(model, rows)
    chosen = pick_method(model, coded, delta) if method == "auto" else method
    values = directional_derivatives(model, coded, delta, method=chosen, eps=eps, batch_tokens=batch_tokens, show=show)
    columns: dict[str, Float64[Tensor, "row"]] = {}
    if exact:
        before = row_nll(model, coded, batch_tokens=batch_tokens)
        with applied(model, delta):
            after = row_nll(model, coded, batch_tokens=batch_tokens)
        columns = {"exact": after - before, "before": before}
    about = Provenance(
        "edit_to_data",
        model.fingerprint(),
        {"rows": rows.fingerprint()},
        {"delta": delta.id, "edit": delta.provenance.method, "method": chosen} | ({"eps": eps} if chosen == "difference" else {}),
        dtype=str(model.dtype),
        reduction="mean NLL per answer token of each row",
        tokens=sum(len(row.tokens) for row in coded),
    )
    return RowScores(
        "edit_to_data",
        tuple(rows.ids),
        values.numpy(),
        "the edit raises the row's loss more: it is forgotten",
        about,
        "nats per token",
        {name: value.numpy() for name, value in columns.items()},
    )
