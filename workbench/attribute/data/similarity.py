"""Influence by gradients that point the same way: dot product, cosine, TracIn over checkpoints, LESS with Adam's moments.

    dot       <g_q, g_i>                               one small step on row i lowers the loss of q by lr <g_q, g_i>
    cosine    <g_q, g_i> / (||g_q|| ||g_i||)           the same, whatever the lengths: no row counts more for being badly learned
    TracIn    sum_k lr_k <g_q(theta_k), g_i(theta_k)>  over checkpoints, which retraces the steps that training took
    LESS      sum_k w_k cos(g_q(theta_k), Gamma_i),  w_k = lr_k / sum lr,  Gamma_i = m'/sqrt(v' + eps),
              m' = b1 m + (1 - b1) g_i,  v' = b2 v + (1 - b2) g_i^2: the step that Adam would take for row i

Every loss is the mean NLL per answer token of its row, so that a long answer weighs as much as a short one; sums over tokens would
let long rows win. LESS puts eps inside the root, does not correct m and v for starting at zero, and leaves the query's gradient as
it is: all three as its authors' code has it, and unlike Adam's own step. Its random projection is left out: the products are exact.

Reference: Pruthi et al. 2020, arXiv:2002.08484 (TracIn); Xia et al. 2024, arXiv:2402.04333 (LESS).
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from workbench.attribute.data.same_rows import same_rows
from workbench.core.delta import applied
from workbench.core.errors import InputError, MismatchError, NumericsError, ShapeError, unknown
from workbench.core.influence import Influence
from workbench.core.records import Examples, Provenance
from workbench.core.registry import influence
from workbench.core.runtime import free_bytes
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.trace.dots import gradient_dots, gradient_products, row_blocks, row_bytes, row_gradients
from workbench.trace.gradients import Weights
from workbench.train.loop import Checkpoint, Moments

_SHARE = 0.3  # of the free memory, for the gradients of queries, and for those of training rows


@influence
def gradient_similarity(
    model: Model,
    query: Examples,
    train: Examples,
    *,
    kind: Literal["cosine", "dot"] = "cosine",
    checkpoints: Sequence[Checkpoint] | None = None,
    moments: Moments | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    names: Collection[str] | None = None,
    query_block: int | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Influence:
    """Cosine or dot product of the gradient of every training row with that of every query.

    Args:
        kind: see the module.
        checkpoints: of `train.fit(..., snapshots=True)`: the products are summed over them, weighted by their rates ("dot", TracIn)
            or by the rates' shares ("cosine", LESS). Each is applied to the model as it is now, and undone to the same bits.
        moments: of `train.fit(..., moments=True)`: the training rows' gradients become LESS's Gamma. One pair for all checkpoints.
        betas, eps: of Gamma.
        names: the parameters whose gradients are compared; all without (with moments: those that have moments).
        query_block: queries whose gradients are held at once; what 0.3 of the free memory holds without. Each block is another pass
            over the training rows; the result is the same.
        batch_tokens: largest padded batch, in tokens.
    Raises: InputError for no checkpoints, a rate that is not positive, or moments without one of the names; MismatchError for
        checkpoints of another model; NumericsError if a value is not finite, or, with the cosine, if a row's gradient is zero.
    """
    if kind not in ("cosine", "dot"):
        raise unknown("kind of gradient similarity", kind, ("cosine", "dot"))
    if query_block is not None and query_block < 1:
        raise InputError(f"gradient_similarity: query_block is {query_block}, expected at least 1.")
    chosen = _names(model, names, moments)
    rates = _rates(model, checkpoints)
    rows, queries = encode_all(model, train), encode_all(model, query)
    job = _Job(model, queries, rows, kind, moments, betas, eps, chosen, query_block, batch_tokens, show)
    about = Provenance(
        "gradient_similarity",
        model.fingerprint(),
        {"query": query.fingerprint(), "train": train.fingerprint()},
        {
            "kind": kind,
            "checkpoints": None if checkpoints is None else [[one.delta.id, one.lr] for one in checkpoints],
            "moments": None if moments is None else {"step": moments.step, "betas": list(betas), "eps": eps},
            "names": None if names is None else sorted(names),
        },
        dtype=str(model.dtype),
        reduction="mean NLL per answer token of each row",
        tokens=sum(len(row.tokens) for row in (*rows, *queries)),
        notes=same_rows(query, train),
    )
    total = torch.zeros(len(queries), len(rows), dtype=torch.float64)
    weights = [1.0] if rates is None else [rate / sum(rates) if kind == "cosine" else rate for rate in rates]
    for k, weight in enumerate(weights):
        state: AbstractContextManager[object] = nullcontext() if checkpoints is None else applied(model, checkpoints[k].delta)
        with state:
            total += weight * _at_these_weights(job)
    return Influence(total.numpy(), tuple(query.ids), tuple(train.ids), about)


@dataclass(frozen=True)
class _Job:
    """What every block of queries needs to know."""

    model: Model
    queries: list[Encoded]
    rows: list[Encoded]
    kind: str
    moments: Moments | None
    betas: tuple[float, float]
    eps: float
    names: Collection[str] | None
    query_block: int | None
    batch_tokens: int
    show: bool


def _at_these_weights(job: _Job) -> Float64[Tensor, "query train"]:
    """Cosines or dot products at the weights that the model has now."""
    out = torch.zeros(len(job.queries), len(job.rows), dtype=torch.float64)
    lengths = None
    for part in _blocks(len(job.queries), job.query_block or _fitting(job.model, job.names)):
        block = row_gradients(job.model, job.queries[part], names=job.names, batch_tokens=job.batch_tokens, show=job.show)
        if job.moments is not None:
            dots, squares = _preconditioned(job, block, job.moments)
        elif job.kind == "cosine" and lengths is None:
            dots, squares = gradient_products(
                job.model, job.rows, block, names=job.names, batch_tokens=job.batch_tokens, show=job.show
            )
        else:
            dots = gradient_dots(job.model, job.rows, block, names=job.names, batch_tokens=job.batch_tokens, show=job.show)
            squares = None
        if job.kind == "cosine":
            lengths = squares.sqrt() if squares is not None else lengths
            own = _lengths(block)
            _check_lengths(own, job.queries[part])
            if lengths is not None:
                _check_lengths(lengths, job.rows)
                dots = dots / lengths[:, None] / own
        out[part] = dots.T
    return out


def _preconditioned(
    job: _Job, block: Sequence[Weights], moments: Moments
) -> tuple[Float64[Tensor, "row query"], Float64[Tensor, "row"]]:
    """<Gamma_i, g_q> and ||Gamma_i||^2; the training rows' gradients themselves, so many at a time as fit."""
    dots = torch.zeros(len(job.rows), len(block), dtype=torch.float64)
    squares = torch.zeros(len(job.rows), dtype=torch.float64)
    for part in _blocks(len(job.rows), min(_fitting(job.model, job.names), 64)):
        gradients = row_blocks(job.model, job.rows[part], names=job.names, batch_tokens=job.batch_tokens, show=job.show)
        for name, each in gradients.items():
            step = adam_direction(each, moments.first[name], moments.second[name], betas=job.betas, eps=job.eps).flatten(1)
            dots[part] += (step @ torch.stack([one[name].flatten() for one in block]).T).double().cpu()
            squares[part] += step.square().sum(1, dtype=torch.float64).cpu()
    for i in (~torch.isfinite(squares)).nonzero().flatten().tolist():
        raise NumericsError(f"gradient_similarity: Adam's step for row {job.rows[i].id!r} is NaN or infinite; is eps > 0?")
    return dots, squares


def adam_direction(each: Tensor, first: Tensor, second: Tensor, *, betas: tuple[float, float], eps: float) -> Tensor:
    """LESS's Gamma of every row's gradient [row, *shape]: what Adam's step for that row alone would be, but for the rate."""
    beta1, beta2 = betas
    m = (1 - beta1) * each + beta1 * first.to(each)
    return m / ((1 - beta2) * each.square() + beta2 * second.to(each) + eps).sqrt()


def _blocks(n: int, size: int) -> Iterator[slice]:
    for first in range(0, n, size):
        yield slice(first, min(first + size, n))


def _fitting(model: Model, names: Collection[str] | None) -> int:
    """How many rows' gradients fit into a share of the free memory."""
    return max(1, int(_SHARE * free_bytes(model.device)) // row_bytes(model, names))


def _names(model: Model, names: Collection[str] | None, moments: Moments | None) -> Collection[str] | None:
    if moments is None:
        return names
    chosen = list(moments.first) if names is None else list(names)
    shapes = model.shapes()
    for name in chosen:
        if name not in moments.first:
            raise InputError(
                f"gradient_similarity: there are no moments of {name}; was the training masked? Leave it out of names."
            )
        if name in shapes and tuple(moments.first[name].shape) != shapes[name]:
            raise ShapeError(
                f"gradient_similarity: moments of {name} are {tuple(moments.first[name].shape)}, the parameter {shapes[name]}."
            )
    return chosen


def _rates(model: Model, checkpoints: Sequence[Checkpoint] | None) -> list[float] | None:
    if checkpoints is None:
        return None
    if not checkpoints:
        raise InputError("gradient_similarity: checkpoints is empty; None compares gradients at the model's own weights.")
    if any(one.delta.provenance.model != model.fingerprint() for one in checkpoints):
        raise MismatchError(
            "gradient_similarity: a checkpoint is a change of another model than this is now. Give the model as it was before "
            "training, without the edits that came later."
        )
    rates = [one.lr for one in checkpoints]
    if not all(rate > 0 for rate in rates):
        raise InputError(f"gradient_similarity: the checkpoints' rates are {rates}, expected positive numbers.")
    return rates


def _lengths(block: Sequence[Weights]) -> Float64[Tensor, "row"]:
    squares = [sum(float(value.square().sum(dtype=torch.float64)) for value in one.values()) for one in block]
    return torch.tensor(squares, dtype=torch.float64).sqrt()


def _check_lengths(lengths: Float64[Tensor, "row"], rows: Sequence[Encoded]) -> None:
    for i in (lengths == 0).nonzero().flatten().tolist():
        raise NumericsError(
            f"gradient_similarity: the gradient of row {rows[i].id!r} is zero, so it has no cosine; take kind='dot'."
        )
