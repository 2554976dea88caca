"""Which neurons, heads, layers or rows an edit acts on: what the user named, checked, and as many others by chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.core.errors import InputError, unknown
from workbench.core.numerics import generator
from workbench.core.store import text_sha256

CONTROLS = ("", "place", "change")

Chosen = dict[int, list[int]]  # layer → indices, both sorted


def check_control(control: str) -> None:
    """UnknownNameError for a control there is not."""
    if control not in CONTROLS:
        raise unknown("control", control, CONTROLS)


def chosen_of(what: str, places: Sequence[Any], sizes: Sequence[int]) -> Chosen:
    """The named places by layer.

    Args:
        places: (layer, index) each, from 0.
        what: what a place is, for messages ("neuron").
        sizes: how many of them each layer has.
    Raises: InputError for no place, one that does not exist, or one that is named twice.
    """
    found: Chosen = {}
    if isinstance(places, tuple) and len(places) == 2 and all(type(one) is int for one in places):
        raise InputError(f"places is {tuple(places)}, expected a list of them. Write [(layer, {what})].")
    if not places:
        raise InputError(f"places is empty; name at least one {what} as (layer, {what}).")
    for place in places:
        if not isinstance(place, tuple) or len(place) != 2 or not all(type(one) is int for one in place):
            raise InputError(f"places holds {place!r}, expected (layer, {what}), two whole numbers.")
        layer, index = place
        if not 0 <= layer < len(sizes):
            raise InputError(f"{what} ({layer}, {index}): there is no layer {layer}; layers are 0 to {len(sizes) - 1}.")
        if not 0 <= index < sizes[layer]:
            raise InputError(f"{what} ({layer}, {index}) does not exist; layer {layer} has {what}s 0 to {sizes[layer] - 1}.")
        if index in found.setdefault(layer, []):
            raise InputError(f"{what} ({layer}, {index}) is named twice; name each place once.")
        found[layer].append(index)
    return {layer: sorted(found[layer]) for layer in sorted(found)}


def layers_of(layers: Sequence[int] | None, n_layers: int) -> list[int]:
    """The named layers in order, all of them for None.

    Raises: InputError for no layer, one that does not exist, or one that is named twice.
    """
    if layers is None:
        return list(range(n_layers))
    if not layers:
        raise InputError(f"layers is empty; name at least one of 0 to {n_layers - 1}.")
    for layer in layers:
        if type(layer) is not int or not 0 <= layer < n_layers:
            raise InputError(f"layer {layer!r} does not exist; layers are 0 to {n_layers - 1}.")
    if len(set(layers)) < len(layers):
        raise InputError(f"layers is {list(layers)}, which names one twice; name each layer once.")
    return sorted(layers)


def elsewhere(chosen: Mapping[int, Sequence[int]], pools: Mapping[int, Sequence[int]], *, seed: int) -> Chosen:
    """As many places of every layer, drawn from those that were not chosen, and only then from the chosen ones.

    Args: pools: by layer, all places that may be drawn.
    Raises: InputError if every place was chosen, so that there is no elsewhere.
    """
    source, found = generator(stream(seed, "elsewhere")), {}
    for layer, taken in chosen.items():
        free = sorted(set(pools[layer]) - set(taken))
        drawn = [free[i] for i in torch.randperm(len(free), generator=source).tolist()]
        again = [taken[i] for i in torch.randperm(len(taken), generator=source).tolist()]
        found[layer] = sorted([*drawn, *again][: len(taken)])
    if all(set(found[layer]) == set(chosen[layer]) for layer in chosen):
        raise InputError("control 'place': everything there is was chosen, so the edit cannot be done elsewhere.")
    return found


def stream(seed: int, use: str) -> int:
    """A seed of its own for each use of one seed: noise, or a random direction, must not be drawn again as its own control."""
    return int(text_sha256([seed, use])[:15], 16)


def spread(total: int, over: int) -> list[int]:
    """`total` in `over` equal shares, the remainder one each to the first."""
    return [total // over + (i < total % over) for i in range(over)]


def listed(chosen: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """[layer, index] of every place, ready for JSON."""
    return [[layer, index] for layer, indices in chosen.items() for index in indices]


def tensor_of(indices: Sequence[int]) -> Int[Tensor, "k"]:
    """Indices as int64, also where there are none."""
    return torch.tensor(list(indices), dtype=torch.int64)
