"""Which weights a unit is made of: the rows and columns of every neuron, head or key-value group of a model.

    gate_row, up_row   a row of W_gate, of W_up, in a gated MLP
    in_row             a row of W_in in an ungated one
    down_column        a column of W_out: the value vector of a neuron
    neuron             gate row, up row and down column of one neuron; in row and down column where there is no gate
    head               q rows and o columns of a query head; its k and v rows too where no other head reads them
    kv_group           k and v rows of a key-value head, with the q rows and o columns of all query heads it serves

Only weights of matrices: the bias of a row is in no unit, because scores made from a layer's inputs have none for it, and a
mean over a unit should not depend on whether the architecture has biases. Where the weights lie is the answer of
`load/sites.py`, for fused, transposed and grouped projections alike.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.core.errors import ModelError, unknown
from workbench.load.models import Model
from workbench.load.sites import Sites
from workbench.load.weights import WeightSlice

UNITS = ("gate_row", "up_row", "in_row", "down_column", "neuron", "head", "kv_group")


class Part(NamedTuple):
    """Rows or columns of one parameter, "lines" here, and the unit each of them belongs to."""

    where: WeightSlice
    unit: Int[Tensor, "line"]

    @property
    def along(self) -> int:
        """The axis of `where.of(...)` that runs along a line; the other one counts the lines."""
        return 0 if (self.where.dim == 1) != self.where.transposed else 1


def n_units(parts: Sequence[Part]) -> int:
    """How many units a layer has."""
    return 1 + max(int(part.unit.max()) for part in parts)


def layout_of(model: Model, unit: str) -> list[list[Part]]:
    """The parts of every layer.

    Raises: UnknownNameError for the unit; ModelError if the architecture lacks it, or has another number of them by layer.
    """
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)
    find = _head_parts if unit in ("head", "kv_group") else _neuron_parts
    name = type(model.hf).__name__
    try:
        layout = [find(model.sites, unit, layer) for layer in range(model.sites.n_layers)]
    except ModelError as error:
        raise ModelError(f"{name} has no {unit!r} units: {error}") from error
    sizes = sorted({n_units(parts) for parts in layout})
    if len(sizes) > 1:
        raise ModelError(f"{name} has {sizes[0]} to {sizes[-1]} {unit!r} units a layer; only one number for all is supported.")
    return layout


def _neuron_parts(sites: Sites, unit: str, layer: int) -> list[Part]:
    places = {"down_column": sites.value_vectors(layer)}  # raises in a mixture of experts
    if sites.gated:
        places |= {"gate_row": sites.gate_rows(layer), "up_row": sites.up_rows(layer)}
    else:
        places |= {"in_row": sites.in_rows(layer)}
    if unit != "neuron" and unit not in places:
        raise ModelError(f"its MLP is {'gated' if sites.gated else 'not gated'}; use one of {', '.join(sorted(places))}, neuron.")
    wanted = places.values() if unit == "neuron" else [places[unit]]
    return [Part(where, torch.arange(len(where.indices()))) for where in wanted]


def _head_parts(sites: Sites, unit: str, layer: int) -> list[Part]:
    keys = [sites.head(layer, head, "k") for head in range(sites.n_heads)]
    first = [keys.index(key) for key in keys]  # heads with the same key rows are one group
    groups = sorted(set(first))
    whole = unit == "kv_group"
    unit_of = [groups.index(one) for one in first] if whole else list(range(sites.n_heads))
    wanted = [(head, part) for head in range(sites.n_heads) for part in "qo"]
    if whole or len(groups) == sites.n_heads:
        wanted += [(head, part) for head in groups for part in "kv"]
    slices = [(unit_of[head], sites.head(layer, head, part)) for head, part in wanted]
    return [Part(where, torch.full((len(where.indices()),), index)) for index, where in slices]
