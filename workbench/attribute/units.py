"""Structured masks: whole neurons, heads or rows chosen by the scores of their weights, or by name.

    S(u) = mean over the weights w of unit u of S(w)

A unit is named (layer, index), both from 0; the kinds of unit, and that biases belong to none, stand in `parts.py`. The masks
list every parameter of the model, so that `~mask` is all of its other weights and a share is a share of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from workbench.attribute.parts import Part, layout_of, n_units
from workbench.core.bits import pack
from workbench.core.errors import InputError, MismatchError, ShapeError, unknown
from workbench.core.mask import Mask
from workbench.core.numerics import check_finite, generator
from workbench.core.records import Provenance
from workbench.core.scores import Scores
from workbench.load.models import Model

REDUCTIONS = ("mean", "sum")
SCOPES = ("global", "layer")


def structured(
    model: Model,
    scores: Scores,
    *,
    unit: str = "neuron",
    fraction: float | None = None,
    count: int | None = None,
    reduce: str = "mean",
    scope: str = "global",
) -> Mask:
    """The highest-scored units as a Mask: every weight of a chosen unit, and no other.

    Args:
        scores: of this model, for every weight the units are made of.
        unit: what is chosen as a whole, one of UNITS.
        fraction: share of the units, 0 < fraction <= 1: round(fraction x units) of them, at least 1. Give this or `count`.
        count: number of units.
        reduce: see `unit_scores`.
        scope: "global", all units compete; "layer", each layer gives its own share, rounded down, and the remainder goes to
            the first layers, one unit each.
    Returns: a Mask that lists every parameter of the model, so that `~mask` is all of its other weights. Ties go to the lower
        layer, then to the lower index.
    Raises: UnknownNameError for a unit, reduction or scope; InputError for a bad fraction or count, or weights without a score;
        ModelError if the architecture lacks the unit; MismatchError for the scores of another model.
    """
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    layout = layout_of(model, unit)
    ranking = _reduce(model, scores, layout, unit, reduce)
    if (fraction is None) == (count is None):
        raise InputError("structured: give fraction or count, one of them.")
    total = ranking.numel()
    wanted = _share("structured: fraction", fraction, total) if fraction is not None else int(count or 0)
    if not 1 <= wanted <= total:
        raise InputError(f"structured: count is {count}, expected 1 to {total:,}; the model has that many {unit!r} units.")
    options = {"unit": unit, "fraction": fraction, "count": count, "reduce": reduce, "scope": scope}
    about = Provenance(scores.provenance.method, model.fingerprint(), options=options | {"scores": scores.provenance.as_dict()})
    return _mask(model, layout, _top(ranking, wanted, scope), about)


def unit_scores(model: Model, scores: Scores, *, unit: str = "neuron", reduce: str = "mean") -> Float[Tensor, "layer unit"]:
    """Score of every unit: the mean, or the sum, of the scores of its weights, accumulated in float64.

    Signed scores are added with their signs, so that weights of one unit can cancel.

    Args:
        unit: one of UNITS.
        reduce: "mean" over a unit's weights or their "sum".
    Returns: float64, [n_layers, units of a layer].
    Raises: as `structured`; NumericsError if a unit's score is not finite.
    """
    return _reduce(model, scores, layout_of(model, unit), unit, reduce)


def units_mask(model: Model, unit: str, chosen: Sequence[tuple[int, int]]) -> Mask:
    """All weights of the named units as a Mask that lists every parameter of the model.

    Args:
        unit: one of UNITS.
        chosen: (layer, index) of each unit; naming one twice changes nothing.
    Raises: UnknownNameError for the unit; ModelError if the architecture lacks it; InputError for no or a missing unit.
    """
    layout = layout_of(model, unit)
    bits = torch.zeros(len(layout), n_units(layout[0]), dtype=torch.bool)
    if not chosen:
        raise InputError("units_mask: chosen is empty; name at least one unit as (layer, index).")
    for layer, index in chosen:
        if not (0 <= layer < bits.shape[0] and 0 <= index < bits.shape[1]):
            raise InputError(
                f"units_mask: there is no {unit!r} ({layer}, {index}); layers are 0 to {bits.shape[0] - 1}, units of a layer "
                f"0 to {bits.shape[1] - 1}. Each unit is named (layer, index)."
            )
        bits[layer, index] = True
    named = [list(pair) for pair in sorted(set(chosen))]
    return _mask(model, layout, bits, Provenance(f"{unit} units", model.fingerprint(), options={"unit": unit, "chosen": named}))


@dataclass(frozen=True, eq=False)
class LocatedUnits:
    """A ranking of a model's units: what a localization says, as whole units at any size.

    name: what the localization is called.   ranking: [layer, unit], higher = choose first, such as `unit_scores` or the
    effects found by patching.   unit: one of UNITS. A size is a share of the units, not of the model's weights.
    """

    name: str
    model: Model
    ranking: Float[Tensor, "layer unit"]
    unit: str = "neuron"

    def __post_init__(self) -> None:
        expected = (len(self._layout), n_units(self._layout[0]))
        if tuple(self.ranking.shape) != expected:
            raise ShapeError(
                f"LocatedUnits: ranking is {tuple(self.ranking.shape)}, but the model has {expected[0]} layers of "
                f"{expected[1]} {self.unit!r} units. Was it made for another unit or model?"
            )
        check_finite(f"LocatedUnits: ranking of {self.name}", self.ranking)

    def inside(self, size: float) -> Mask:
        """The highest round(size x units) units, at least 1; ties go to the lower layer, then to the lower index."""
        return self._as_mask(self._chosen(size), self.name, size, None)

    def random(self, size: float, *, seed: int) -> Mask:
        """The control: as many units in every layer as `inside(size)` has, drawn uniformly without replacement."""
        source = generator(seed)
        inside = self._chosen(size)
        drawn = torch.zeros_like(inside)
        for layer, n in enumerate(inside.sum(1).tolist()):
            drawn[layer, torch.randperm(drawn.shape[1], generator=source)[:n]] = True
        return self._as_mask(drawn, f"random {self.unit} units", size, seed)

    @cached_property
    def _layout(self) -> list[list[Part]]:
        return layout_of(self.model, self.unit)

    def _chosen(self, size: float) -> Bool[Tensor, "layer unit"]:
        wanted = _share(f"LocatedUnits {self.name!r}: size", size, self.ranking.numel())
        return _top(self.ranking.cpu(), wanted, "global")

    def _as_mask(self, chosen: Bool[Tensor, "layer unit"], method: str, size: float, seed: int | None) -> Mask:
        options = {"unit": self.unit, "size": size, "ranking": self.name}
        about = Provenance(method, self.model.fingerprint(), options=options, seed=seed)
        return _mask(self.model, self._layout, chosen, about)


def _share(what: str, fraction: float, total: int) -> int:
    """round(fraction x total), at least 1; InputError unless 0 < fraction <= 1."""
    if not 0 < fraction <= 1:
        raise InputError(f"{what} is {fraction}, expected a share above 0 and at most 1.")
    return max(1, round(fraction * total))


def _top(ranking: Float[Tensor, "layer unit"], wanted: int, scope: str) -> Bool[Tensor, "layer unit"]:
    """The `wanted` highest; a stable sort leaves ties in the order of (layer, index)."""
    n_layers = len(ranking)
    groups = [ranking.flatten()] if scope == "global" else list(ranking)
    share, remainder = divmod(wanted, len(groups))
    bits = [torch.zeros(len(group), dtype=torch.bool) for group in groups]
    for position, group in enumerate(groups):
        best = group.argsort(descending=True, stable=True)[: share + (position < remainder)]
        bits[position][best] = True
    return torch.cat(bits).view(n_layers, -1)


def _reduce(model: Model, scores: Scores, layout: Sequence[list[Part]], unit: str, reduce: str) -> Float[Tensor, "layer unit"]:
    """`unit_scores` for a known layout."""
    if reduce not in REDUCTIONS:
        raise unknown("reduction", reduce, REDUCTIONS)
    if scores.provenance.model != model.fingerprint():
        raise MismatchError(
            f"{unit!r} units: the scores are of model {scores.provenance.model[:12]}, this one is {model.fingerprint()[:12]}. "
            "Compute the scores on this model, or undo the edits applied since."
        )
    totals = torch.zeros(len(layout), n_units(layout[0]), dtype=torch.float64)
    sizes = torch.zeros_like(totals)
    for layer, parts in enumerate(layout):
        for part in parts:
            if part.where.parameter not in scores:
                raise InputError(
                    f"{unit!r} units need a score for {part.where.parameter}, which {scores.provenance.method!r} does not cover. "
                    "Choose a unit of the matrices it covers, or scores over every weight."
                )
            found = part.where.of(scores[part.where.parameter])
            lines = found.sum(part.along, dtype=torch.float64).cpu()
            totals[layer].index_add_(0, part.unit, lines)
            sizes[layer].index_add_(0, part.unit, torch.full_like(lines, found.shape[part.along]))
    check_finite(f"scores of the {unit!r} units", totals)
    return totals / sizes if reduce == "mean" else totals


def _mask(model: Model, layout: Sequence[list[Part]], chosen: Bool[Tensor, "layer unit"], about: Provenance) -> Mask:
    """The weights of the chosen units; every other weight of the model is listed and not chosen."""
    lines: dict[str, list[tuple[Part, Tensor]]] = {}
    for layer, parts in enumerate(layout):
        for part in parts:
            lines.setdefault(part.where.parameter, []).append((part, chosen[layer][part.unit]))
    shapes = {name: tuple(p.shape) for name, p in model.hf.named_parameters() if p.is_floating_point()}
    return Mask({name: _packed(shape, lines.get(name, [])) for name, shape in shapes.items()}, shapes, about)


def _packed(shape: tuple[int, ...], lines: Sequence[tuple[Part, Tensor]]) -> UInt8[Tensor, "bytes"]:
    """One parameter's bits, packed at once so that only one of them is ever unpacked."""
    bits = torch.zeros(shape, dtype=torch.bool)
    for part, chosen in lines:
        part.where.of(bits).logical_or_(chosen.unsqueeze(part.along))
    return pack(bits)
