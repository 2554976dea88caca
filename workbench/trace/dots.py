"""Products and norms of per-example gradients, without a backward pass an example and without the gradients where that can be.

    gradient_dots     <g_i, Q_k>   of every row with every direction, such as other rows' gradients or a Delta
    gradient_norms    ||g_i||
    row_gradients     g_i itself, for as many rows as fit

g_i is the gradient of row i's own loss with respect to all parameters asked for. One backward pass over a batch gives each
module's input and the gradient of its output, of which `contractions.py` makes the products; sums over modules are float64. As in
`moments.py`, that these hold all of a parameter's gradient is checked against autograd first, on one row; a model that fails
(mixtures of experts, weights used outside their module) is gone through row by row with plain autograd.
"""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from workbench.core.errors import DataError, InputError, NumericsError, ShapeError, unknown
from workbench.core.numerics import wide
from workbench.core.runtime import plan_memory
from workbench.load.batches import Encoded
from workbench.load.models import Model
from workbench.trace.by_row import Contract, Keep, Products, adder, one_by_one, through
from workbench.trace.gradients import ExampleLoss, Weights, nll, tracked
from workbench.trace.moments import Wanted, verify
from workbench.trace.watch import Unsupported


def gradient_dots(
    model: Model,
    rows: Sequence[Encoded],
    directions: Sequence[Weights],
    loss: ExampleLoss = nll,
    *,
    names: Collection[str] | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Float64[Tensor, "row direction"]:
    """Scalar product of every row's gradient with every direction, float64, on the CPU.

    Args:
        directions: by parameter name, tensors of its shape; a parameter that one does not name counts as zero there.
        loss: answers' log-probabilities and the rows' positions -> one loss a row.
        names: the parameters to look at; all that a direction names without.
        batch_tokens: largest padded batch, in tokens; changes memory, not the result beyond rounding.
    Raises: DataError for no rows or no directions; UnknownNameError for a parameter the model lacks; ShapeError for a tensor of
        another shape; NumericsError naming the row if a product is NaN or infinite.
    """
    if not directions:
        raise DataError("gradient_dots: there are no directions to multiply the gradients with.")
    check_names(model, names, "gradient_dots")
    chosen = {name for one in directions for name in one}
    wanted = chosen if names is None else chosen & set(names)
    if not wanted:
        raise DataError("gradient_dots: no direction has a parameter to look at; are the directions empty, or names of others?")
    found = Products(_zeros(model, len(rows), len(directions)), None)
    return _fill(found, model, rows, directions, loss, wanted, batch_tokens, show, "gradient_dots").dots


def gradient_norms(
    model: Model,
    rows: Sequence[Encoded],
    loss: ExampleLoss = nll,
    *,
    names: Collection[str] | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Float64[Tensor, "row"]:
    """Euclidean norm of every row's gradient, float64, on the CPU; arguments and errors as of `gradient_dots`."""
    squares = _zeros(model, len(rows))
    _fill(Products(_zeros(model, len(rows), 0), squares), model, rows, (), loss, names, batch_tokens, show, "gradient_norms")
    return squares.sqrt().cpu()


def gradient_products(
    model: Model,
    rows: Sequence[Encoded],
    directions: Sequence[Weights],
    loss: ExampleLoss = nll,
    *,
    names: Collection[str] | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Products:
    """Scalar products and squared norms from one pass; arguments and errors as of `gradient_dots`.

    Args: names: the parameters whose gradient is looked at, in products and norms alike; all of the model's without.
    """
    found = Products(_zeros(model, len(rows), len(directions)), _zeros(model, len(rows)))
    return _fill(found, model, rows, directions, loss, names, batch_tokens, show, "gradient_products")


def row_gradients(
    model: Model,
    rows: Sequence[Encoded],
    loss: ExampleLoss = nll,
    *,
    names: Collection[str] | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> list[Weights]:
    """The gradient of every row's loss, in order: views of what `row_blocks` gives, to multiply others with."""
    blocks = row_blocks(model, rows, loss, names=names, batch_tokens=batch_tokens, show=show)
    return [{name: block[i] for name, block in blocks.items()} for i in range(len(rows))]


def row_blocks(
    model: Model,
    rows: Sequence[Encoded],
    loss: ExampleLoss = nll,
    *,
    names: Collection[str] | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Weights:
    """The gradient of every row's loss, [row, *shape] by parameter, float32 (float64 of a float64 model) on the model's device.

    Raises: as `gradient_dots`; MemoryPlanError before the work if they do not fit: rows times parameters times four bytes.
    """
    _check(model, rows, (), names, "row_gradients")
    plan_rows(model, len(rows), names)
    with tracked(model, names) as parameters:
        blocks = {name: torch.zeros(len(rows), *p.shape, dtype=wide(p).dtype, device=p.device) for name, p in parameters.items()}

        def put(i: int, name: str, gradient: Tensor) -> None:
            blocks[name][i] = gradient

        try:
            verify(model, {"rows": Wanted(rows, frozenset({"gradient"}), loss)}, parameters)
            keep = Keep(parameters, blocks)
            through(model, rows, loss, keep, parameters, batch_tokens, show, "row gradients")
        except Unsupported:
            for block in blocks.values():
                block.zero_()
            one_by_one(model, rows, loss, parameters, put, show, "row gradients")
    for name, block in blocks.items():
        if not bool(torch.isfinite(block).all()):
            raise NumericsError(f"row_gradients: {name} holds NaN or infinity; half precision may have overflowed: try float32.")
    return blocks


def plan_rows(model: Model, n: int, names: Collection[str] | None) -> None:
    """MemoryPlanError if the gradients of `n` rows do not fit."""
    one = row_bytes(model, names)
    plan_memory(
        f"the gradients of {n} rows", n * one, model.device, cure="Take fewer rows at a time, or fewer parameters (names=)."
    )


def row_bytes(model: Model, names: Collection[str] | None) -> int:
    """Bytes of one row's gradient.

    Raises: UnknownNameError for a parameter the model lacks; DataError for no names.
    """
    check_names(model, names, "row_bytes")
    chosen = (p for name, p in model.hf.named_parameters() if names is None or name in names)
    return sum(p.numel() * max(4, p.element_size()) for p in chosen)


def check_names(model: Model, names: Collection[str] | None, label: str) -> None:
    """UnknownNameError for a parameter the model lacks; DataError for no names; None stands for all."""
    shapes = model.shapes()
    for name in names or ():
        if name not in shapes:
            raise unknown("parameter in names", name, shapes)
    if names is not None and not names:
        raise DataError(f"{label}: names is empty, so there are no parameters to look at; None stands for all.")


def _zeros(model: Model, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=model.device)


def _fill(
    into: Products,
    model: Model,
    rows: Sequence[Encoded],
    directions: Sequence[Weights],
    loss: ExampleLoss,
    names: Collection[str] | None,
    batch_tokens: int,
    show: bool,
    label: str,
) -> Products:
    """Add what is asked for to zeros; returned on the CPU."""
    _check(model, rows, directions, names, label)
    with tracked(model, names) as parameters:
        try:
            verify(model, {"rows": Wanted(rows, frozenset({"gradient"}), loss)}, parameters)
            made = Contract(model, parameters, directions, into)
            through(model, rows, loss, made, parameters, batch_tokens, show, label)
        except Unsupported:
            for tensor in into:
                if tensor is not None:
                    tensor.zero_()
            one_by_one(model, rows, loss, parameters, adder(directions, into), show, label)
    out = Products(into.dots.cpu(), None if into.squares is None else into.squares.cpu())
    for tensor in out:
        for i in [] if tensor is None else (~torch.isfinite(tensor.view(len(rows), -1)).all(1)).nonzero().flatten().tolist():
            raise NumericsError(f"{label}: row {rows[i].id!r} has a value that is NaN or infinite; try dtype='float32'.")
    return out


def _check(model: Model, rows: Sequence[Encoded], directions: Sequence[Weights], names: Collection[str] | None, label: str) -> None:
    if not rows:
        raise DataError(f"{label}: there are no rows, so there is nothing to measure.")
    shapes = model.shapes()
    check_names(model, names, label)
    for k, one in enumerate(directions):
        for name, value in one.items():
            if name not in shapes:
                raise unknown(f"parameter in direction {k}", name, shapes)
            if tuple(value.shape) != shapes[name]:
                raise ShapeError(f"{label}: direction {k} has {name} of shape {tuple(value.shape)}, the model's is {shapes[name]}.")
    if any(not bool(torch.isfinite(value).all()) for one in directions for value in one.values()):
        raise InputError(f"{label}: a direction holds NaN or infinity.")
