"""What a Hugging Face parameter name says: the layer, the kind of module, and tables of module kinds by layers."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float64

OUTSIDE = "–"  # the column of what lies outside the layers
K = TypeVar("K", bound=Hashable)


class Place(NamedTuple):
    """Where a parameter stands in a table: the kind of module, and the layer's number or OUTSIDE."""

    kind: str
    layer: str


class Grid(NamedTuple):
    """A table of one number per module kind and layer; NaN where the model has no such parameter."""

    rows: list[str]
    columns: list[str]
    values: Float64[np.ndarray, "row column"]


def layer_of(name: str) -> str:
    """The part of a parameter name up to its layer number ("model.layers.3"); the whole name outside the layers."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: position + 1])
    return name


def places(names: Iterable[str]) -> dict[str, Place]:
    """The place of every name: "model.layers.3.mlp.up_proj.weight" is ("mlp.up_proj.weight", "3").

    Further numbers, such as an expert's, become "*", so that all experts of a layer share a place. Where the model has
    several stacks of layers, the stack's name is part of the kind. Outside the layers the kind is the whole name.
    """
    layers = {name: layer_of(name) for name in names}
    stacks = {layer.rpartition(".")[0] for name, layer in layers.items() if layer != name}
    found = {}
    for name, layer in layers.items():
        stack, _, number = layer.rpartition(".")
        inner = ["*" if part.isdecimal() else part for part in name[len(layer) + 1 :].split(".")]
        kind = ".".join(inner if len(stacks) == 1 else [stack, "*", *inner])
        found[name] = Place(name, OUTSIDE) if layer == name else Place(kind, str(int(number)))
    return found


def pooled(totals: Mapping[str, float], sizes: Mapping[str, int], key: Callable[[str], K]) -> dict[K, float]:
    """Sum of the totals over sum of the sizes of all names with one `key`, by key in order of appearance; NaN for no size."""
    sums: dict[K, tuple[float, int]] = {}
    for name, total in totals.items():
        before = sums.get(key(name), (0.0, 0))
        sums[key(name)] = (before[0] + total, before[1] + sizes[name])
    return {k: total / size if size else float("nan") for k, (total, size) in sums.items()}


def module_grid(totals: Mapping[str, float], sizes: Mapping[str, int]) -> Grid:
    """Mean per weight as a table of module kinds (order of appearance) by layers (by number; OUTSIDE last).

    Args: totals: sum over each parameter's weights, by name.   sizes: how many weights that sum is over.
    """
    place = places(totals)
    rows = list(dict.fromkeys(p.kind for p in place.values()))
    columns = sorted({p.layer for p in place.values()}, key=by_number)
    values = np.full((len(rows), len(columns)), np.nan)
    for p, mean in pooled(totals, sizes, lambda name: place[name]).items():
        values[rows.index(p.kind), columns.index(p.layer)] = mean
    return Grid(rows, columns, values)


def by_number(layer: str) -> tuple[bool, int]:
    """Sort key of a layer's column: its number; OUTSIDE comes last."""
    return (True, 0) if layer == OUTSIDE else (False, int(layer))
