"""The forms a change of one weight tensor can take: rows, columns, single entries, low rank, dense.

Values are float32. A form knows which entries it touches (to keep and put back their bits), how to add itself in place,
and which tensors to save. `smallest` picks the smallest form for a given difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.errors import InputError, ShapeError, unknown
from workbench.core.numerics import wide

C = TypeVar("C", bound="Along")
_BLOCK = 1 << 16  # weights added to at a time


@runtime_checkable
class Change(Protocol):
    """What every form can do. shape: of the whole parameter."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def n_touched(self) -> int: ...
    def dense(self) -> Tensor: ...
    def norm(self) -> float: ...
    def scaled(self, factor: float) -> "Change": ...
    def add_to(self, weight: Tensor) -> None: ...
    def put_back(self, weight: Tensor, kept: Tensor) -> None: ...
    def tensors(self) -> dict[str, Tensor]: ...


def _index(index: Tensor, bound: int, what: str) -> Tensor:
    """Sorted check of an index tensor: one-dimensional, unique, in range."""
    if index.ndim != 1 or len(index.unique()) != len(index):
        raise ShapeError(f"{what}: the index must be one-dimensional and without repeats, got {tuple(index.shape)}.")
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < bound):
        raise ShapeError(f"{what}: the index runs to {int(index.max())}, but there are {bound}.")
    return index.to(torch.int32 if bound < 2**31 else torch.int64)


@dataclass(frozen=True, eq=False)
class Along:
    """values[i] is added to the slice index[i] along one dimension of a matrix; the shared part of Rows and Columns."""

    index: Int[Tensor, "k"]
    values: Float[Tensor, "..."]
    shape: tuple[int, ...]
    dim = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", _index(self.index, self.shape[self.dim], type(self).__name__))
        object.__setattr__(self, "values", self.values.float())
        expected = list(self.shape)
        expected[self.dim] = len(self.index)
        if list(self.values.shape) != expected:
            raise ShapeError(f"{type(self).__name__}: values are {tuple(self.values.shape)}, expected {tuple(expected)}.")

    @property
    def n_touched(self) -> int:
        return self.values.numel()

    def dense(self) -> Tensor:
        return torch.zeros(self.shape).index_copy_(self.dim, self.index.long(), self.values)

    def norm(self) -> float:
        return float(self.values.double().norm())

    def scaled(self: C, factor: float) -> C:
        return type(self)(self.index, self.values * factor, self.shape)

    def at(self, weight: Tensor) -> Tensor:
        return weight.index_select(self.dim, self.index.to(weight.device, torch.int64))

    def add_to(self, weight: Tensor) -> None:
        index = self.index.to(weight.device, torch.int64)
        # on the CPU in blocks that stay in the cache: the sums of all slices at once cost more than the slices themselves
        step = max(1, len(index) if weight.is_cuda else _BLOCK // weight.shape[1 - self.dim])
        for at, values in zip(index.split(step), self.values.split(step, self.dim), strict=True):
            weight.index_copy_(self.dim, at, _added(weight.index_select(self.dim, at), values))

    def put_back(self, weight: Tensor, kept: Tensor) -> None:
        weight.index_copy_(self.dim, self.index.to(weight.device, torch.int64), kept)

    def tensors(self) -> dict[str, Tensor]:
        return {"index": self.index, "values": self.values}


class Rows(Along):
    """values [k, cols] are added to the rows index [k] (dimension 0)."""

    dim = 0


class Columns(Along):
    """values [rows, k] are added to the columns index [k] (dimension 1)."""

    dim = 1


class Indices(Along):
    """values [k] are added to the entries with flat index [k]."""

    def __post_init__(self) -> None:
        if self.values.shape != self.index.shape:
            raise ShapeError(f"Indices: {len(self.values)} values for {len(self.index)} indices.")
        object.__setattr__(self, "index", _index(self.index, prod(self.shape), "Indices"))
        object.__setattr__(self, "values", self.values.float())

    def dense(self) -> Tensor:
        flat = torch.zeros(prod(self.shape)).index_copy_(0, self.index.long(), self.values)
        return flat.view(self.shape)

    def at(self, weight: Tensor) -> Tensor:
        return weight.view(-1)[self.index.to(weight.device, torch.int64)]

    def add_to(self, weight: Tensor) -> None:
        self.put_back(weight, _added(self.at(weight), self.values))

    def put_back(self, weight: Tensor, kept: Tensor) -> None:
        weight.view(-1)[self.index.to(weight.device, torch.int64)] = kept


@dataclass(frozen=True, eq=False)
class LowRank:
    """left [rows, rank] @ right [rank, cols] is added to the whole matrix."""

    left: Float[Tensor, "rows rank"]
    right: Float[Tensor, "rank cols"]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", self.left.float())
        object.__setattr__(self, "right", self.right.float())
        product = (self.left.shape[0], self.right.shape[1])
        if self.left.shape[1] != self.right.shape[0] or product != tuple(self.shape):
            raise ShapeError(
                f"LowRank: {tuple(self.left.shape)} times {tuple(self.right.shape)} does not make {tuple(self.shape)}."
            )

    @property
    def n_touched(self) -> int:
        return prod(self.shape)

    def dense(self) -> Tensor:
        return self.left @ self.right

    def norm(self) -> float:
        # ||AB||_F^2 = sum((A'A) * (BB'))
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt())

    def scaled(self, factor: float) -> "LowRank":
        return LowRank(self.left * factor, self.right, self.shape)

    def add_to(self, weight: Tensor) -> None:
        weight.copy_(_added(weight, self.left.to(weight.device) @ self.right.to(weight.device)))

    def put_back(self, weight: Tensor, kept: Tensor) -> None:
        weight.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}


@dataclass(frozen=True, eq=False)
class Dense:
    """values, of the parameter's shape, are added to all of it."""

    values: Float[Tensor, "..."]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", self.values.float())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def n_touched(self) -> int:
        return self.values.numel()

    def dense(self) -> Tensor:
        return self.values

    def norm(self) -> float:
        return float(self.values.double().norm())

    def scaled(self, factor: float) -> "Dense":
        return Dense(self.values * factor)

    def add_to(self, weight: Tensor) -> None:
        weight.copy_(_added(weight, self.values))

    def put_back(self, weight: Tensor, kept: Tensor) -> None:
        weight.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values}


def _added(weight: Tensor, values: Tensor) -> Tensor:
    """weight + values, rounded once to the weight's dtype; where a value is zero the weight's very bits, -0.0 included."""
    # w - (0 - d) is w + d, but where d is zero of either sign it is w - (+0), which leaves -0.0 what it is
    return (wide(weight) - (0.0 - values.to(weight.device))).to(weight.dtype)


def touched(change: Change, weight: Tensor) -> Tensor:
    """The entries of `weight` that `change` overwrites, in the form `put_back` takes."""
    return change.at(weight) if isinstance(change, Along) else weight


def kept(change: Change, weight: Tensor) -> Tensor:
    """A copy of these entries, which later writes to `weight` leave as it is."""
    found = touched(change, weight)
    return found.clone() if found is weight else found  # slices and single entries are copies already


def smallest(difference: Tensor) -> Change:
    """The smallest form that holds `difference` (as float32): whole rows, whole columns, single entries, or dense."""
    difference = difference.float()
    if difference.ndim == 2:
        rows, columns = difference.any(1).nonzero().squeeze(-1), difference.any(0).nonzero().squeeze(-1)
    else:
        rows = columns = torch.arange(0)
    entries = int(difference.count_nonzero())
    rank_two = difference.ndim == 2
    sizes = {  # in four-byte words
        "dense": difference.numel(),
        "indices": 2 * entries,
        "rows": len(rows) * (difference.shape[1] + 1) if rank_two else difference.numel() + 1,
        "columns": len(columns) * (difference.shape[0] + 1) if rank_two else difference.numel() + 1,
    }
    shape = tuple(difference.shape)
    match min(sizes, key=lambda form: sizes[form]):
        case "rows":
            return Rows(rows, difference[rows], shape)
        case "columns":
            return Columns(columns, difference[:, columns], shape)
        case "indices":
            index = difference.view(-1).nonzero().squeeze(-1)
            return Indices(index, difference.view(-1)[index], shape)
    return Dense(difference.clone())


def add(one: Change, other: Change) -> Change:
    """The sum of two changes of one parameter, low rank where both are, else in its smallest form."""
    if tuple(one.shape) != tuple(other.shape):
        raise ShapeError(f"cannot add changes of shapes {one.shape} and {other.shape}.")
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        return LowRank(torch.cat([one.left, other.left], 1), torch.cat([one.right, other.right], 0), one.shape)
    return smallest(one.dense() + other.dense())


def change_from(form: str, shape: Sequence[int], tensors: Mapping[str, Tensor]) -> Change:
    """Rebuild a change from what `tensors()` gave."""
    forms = {c.__name__: c for c in (Rows, Columns, Indices, LowRank)}
    if form == "Dense":
        return Dense(tensors["values"])
    if form not in forms:
        raise unknown("form of change", form, [*forms, "Dense"])
    try:
        return forms[form](**tensors, shape=tuple(shape))
    except TypeError as error:
        raise InputError(f"Delta: a {form} change cannot be made of {', '.join(tensors)}.") from error
