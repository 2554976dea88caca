"""Mask: one bit for every weight of a model, by Hugging Face parameter name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from markupsafe import Markup
from torch import Tensor

from workbench.core.bits import invert, n_bytes, pack, padding, popcount, unpack
from workbench.core.errors import DataError, InputError, MismatchError, ShapeError, unknown
from workbench.core.names import OUTSIDE, by_number, layer_of, places, pooled
from workbench.core.numerics import generator
from workbench.core.picture import bars, table
from workbench.core.records import Provenance
from workbench.core.store import load_tensors, save_tensors
from workbench.core.svg import percent, tag
from workbench.core.topk import CHUNK

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Mask:
    """One bit for every weight: true where it may change. A parameter that is not listed is frozen.

    packed: by HF parameter name, eight weights a byte (`bits.pack`), padding 0.   shapes: the parameters' shapes.
    """

    packed: Mapping[str, UInt8[Tensor, "bytes"]]
    shapes: Mapping[str, tuple[int, ...]]
    provenance: Provenance

    def __post_init__(self) -> None:
        for name, packed in self.packed.items():
            n = prod(self.shapes[name])
            if len(packed) != n_bytes(n):
                raise ShapeError(f"Mask: {name} has {len(packed):,} bytes, expected {n_bytes(n):,} for its {n:,} weights.")
            if len(packed) and int(packed[-1]) & padding(n):
                raise InputError(f"Mask: {name} has bits set behind its last weight; pack it with Mask.of.")

    @classmethod
    def of(cls, bits: Mapping[str, Bool[Tensor, "..."]], provenance: Provenance) -> "Mask":
        """From bool tensors by parameter name."""
        return cls({n: pack(b) for n, b in bits.items()}, {n: tuple(b.shape) for n, b in bits.items()}, provenance)

    def __getitem__(self, name: str) -> Bool[Tensor, "..."]:
        if name not in self.packed:
            raise unknown("parameter", name, self.packed)
        return unpack(self.packed[name], self.shapes[name])

    def __contains__(self, name: object) -> bool:
        return name in self.packed

    def __iter__(self) -> Iterator[str]:
        return iter(self.packed)

    def counts(self) -> dict[str, int]:
        """Chosen weights per parameter."""
        return {name: popcount(packed) for name, packed in self.packed.items()}

    @property
    def n_weights(self) -> int:
        """How many weights the mask speaks of."""
        return sum(self._sizes().values())

    @property
    def count(self) -> int:
        """How many weights are chosen."""
        return sum(self.counts().values())

    def _sizes(self) -> dict[str, int]:
        return {name: prod(self.shapes[name]) for name in self}

    def __repr__(self) -> str:
        count, total = self.count, self.n_weights
        share = f", {count / total:.2%}" if total else ""
        return f"Mask({count:,} of {total:,} weights{share}, {self.provenance.method!r})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mask)
            and self.provenance.model == other.provenance.model
            and dict(self.shapes) == dict(other.shapes)
            and all(torch.equal(self.packed[name], other.packed[name]) for name in self)
        )

    def __invert__(self) -> "Mask":
        """The weights that were not chosen, of the parameters that are listed; one that is not listed stays frozen."""
        about = Provenance(f"not {_term(self)}", self.provenance.model, options=self.provenance.as_dict())
        return Mask({name: invert(self.packed[name], n) for name, n in self._sizes().items()}, self.shapes, about)

    def __and__(self, other: "Mask") -> "Mask":
        """The weights chosen in both. A parameter that only one of them lists is frozen in the other, so it is dropped.

        ~(a & b) == ~a | ~b and ~(a | b) == ~a & ~b therefore hold only where both list the same parameters.

        Raises: MismatchError for masks of two models; ShapeError for a parameter of two shapes.
        """
        self._check_fellow(other)
        return self._joined(other, "and", {name: self.packed[name] & other.packed[name] for name in self if name in other})

    def __or__(self, other: "Mask") -> "Mask":
        """The weights chosen in either. A parameter that only one of them lists is frozen in the other, so it is kept as it is.

        Raises: MismatchError for masks of two models; ShapeError for a parameter of two shapes.
        """
        self._check_fellow(other)
        both = {name: self.packed[name] | other.packed[name] for name in self if name in other}
        return self._joined(other, "or", {**self.packed, **other.packed, **both})

    def _joined(self, other: "Mask", word: str, packed: Mapping[str, Tensor]) -> "Mask":
        known = {**self.shapes, **other.shapes}
        shapes = {name: known[name] for name in packed}
        sources = {"left": self.provenance.as_dict(), "right": other.provenance.as_dict()}
        about = Provenance(f"{_term(self)} {word} {_term(other)}", self.provenance.model, options=sources)
        return Mask(packed, shapes, about)

    def _check_fellow(self, other: "Mask") -> None:
        if self.provenance.model != other.provenance.model:
            raise MismatchError(
                f"masks: one was made for model {self.provenance.model[:12]}, the other for {other.provenance.model[:12]}. "
                "Two masks can be combined or compared only if both belong to one model."
            )
        for name in self:
            if name in other and tuple(self.shapes[name]) != tuple(other.shapes[name]):
                raise ShapeError(f"masks: {name} is {self.shapes[name]} in one, {other.shapes[name]} in the other.")

    def jaccard(self, other: "Mask") -> float:
        """How much two masks agree: |a and b| / |a or b| in float64, 0 (nothing shared) to 1 (the same weights).

        Two random masks of share p have about p / (2 - p), not 0: compare with `matched_random`.

        Raises: DataError if neither chooses a weight, where the ratio is 0 / 0; MismatchError, ShapeError as for `&`.
        """
        self._check_fellow(other)
        shared = sum(popcount(self.packed[name] & other.packed[name]) for name in self if name in other)
        either = self.count + other.count - shared
        if either == 0:
            raise DataError("Mask.jaccard: neither mask chooses a weight, so there is nothing to agree on.")
        return shared / either

    def matched_random(self, *, seed: int) -> "Mask":
        """The control: as many weights in every tensor as here, chosen uniformly without replacement."""
        source = generator(seed)
        bits = {name: _drawn(prod(self.shapes[name]), count, source) for name, count in self.counts().items()}
        about = Provenance("matched_random", self.provenance.model, options=self.provenance.as_dict(), seed=seed)
        return Mask(bits, self.shapes, about)

    def check(self, fingerprint: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """MismatchError or ShapeError unless this mask was made for the model with that fingerprint and those parameters."""
        if self.provenance.model != fingerprint:
            raise MismatchError(
                f"mask: made for model {self.provenance.model[:12]}, but this model is {fingerprint[:12]}. "
                "Compute the scores on this model, or load the one the mask belongs to."
            )
        for name in self:
            if name not in shapes:
                raise unknown("parameter in the mask", name, shapes)
            if tuple(shapes[name]) != tuple(self.shapes[name]):
                raise ShapeError(f"mask: {name} is {self.shapes[name]}, the model's is {tuple(shapes[name])}.")

    def by_module(self) -> "pd.DataFrame":
        """Per tensor: weights, chosen, share (NaN where there is no weight)."""
        import pandas as pd

        counts, sizes = self.counts(), self._sizes()
        rows = [(n, layer_of(n), sizes[n], c, c / sizes[n] if sizes[n] else float("nan")) for n, c in counts.items()]
        return pd.DataFrame(rows, columns=["parameter", "layer", "weights", "chosen", "share"])

    def _shares(self, key: Callable[[str], str]) -> dict[str, float]:
        return pooled(self.counts(), self._sizes(), key)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Chosen share of every module kind as matplotlib bars, with a line at the share a random choice would have.

        Raises: DataError if the mask lists no weight.
        """
        import matplotlib.pyplot as plt

        if not self.n_weights:
            raise DataError("Mask.plot: the mask lists no weight, so there is no share to draw.")
        place = places(self)
        shares = self._shares(lambda name: place[name].kind)
        if ax is None:
            ax = plt.subplots(figsize=(6, 1 + 0.24 * len(shares)))[1]
        ax.barh(list(shares), list(shares.values()), color="#4477aa")
        ax.axvline(self.count / self.n_weights, color="black", linestyle="--", linewidth=1, label="as at random")
        ax.invert_yaxis()
        ax.set_xlabel("chosen share")
        ax.tick_params(axis="y", labelsize=7)
        ax.legend(fontsize=7)
        return ax

    def pictures(self) -> list[Markup]:
        """Chosen share by module kind, and by layer if there are several, against a random choice: static bars, <svg> each."""
        if not self.n_weights:
            return []
        place, chance = places(self), self.count / self.n_weights
        kinds = self._shares(lambda name: place[name].kind)
        layers = self._shares(lambda name: place[name].layer)
        pictures = [_share_bars(kinds, "chosen share by module", chance)]
        if len(layers) > 1:
            ordered = {layer: layers[layer] for layer in sorted(layers, key=by_number)}
            pictures.append(_share_bars(ordered, f"chosen share by layer ({OUTSIDE}: outside the layers)", chance))
        return pictures

    def _repr_html_(self) -> str:
        if not self.n_weights:
            return str(tag("p", repr(self)))
        top = self.by_module().nlargest(12, "share")[["parameter", "weights", "chosen", "share"]].itertuples(index=False)
        listed = [(name, f"{n:,}", f"{chosen:,}", percent(share)) for name, n, chosen, share in top]
        return str(
            tag("div", tag("p", repr(self)), *self.pictures(), table(["largest share", "weights", "chosen", "share"], listed))
        )

    def save(self, path: str | Path) -> None:
        """Write safetensors: one bit a weight."""
        about: dict[str, Any] = {"kind": "mask", "provenance": self.provenance.as_dict(), "shapes": dict(self.shapes)}
        save_tensors(path, self.packed, about)

    @classmethod
    def load(cls, path: str | Path) -> "Mask":
        """Read what `save` wrote."""
        packed, about = load_tensors(path, "mask")
        shapes = {name: tuple(about["shapes"][name]) for name in packed}
        return cls(packed, shapes, Provenance(**about["provenance"]))


def _drawn(n: int, count: int, source: torch.Generator) -> UInt8[Tensor, "bytes"]:
    """Packed bits of `count` of `n`, uniformly without replacement, in memory for a chunk and the bits.

    How many fall into each chunk is hypergeometric (NumPy's, for less than 10^9 weights a tensor); inside a chunk they are the
    first of a permutation.
    """
    packed = torch.zeros(n_bytes(n), dtype=torch.uint8)
    draw = np.random.default_rng(int(torch.randint(1 << 62, (1,), generator=source))) if n > CHUNK else None
    for first in range(0, n, CHUNK):
        size = min(CHUNK, n - first)
        rest = n - first - size
        mine = count if draw is None or not rest else int(draw.hypergeometric(size, rest, count))
        flat = torch.zeros(size, dtype=torch.bool)
        flat[torch.randperm(size, generator=source)[:mine]] = True
        packed[first // 8 : first // 8 + n_bytes(size)] = pack(flat)
        count -= mine
    return packed


def _term(mask: Mask) -> str:
    """The method's name inside a longer one, in parentheses if it is several words."""
    method = mask.provenance.method
    return f"({method})" if " " in method else method


def _share_bars(shares: Mapping[str, float], label: str, chance: float) -> Markup:
    rule = "a random choice of the same size:"
    return bars(list(shares), list(shares.values()), label=label, line=chance, line_label=rule, write=percent)
