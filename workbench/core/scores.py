"""Scores: one number for every weight of a model, by Hugging Face parameter name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from workbench.core.errors import DataError, InputError, ShapeError, unknown
from workbench.core.mask import Mask
from workbench.core.names import OUTSIDE, Grid, layer_of, module_grid
from workbench.core.numerics import check_finite
from workbench.core.picture import Tint, heat_map, table, tint
from workbench.core.records import Provenance
from workbench.core.scopes import pattern, select, select_pattern
from workbench.core.store import load_tensors, save_tensors
from workbench.core.svg import number, tag
from workbench.core.topk import CHUNK

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize


@dataclass(frozen=True, eq=False)
class Scores:
    """A score for every weight; higher means "choose this weight first".

    tensors: by HF parameter name, each of its parameter's shape, float32 or bfloat16.
    transposed: names of the matrices stored [in, out] (GPT-2's Conv1D), whose rows are the stored columns.
    """

    tensors: Mapping[str, Tensor]
    provenance: Provenance
    transposed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.tensors:
            raise DataError("Scores: there is no tensor; expected at least one, by parameter name.")
        for name, tensor in self.tensors.items():
            if tensor.dtype not in (torch.float32, torch.bfloat16):
                raise InputError(f"Scores: {name} is {tensor.dtype}; expected float32 or bfloat16.")
        for name in self.transposed:
            if self[name].ndim != 2:
                raise ShapeError(f"Scores: transposed names {name}, which is {tuple(self[name].shape)}; expected a matrix.")

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

    @property
    def coverage(self) -> float | None:
        """Share of the model's weights that have a score, as the method noted it; None if it did not."""
        return self.provenance.notes.get("coverage")

    def __repr__(self) -> str:
        part = "" if self.coverage is None or self.coverage >= 1 else f", {self.coverage:.2%} of the model's weights"
        return f"Scores({self.provenance.method!r}, {self.n_weights:,} weights in {len(self.tensors)} tensors{part})"

    def mask(self, fraction: float | None = None, *, count: int | None = None, scope: str = "global") -> Mask:
        """The highest-scored weights as a Mask, exactly `count` or round(fraction x weights) of them.

        Args:
            fraction: share of the scored weights to choose, above 0 and at most 1. Give this or `count`.
            count: number of weights to choose, 1 to all.
            scope: what competes with what: all weights ("global"), those of one layer, one tensor, or one row (the weights
                of one output of a linear map; a vector is one row, more than two axes have rows along the last). In the
                last three each group gives its own share, rounded down; the remainder goes, one each, to the first groups,
                and among rows is spread evenly. "2:4" instead takes the 2 highest of every 4 consecutive weights of a row
                (any N:M; a row's last, shorter group of r gives N * r // M), and then neither fraction nor count is given.
        Raises: InputError for a bad fraction, count or scope; NumericsError if a score is NaN.

        Ties are broken by position (see `core/topk.py`), so the count is hit exactly. WAGLE's code ranks with two argsorts.
        """
        n_of_m = pattern(scope)
        if n_of_m is not None:
            if fraction is not None or count is not None:
                raise InputError(f"Scores.mask: scope {scope!r} says how many weights by itself; give no fraction and no count.")
            self._check_told_apart()
            return self._as_mask(select_pattern(self.tensors, *n_of_m, transposed=self.transposed), None, None, scope)
        if fraction is not None and count is None:
            return self.masks([fraction], scope=scope)[0]
        if count is None or fraction is not None:
            raise InputError("Scores.mask: give fraction or count, one of them.")
        if not isinstance(count, int) or not 1 <= count <= self.n_weights:
            raise InputError(f"Scores.mask: count is {count}, expected 1 to {self.n_weights:,}, a whole number.")
        self._check_told_apart()
        chosen = select(self.tensors, [count], scope=scope, transposed=self.transposed)[0]
        return self._as_mask(chosen, None, count, scope)

    def masks(self, fractions: Sequence[float], *, scope: str = "global") -> list[Mask]:
        """`mask` for every fraction, in the order given; the scores are read once for all of them (for scope "row", once each).

        Args: fractions, scope: as for `mask`; no N:M.
        Raises: as `mask`.
        """
        if pattern(scope) is not None:
            raise InputError(f"Scores.masks: scope {scope!r} has one size only; use Scores.mask(scope={scope!r}).")
        total = self.n_weights
        for fraction in fractions:
            if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
                raise InputError(f"Scores.mask: fraction is {fraction}, expected above 0 and at most 1.")
            if round(fraction * total) == 0:
                raise InputError(f"Scores.mask: fraction {fraction} of {total:,} weights is none; give count, or a larger share.")
        self._check_told_apart()
        wanted = [round(fraction * total) for fraction in fractions]
        chosen = select(self.tensors, wanted, scope=scope, transposed=self.transposed)
        return [self._as_mask(bits, fraction, None, scope) for bits, fraction in zip(chosen, fractions, strict=True)]

    def _check_told_apart(self) -> None:
        """InputError if all scores are equal: a mask would be a choice by position."""
        some = [tensor.reshape(-1) for tensor in self.tensors.values() if tensor.numel()]
        if self.n_weights > 1 and all(bool((scores == some[0][:1]).all()) for scores in some):
            raise InputError(
                f"Scores.mask: all {self.n_weights:,} {self.provenance.method} scores are {float(some[0][0]):g}, so that a mask "
                "would be a choice by position. Has the loss a gradient at these weights?"
            )

    def _as_mask(self, packed: Mapping[str, Tensor], fraction: float | None, count: int | None, scope: str) -> Mask:
        options = {"fraction": fraction, "count": count, "scope": scope, "scores": self.provenance.as_dict()}
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        return Mask(packed, shapes, Provenance(self.provenance.method, self.provenance.model, options=options))

    def by_module(self) -> "pd.DataFrame":
        """Per tensor: number of weights; mean, standard deviation, smallest and largest score (float64, chunk by chunk)."""
        import pandas as pd

        rows = [(name, layer_of(name), tensor.numel(), *_summary(tensor)) for name, tensor in self.tensors.items()]
        return pd.DataFrame(rows, columns=["parameter", "layer", "weights", "mean", "std", "min", "max"])

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Mean score of every tensor, module kinds by layers, as a matplotlib heat map.

        Colors are centered on zero if scores are signed, and logarithmic where a few means dwarf the others.

        Raises: DataError if no mean is finite.
        """
        import matplotlib.pyplot as plt

        frame = self.by_module()
        grid = _grid(frame)
        if ax is None:
            ax = plt.subplots(figsize=(min(14.0, 3 + 0.28 * len(grid.columns)), 1.2 + 0.24 * len(grid.rows)))[1]
        signed, colors = _signed(frame), tint(grid.values, signed=_signed(frame))
        if colors is None:
            raise DataError("Scores.plot: no tensor has a finite mean score, so there is nothing to draw.")
        norm = _norm(colors)
        drawn = ax.imshow(_drawable(grid.values, colors), aspect="auto", cmap="RdBu_r" if signed else "Oranges", norm=norm)
        ax.set_facecolor("0.85")  # an absent cell is not a zero
        ax.figure.colorbar(drawn, ax=ax, label=f"mean {self.provenance.method} score")
        ax.set_yticks(range(len(grid.rows)), grid.rows, fontsize=7)
        every = -(-len(grid.columns) // 16)
        ax.set_xticks(range(0, len(grid.columns), every), grid.columns[::every], fontsize=7)
        ax.set_xlabel("layer")
        return ax

    def picture(self) -> Markup:
        """Mean score of every module kind in every layer as a static heat map: one <svg>."""
        frame = self.by_module()
        label = f"mean {self.provenance.method} score of a weight ({OUTSIDE}: outside the layers)"
        grid = _grid(frame)
        apart = len(grid.columns) > 1 and grid.columns[-1] == OUTSIDE
        return heat_map(*grid, label=label, signed=_signed(frame), across="layer", apart=apart)

    def _repr_html_(self) -> str:
        top = self.by_module().nlargest(12, "mean")
        rows = [
            (name, f"{n:,}", *(number(value) for value in values))
            for name, n, *values in top[["parameter", "weights", "mean", "std", "min", "max"]].itertuples(index=False)
        ]
        listed = table(["highest mean", "weights", "mean", "std", "min", "max"], rows)
        return str(tag("div", tag("p", repr(self)), self.picture(), listed))

    def save(self, path: str | Path) -> None:
        """Write safetensors."""
        for name, tensor in self.tensors.items():
            check_finite(f"Scores.save: {name}", tensor)
        about = {"kind": "scores", "provenance": self.provenance.as_dict(), "transposed": sorted(self.transposed)}
        save_tensors(path, self.tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read what `save` wrote; memory-mapped, so nothing is read before it is used."""
        tensors, about = load_tensors(path, "scores")
        # files of version 0.1.0 do not say which matrices are transposed
        return cls(tensors, Provenance(**about["provenance"]), frozenset(about.get("transposed", ())))


def _summary(tensor: Tensor) -> tuple[float, float, float, float]:
    """Mean, standard deviation, smallest and largest in float64; NaN for a tensor without entries."""
    n = tensor.numel()
    if n == 0:
        return float("nan"), float("nan"), float("nan"), float("nan")
    chunks = tensor.reshape(-1).split(CHUNK)
    mean = sum(float(chunk.sum(dtype=torch.float64)) for chunk in chunks) / n
    square = sum(float((chunk.double() - mean).square().sum()) for chunk in chunks) / n
    return mean, square**0.5, float(min(chunk.min() for chunk in chunks)), float(max(chunk.max() for chunk in chunks))


def _grid(frame: "pd.DataFrame") -> Grid:
    sizes = dict(zip(frame["parameter"], frame["weights"], strict=True))
    totals = {name: mean * sizes[name] for name, mean in zip(frame["parameter"], frame["mean"], strict=True) if sizes[name]}
    return module_grid(totals, sizes)


def _norm(colors: Tint) -> "Normalize":
    """The matplotlib norm of the same colors as the SVG's."""
    from matplotlib.colors import LogNorm, Normalize, SymLogNorm

    if not colors.log:
        return Normalize(colors.low, colors.limit)
    if colors.signed:
        return SymLogNorm(colors.low, vmin=-colors.limit, vmax=colors.limit)
    return LogNorm(colors.low, colors.limit)


def _drawable(values: np.ndarray, colors: Tint) -> np.ndarray:
    """Absent cells masked; sizes below a logarithmic scale moved to its start, where LogNorm would leave a hole for 0."""
    lifted = np.maximum(values, colors.low) if colors.log and not colors.signed else values
    return np.ma.masked_invalid(lifted)


def _signed(frame: "pd.DataFrame") -> bool:
    return bool((frame["min"] < 0).any())
