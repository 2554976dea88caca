"""Which weights does a row pull on: where in the model the gradient of each row lies.

    share(i, part) = sum over the part's weights of g_ij^2  /  sum over all weights of g_ij^2

A part is a tensor, a layer, an attention head, or an output row of a matrix. The first step of training on row i changes a part's
weights by this share of its squared length (plain gradient descent; Adam divides by its own second moments first).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from workbench.attribute.parts import layout_of, n_units
from workbench.core.errors import InputError, NumericsError, ShapeError, unknown
from workbench.core.names import layer_of
from workbench.core.picture import bars
from workbench.core.records import Examples, Provenance
from workbench.core.runtime import free_bytes
from workbench.core.svg import clean, percent, tag
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.load.weights import transposed
from workbench.trace.dots import check_names, row_blocks, row_bytes
from workbench.trace.gradients import Weights

if TYPE_CHECKING:
    import pandas as pd

By = Literal["tensor", "layer", "head", "row"]
_SHARE, _AT_ONCE = 0.3, 64  # rows whose gradients are held: what fits into this share of the free memory, and no more
_SHOWN = 15


@dataclass(frozen=True, eq=False)
class Pull:
    """Where the gradients of some rows lie.

    by: kind of part.   parts: their names.   ids: of the rows.   shares: [row part], of the row's squared gradient norm.
    norms: [row], ||g_i||.   weights: [part], how many weights each has.   against: [part], mean share in another set of rows.
    Parts of kind "head" do not hold all weights, so their shares add up to less than 1.
    """

    by: By
    parts: tuple[str, ...]
    ids: tuple[str, ...]
    shares: Float64[np.ndarray, "row part"]
    norms: Float64[np.ndarray, "row"]
    weights: tuple[int, ...]
    provenance: Provenance
    against: Float64[np.ndarray, "part"] | None = None

    def __post_init__(self) -> None:
        if np.shape(self.shares) != (len(self.ids), len(self.parts)):
            raise ShapeError(
                f"Pull: shares are {np.shape(self.shares)}, but there are {len(self.ids)} rows and {len(self.parts)} parts."
            )

    def __repr__(self) -> str:
        return f"Pull({len(self.ids)} rows on {len(self.parts)} parts, by {self.by})"

    def frame(self) -> "pd.DataFrame":
        """One line a row and part: id, part, share, size (the part's share of all parts' weights), and against if asked for."""
        import pandas as pd

        n, sizes = len(self.ids), np.array(self.weights, dtype=np.float64)
        found = {
            "id": np.repeat(np.array(self.ids, dtype=object), len(self.parts)),
            "part": np.tile(np.array(self.parts, dtype=object), n),
            "share": self.shares.reshape(-1),
            "size": np.tile(sizes / sizes.sum(), n),
        }
        return pd.DataFrame(found if self.against is None else found | {"against": np.tile(self.against, n)})

    def mean(self) -> Float64[np.ndarray, "part"]:
        """Mean share over the rows: each row counts once, however long its gradient."""
        return self.shares.mean(0)

    def top(self, k: int = 10) -> list[str]:
        """The k parts with the largest mean share; with `against`, those whose mean share exceeds it most."""
        values = self.mean() - (0.0 if self.against is None else self.against)
        return [self.parts[j] for j in np.argsort(-values, kind="stable")[:k]]

    def _repr_html_(self) -> str:
        names = self.top(_SHOWN)
        mean = dict(zip(self.parts, self.mean().tolist(), strict=True))
        label = f"mean share of the squared gradient over {len(self.ids)} rows, by {self.by}"
        shown = bars(names, [mean[name] for name in names], label=label, write=percent)
        words = "" if self.against is None else "; first those that exceed their share in the other set most"
        said = f"{len(names)} of {len(self.parts)} parts{words}"
        return str(tag("p", clean(repr(self))) + shown + tag("p", said))


def data_to_weights(
    model: Model,
    rows: Examples,
    *,
    against: Examples | None = None,
    by: By = "tensor",
    names: Collection[str] | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Pull:
    """Share of every row's squared gradient in each part of the model; the loss is the mean NLL per answer token.

    Args:
        against: other rows; their mean share of each part stands beside, so that what every text pulls on can be told apart.
        by: "tensor"; "layer" (a tensor outside the layers by itself); "head" (q rows and o columns of every query head, its k and v
            rows where no other head reads them: "layer.head"); "row" (every output of every matrix, vectors as a whole).
        names: the parameters to look at; all without. A share is of these.
        batch_tokens: largest padded batch, in tokens.
    Raises: NumericsError for a row whose gradient is zero; UnknownNameError for one of `names` that the model lacks, DataError if
        there are none, InputError for heads without their tensors in it; ModelError if the architecture has no heads that can be
        told apart.
    """
    if by not in ("tensor", "layer", "head", "row"):
        raise unknown("kind of part", by, ("tensor", "layer", "head", "row"))
    check_names(model, names, "data_to_weights")
    shapes = {name: shape for name, shape in model.shapes().items() if names is None or name in names}
    split = _splitter(model, shapes, by)
    found, norms = _shares(model, rows, split, names, batch_tokens, show)
    other = None if against is None else _shares(model, against, split, names, batch_tokens, show)[0].mean(0)
    data = {"rows": rows.fingerprint()} | ({} if against is None else {"against": against.fingerprint()})
    about = Provenance(
        "data_to_weights",
        model.fingerprint(),
        data,
        {"by": by, "names": None if names is None else sorted(names)},
        dtype=str(model.dtype),
        reduction="mean NLL per answer token of each row",
    )
    return Pull(by, split.parts, tuple(rows.ids), found, norms, split.weights, about, other)


@dataclass(frozen=True)
class _Splitter:
    """parts: their names.   weights: of each.   squares: rows' squared gradients by parameter -> their sums [row part]."""

    parts: tuple[str, ...]
    weights: tuple[int, ...]
    squares: Callable[[Weights], Float64[Tensor, "row part"]]


def _splitter(model: Model, shapes: dict[str, tuple[int, ...]], by: By) -> _Splitter:
    if by == "head":
        return _heads(model, shapes)
    if by == "row":
        return _matrix_rows(model, shapes)
    key = {name: name if by == "tensor" else layer_of(name) for name in shapes}
    parts = tuple(dict.fromkeys(key.values()))
    where = {part: j for j, part in enumerate(parts)}

    def squares(each: Weights) -> Float64[Tensor, "row part"]:
        out = torch.zeros(len(next(iter(each.values()))), len(parts), dtype=torch.float64)
        for name, value in each.items():
            out[:, where[key[name]]] += value.flatten(1).sum(1, dtype=torch.float64).cpu()
        return out

    sizes = [sum(int(np.prod(shape)) for name, shape in shapes.items() if key[name] == part) for part in parts]
    return _Splitter(parts, tuple(sizes), squares)


def _heads(model: Model, shapes: dict[str, tuple[int, ...]]) -> _Splitter:
    layout = layout_of(model, "head")
    heads = n_units(layout[0])
    absent = [part.where.parameter for layer in layout for part in layer if part.where.parameter not in shapes]
    if absent:
        raise InputError(f"data_to_weights: names leaves out {absent[0]}, of which heads are made; name all attention weights.")

    def squares(each: Weights) -> Float64[Tensor, "row part"]:
        n = len(next(iter(each.values())))
        out = torch.zeros(n, len(layout) * heads, dtype=torch.float64)
        for k, parts in enumerate(layout):
            for part in parts:
                for i in range(n):
                    lines = part.where.of(each[part.where.parameter][i]).sum(part.along, dtype=torch.float64).cpu()
                    out[i].index_add_(0, k * heads + part.unit, lines)
        return out

    sizes = torch.zeros(len(layout) * heads, dtype=torch.int64)
    for k, parts in enumerate(layout):
        for part in parts:
            shape = part.where.of(torch.empty(part.where.shape, device="meta")).shape
            sizes.index_add_(0, k * heads + part.unit, torch.full((len(part.unit),), shape[part.along]))
    names = tuple(f"{layer}.{head}" for layer in range(len(layout)) for head in range(heads))
    return _Splitter(names, tuple(sizes.tolist()), squares)


def _matrix_rows(model: Model, shapes: dict[str, tuple[int, ...]]) -> _Splitter:
    turned = transposed(model.hf, shapes)

    def outputs(name: str) -> int:
        shape = shapes[name]
        return 1 if len(shape) < 2 else shape[1] if name in turned else shape[0]

    parts = tuple(f"{name}[{i}]" if len(shapes[name]) > 1 else name for name in shapes for i in range(outputs(name)))
    sizes = tuple(int(np.prod(shapes[name])) // outputs(name) for name in shapes for _ in range(outputs(name)))

    def squares(each: Weights) -> Float64[Tensor, "row part"]:
        found = []
        for name, value in each.items():
            lines = value.flatten(1)[:, None] if value.ndim < 3 else value.transpose(1, 2) if name in turned else value.flatten(2)
            found.append(lines.sum(2, dtype=torch.float64).cpu())
        return torch.cat(found, 1)

    return _Splitter(parts, sizes, squares)


def _shares(
    model: Model, rows: Examples, split: _Splitter, names: Collection[str] | None, batch_tokens: int, show: bool
) -> tuple[Float64[np.ndarray, "row part"], Float64[np.ndarray, "row"]]:
    """Shares, and norms of the gradients; so many rows at a time as fit."""
    coded = encode_all(model, rows)
    size = max(1, min(_AT_ONCE, int(_SHARE * free_bytes(model.device)) // row_bytes(model, names)))
    squares, totals = [], []
    for first in range(0, len(coded), size):
        each = row_blocks(model, coded[first : first + size], names=names, batch_tokens=batch_tokens, show=show)
        each = {name: value.square_() for name, value in each.items()}
        squares.append(split.squares(each))
        totals.append(sum(value.flatten(1).sum(1, dtype=torch.float64).cpu() for value in each.values()))
    total = torch.cat(totals)
    for i in (total == 0).nonzero().flatten().tolist():
        raise NumericsError(f"data_to_weights: the gradient of row {coded[i].id!r} is zero, so it pulls nowhere.")
    return (torch.cat(squares) / total[:, None]).numpy(), total.sqrt().numpy()
