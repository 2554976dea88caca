"""Scores and Mask: one number, or one bit, for every weight of a model, by Hugging Face parameter name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from workbench.core.errors import InputError, MismatchError, ShapeError, unknown
from workbench.core.numerics import check_finite, generator
from workbench.core.records import Provenance
from workbench.core.store import load_tensors, save_tensors
from workbench.core.topk import choose

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SCOPES = ("global", "layer", "tensor")
_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def pack(bits: Bool[Tensor, "..."]) -> UInt8[Tensor, "bytes"]:
    """Eight bits a byte, lowest bit first; the last byte is filled with zeros."""
    flat = bits.reshape(-1).to("cpu", torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (padded * _BITS).sum(-1, dtype=torch.uint8)


def unpack(packed: UInt8[Tensor, "bytes"], shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    """The inverse of `pack`."""
    return ((packed[:, None] & _BITS) != 0).view(-1)[: prod(shape)].view(shape)


def layer_of(name: str) -> str:
    """The part of a parameter name up to its layer number ("model.layers.3"); the whole name outside the layers."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return name


@dataclass(frozen=True, eq=False)
class Scores:
    """A score for every weight; higher means "choose this weight first".

    tensors: by HF parameter name, each of its parameter's shape, float32 or bfloat16.
    """

    tensors: Mapping[str, Tensor]
    provenance: Provenance

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.dtype not in (torch.float32, torch.bfloat16):
                raise InputError(f"Scores: {name} is {tensor.dtype}; expected float32 or bfloat16.")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise unknown("parameter", name, self.tensors)
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    @property
    def n_weights(self) -> int:
        """How many weights have a score."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def __repr__(self) -> str:
        return f"Scores({self.provenance.method!r}, {self.n_weights:,} weights in {len(self.tensors)} tensors)"

    def mask(self, fraction: float | None = None, *, count: int | None = None, scope: str = "global") -> "Mask":
        """The highest-scored weights as a Mask, exactly `count` or round(fraction x weights) of them.

        Args:
            fraction: share of the weights to choose, 0 to 1. Give this or `count`.
            count: number of weights to choose.
            scope: what competes with what: all weights ("global"), those of one layer, or those of one tensor. In the
                last two each group gives its own share, rounded down, and the remainder goes to the first groups.
        Raises: InputError for a bad fraction, count or scope.

        Ties are broken by position (see `core/topk.py`), so the count is hit exactly. WAGLE's code ranks with two argsorts.
        """
        if (fraction is None) == (count is None):
            raise InputError("Scores.mask: give fraction or count, one of them.")
        if scope not in SCOPES:
            raise unknown("scope", scope, SCOPES)
        if fraction is not None and not 0 <= fraction <= 1:
            raise InputError(f"Scores.mask: fraction is {fraction}, expected 0 to 1.")
        total = self.n_weights
        wanted = round(fraction * total) if fraction is not None else int(count or 0)
        if not 0 <= wanted <= total:
            raise InputError(f"Scores.mask: count is {wanted:,}, expected 0 to {total:,}.")
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            key = {"global": "", "layer": layer_of(name), "tensor": name}[scope]
            groups.setdefault(key, {})[name] = tensor
        sizes = [sum(t.numel() for t in group.values()) for group in groups.values()]
        chosen = {
            name: bits for group, k in zip(groups.values(), _quota(sizes, wanted), strict=True) for name, bits in choose(group, k)
        }
        options = {"fraction": fraction, "count": count, "scope": scope, "scores": self.provenance.as_dict()}
        about = Provenance(self.provenance.method, self.provenance.model, options=options)
        return Mask.of({name: chosen[name] for name in self.tensors}, about)

    def by_module(self) -> "pd.DataFrame":
        """Per tensor: number of weights, mean, standard deviation and largest score (float64)."""
        import pandas as pd

        rows = []
        for name, tensor in self.tensors.items():
            wide = tensor.double()
            rows.append(
                (name, layer_of(name), tensor.numel(), float(wide.mean()), float(wide.std(correction=0)), float(wide.max()))
            )
        return pd.DataFrame(rows, columns=["parameter", "layer", "weights", "mean", "std", "max"])

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Mean score of every tensor as horizontal bars, in the model's order."""
        import matplotlib.pyplot as plt

        frame = self.by_module()
        if ax is None:
            ax = plt.subplots(figsize=(7, 0.22 * len(frame) + 1))[1]
        ax.barh(frame["parameter"], frame["mean"], color="#4477aa")
        ax.invert_yaxis()
        ax.set_xlabel(f"mean {self.provenance.method} score")
        ax.tick_params(axis="y", labelsize=7)
        return ax

    def _repr_html_(self) -> str:
        top = self.by_module().nlargest(12, "mean")
        return f"<p>{escape(repr(self))}</p>" + top.to_html(escape=True, index=False, float_format="%.3g")

    def save(self, path: str | Path) -> None:
        """Write safetensors."""
        for name, tensor in self.tensors.items():
            check_finite(f"Scores.save: {name}", tensor)
        save_tensors(path, self.tensors, {"kind": "scores", "provenance": self.provenance.as_dict()})

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read what `save` wrote; memory-mapped, so nothing is read before it is used."""
        tensors, about = load_tensors(path, "scores")
        return cls(tensors, Provenance(**about["provenance"]))


def _quota(sizes: list[int], wanted: int) -> list[int]:
    """Split `wanted` over groups in proportion to their sizes; the remainder goes to the first groups with room."""
    total = sum(sizes)
    shares = [size * wanted // total for size in sizes]
    for position, size in enumerate(sizes):
        if sum(shares) == wanted:
            break
        shares[position] += min(1, size - shares[position])
    return shares


@dataclass(frozen=True, eq=False)
class Mask:
    """One bit for every weight: true where it may change. A parameter that is not listed is frozen.

    packed: by HF parameter name, eight weights a byte (`pack`).   shapes: the parameters' shapes.
    """

    packed: Mapping[str, UInt8[Tensor, "bytes"]]
    shapes: Mapping[str, tuple[int, ...]]
    provenance: Provenance

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
        return {name: int(self[name].sum()) for name in self}

    @property
    def n_weights(self) -> int:
        """How many weights the mask speaks of."""
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def count(self) -> int:
        """How many weights are chosen."""
        return sum(self.counts().values())

    def __repr__(self) -> str:
        return f"Mask({self.count:,} of {self.n_weights:,} weights, {self.count / self.n_weights:.2%}, {self.provenance.method!r})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mask)
            and dict(self.shapes) == dict(other.shapes)
            and all(torch.equal(self.packed[name], other.packed[name]) for name in self)
        )

    def __invert__(self) -> "Mask":
        """The weights that were not chosen."""
        about = Provenance(f"not {self.provenance.method}", self.provenance.model, options=self.provenance.as_dict())
        return Mask.of({name: ~self[name] for name in self}, about)

    def matched_random(self, *, seed: int) -> "Mask":
        """The control: as many weights in every tensor as here, chosen uniformly without replacement."""
        source = generator(seed)
        bits: dict[str, Tensor] = {}
        for name, count in self.counts().items():
            flat = torch.zeros(prod(self.shapes[name]), dtype=torch.bool)
            flat[torch.randperm(len(flat), generator=source)[:count]] = True
            bits[name] = flat.view(self.shapes[name])
        about = Provenance("matched_random", self.provenance.model, options=self.provenance.as_dict(), seed=seed)
        return Mask.of(bits, about)

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
        """Per tensor: weights, chosen, share."""
        import pandas as pd

        rows = [(n, layer_of(n), prod(self.shapes[n]), c, c / prod(self.shapes[n])) for n, c in self.counts().items()]
        return pd.DataFrame(rows, columns=["parameter", "layer", "weights", "chosen", "share"])

    def _repr_html_(self) -> str:
        top = self.by_module().nlargest(12, "share")
        return f"<p>{escape(repr(self))}</p>" + top.to_html(escape=True, index=False, float_format="%.3g")

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
