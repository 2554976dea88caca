"""Components: one number for every head, neuron or residual site, with its interval and how far to trust it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from workbench.core.errors import DataError, InputError, ShapeError, unknown
from workbench.core.numerics import check_finite
from workbench.core.records import Provenance
from workbench.core.statistics import LEVEL, RESAMPLES
from workbench.core.store import load_tensors, save_tensors

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# kind → the site its [layer, index] grid is made of, and what the index counts
GRIDS = {
    "head": ("attn.hook_z", "head"),
    "neuron": ("mlp.post", "neuron"),
    "resid": ("resid_pre", "position from the end"),
    "writer": ("attn.hook_z", "head"),
}
OUTSIDE = -1  # layer of what lies outside the blocks, and index of what is the only one of its layer
_CHUNK = 1 << 22  # resampled means held at once


class Place(NamedTuple):
    """Where a component is: layer from 0; index = head, neuron, or position from the end (-1 is the last token)."""

    layer: int
    index: int


@dataclass(frozen=True)
class Agreement:
    """How well an estimate ranks components, against patching each of a sample for real.

    spearman: rank correlation of the estimates with `effects`; NaN where one of them is constant, and `note` says so.
    n: sampled components, one drawn from each of n equal stretches of the ranking.   places: which.
    effects: their true effects, means over pairs in the record's unit.
    """

    spearman: float
    n: int
    places: tuple[Place, ...]
    effects: tuple[float, ...]
    note: str = ""

    def __str__(self) -> str:
        shown = f"{self.spearman:.3f}" if self.spearman == self.spearman else f"undefined ({self.note})"
        sample = "1 component" if self.n == 1 else f"{self.n} components, spread evenly over the ranking"
        return f"Spearman with true patching {shown} on {sample}"


@dataclass(frozen=True, eq=False)
class Components:
    """One value for every component, a mean over pairs (or needles) with its 95 % bootstrap interval (NaN for one pair).

    kind: "head", "neuron", "resid" (residual sites), or "writer": all that is added to the residual stream.
    site, layer, index: where each component is; site by canonical name without the layer.   value, low, high: float64.
    n: pairs behind each value.   unit, direction: of the values.   agreement: with true patching; None if not checked.
    """

    kind: str
    site: tuple[str, ...]
    layer: Int[np.ndarray, "component"]
    index: Int[np.ndarray, "component"]
    value: Float[np.ndarray, "component"]
    low: Float[np.ndarray, "component"]
    high: Float[np.ndarray, "component"]
    n: Int[np.ndarray, "component"]
    unit: str
    direction: str
    provenance: Provenance
    agreement: Agreement | None = None

    def __post_init__(self) -> None:
        if self.kind not in GRIDS:
            raise unknown("kind of component", self.kind, GRIDS)
        sizes = {len(x) for x in (self.site, self.layer, self.index, self.value, self.low, self.high, self.n)}
        if len(sizes) != 1 or sizes == {0}:
            raise ShapeError(f"Components: columns have lengths {sorted(sizes)}; expected one length, at least 1.")

    @classmethod
    def of(
        cls,
        kind: str,
        site: Sequence[str],
        places: Sequence[Place],
        effects: Float[np.ndarray, "pair component"],
        *,
        unit: str,
        direction: str,
        provenance: Provenance,
        agreement: Agreement | None = None,
        seed: int = 0,
    ) -> "Components":
        """Means over pairs with their intervals.

        Args:
            effects: one value a pair and component; NaN where a pair does not have the component (a position before its start).
            seed: of the bootstrap; the intervals are those of `core.statistics.mean_estimate` with this seed.
        Raises: DataError if a component has no pair; ShapeError if the columns differ in length.
        """
        value, low, high, n = _estimates(effects, seed)
        layer, index = np.array(places, dtype=np.int64).reshape(-1, 2).T
        return cls(kind, tuple(site), layer, index, value, low, high, n, unit, direction, provenance, agreement)

    def __len__(self) -> int:
        return len(self.site)

    @property
    def places(self) -> list[Place]:
        """(layer, index) of every component, in order."""
        return [Place(int(layer), int(index)) for layer, index in zip(self.layer, self.index, strict=True)]

    @property
    def rows(self) -> list[int]:
        """Layers of the grid `values`."""
        return sorted({int(layer) for layer in self.layer[self._in_grid]})

    @property
    def columns(self) -> list[int]:
        """Indices of the grid `values`."""
        return sorted({int(index) for index in self.index[self._in_grid]})

    @property
    def values(self) -> Float[np.ndarray, "layer index"]:
        """The values by `rows` and `columns`, NaN where there is no such component; of a "writer" record the heads."""
        grid = np.full((len(self.rows), len(self.columns)), np.nan)
        at = np.searchsorted(self.rows, self.layer[self._in_grid]), np.searchsorted(self.columns, self.index[self._in_grid])
        grid[at] = self.value[self._in_grid]
        return grid

    def top(self, k: int) -> "Components":
        """The k components of largest absolute value, largest first; equal ones in the record's order."""
        if type(k) is not int or not 1 <= k <= len(self):
            raise InputError(f"Components.top: k is {k!r}, expected 1 to {len(self)}, the number of components.")
        return self._take(np.argsort(-np.abs(self.value), kind="stable")[:k])

    def frame(self) -> "pd.DataFrame":
        """site, layer, index, value, low, high, n; largest absolute value first. No layer or index is <NA>."""
        import pandas as pd

        found = self._take(np.argsort(-np.abs(self.value), kind="stable"))
        place = {name: pd.array(getattr(found, name), dtype="Int64") for name in ("layer", "index")}
        place["layer"][found.layer == OUTSIDE] = pd.NA
        place["index"][(found.index == OUTSIDE) & (self.kind != "resid")] = pd.NA
        numbers = {name: getattr(found, name) for name in ("value", "low", "high", "n")}
        return pd.DataFrame({"site": list(found.site), **place, **numbers})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Heat map of layers by heads (or positions), around zero if a value is negative; of neurons the largest a layer."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(7, 4))[1] if ax is None else ax
        ax.set_title(f"{self.provenance.method} ({self.unit})")
        grid = self.values
        if self.kind == "neuron":
            ax.bar([str(layer) for layer in self.rows], np.nanmax(np.abs(grid), axis=1), color="#4477aa")
            ax.set_xlabel("layer")
            ax.set_ylabel("largest absolute value")
            return ax
        bound = float(np.nanmax(np.abs(grid))) or 1.0  # all zero: any scale shows it
        colors, low = ("RdBu_r", -bound) if self._signed else ("Oranges", 0.0)
        image = ax.imshow(grid, cmap=colors, vmin=low, vmax=bound, aspect="auto", interpolation="nearest")
        plt.colorbar(image, ax=ax)
        ax.set_xticks(range(len(self.columns)), [str(c) for c in self.columns], fontsize=7)
        ax.set_yticks(range(len(self.rows)), [str(r) for r in self.rows], fontsize=7)
        ax.set_xlabel(GRIDS[self.kind][1])
        ax.set_ylabel("layer")
        return ax

    def __repr__(self) -> str:
        checked = str(self.agreement) if self.agreement else "not checked against true patching"
        said = f", {self.direction}" if self.direction else ""
        return f"Components({self.provenance.method!r}, {len(self)} x {self.kind}, {self.unit}{said}; {checked})"

    def _repr_html_(self) -> str:
        table = self.frame().head(12).to_html(escape=True, index=False, float_format="%.3g")
        return f"<p>{escape(repr(self))}</p>{self._picture()}{table}"

    def save(self, path: str | Path) -> None:
        """Write safetensors, exactly."""
        names = sorted(set(self.site))
        codes = np.array([names.index(site) for site in self.site], dtype=np.int64)
        columns = {name: getattr(self, name) for name in ("layer", "index", "value", "low", "high", "n")}
        about = {
            "kind": "components",
            "components": {"kind": self.kind, "sites": names, "unit": self.unit, "direction": self.direction},
            "agreement": self.agreement and {**asdict(self.agreement), "spearman": _or_none(self.agreement.spearman)},
            "provenance": self.provenance.as_dict(),
        }
        save_tensors(path, {name: torch.from_numpy(column) for name, column in {"site": codes, **columns}.items()}, about)

    @classmethod
    def load(cls, path: str | Path) -> "Components":
        """Read what `save` wrote."""
        tensors, about = load_tensors(path, "components")
        head, checked = about["components"], about["agreement"]
        columns = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
        site = tuple(head["sites"][code] for code in columns.pop("site"))
        rest = {"provenance": Provenance(**about["provenance"]), "agreement": checked and _agreement(checked)}
        return cls(head["kind"], site, **columns, unit=head["unit"], direction=head["direction"], **rest)

    @property
    def _in_grid(self) -> np.ndarray:
        return np.array([site == GRIDS[self.kind][0] for site in self.site])

    @property
    def _signed(self) -> bool:
        return bool((self.value < 0).any())

    def _take(self, order: Int[np.ndarray, "chosen"]) -> "Components":
        columns = {name: getattr(self, name)[order] for name in ("layer", "index", "value", "low", "high", "n")}
        return replace(self, site=tuple(self.site[i] for i in order), **columns)

    def _picture(self) -> str:
        """The grid as a heat map; for neurons, of which there are thousands a layer, a table of layers."""
        from workbench.core.picture import heat_map

        if self.kind != "neuron":
            rows, columns = [f"layer {row}" for row in self.rows], [str(column) for column in self.columns]
            label = f"{self.provenance.method}, {self.unit}"
            return str(heat_map(rows, columns, self.values, label=label, signed=self._signed, across=GRIDS[self.kind][1]))
        import pandas as pd

        size = np.abs(self.values)
        layers = pd.DataFrame({"layer": self.rows, "mean |value|": np.nanmean(size, 1), "largest |value|": np.nanmax(size, 1)})
        return layers.to_html(escape=True, index=False, float_format="%.3g")


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if value == value else None


def _agreement(said: dict) -> Agreement:
    spearman = float("nan") if said["spearman"] is None else said["spearman"]
    return Agreement(spearman, said["n"], tuple(Place(*p) for p in said["places"]), tuple(said["effects"]), said["note"])


def _estimates(effects: Float[np.ndarray, "pair component"], seed: int) -> tuple[np.ndarray, ...]:
    """Mean, low, high and n of every column over the pairs that have it.

    Columns with the same pairs share the resamples, so a resample is one matrix product: counts [resample pair] x effects.
    """
    have = ~np.isnan(effects)
    check_finite("Components: effects", torch.as_tensor(effects[have]))
    if not have.any(axis=0).all():
        raise DataError("Components: a component was measured on no pair, so it has no value. Leave it out.")
    value, low, high = (np.empty(effects.shape[1]) for _ in range(3))
    patterns, which = np.unique(have, axis=1, return_inverse=True)
    for k, pattern in enumerate(patterns.T):
        columns, used = np.flatnonzero(which == k), np.flatnonzero(pattern)
        drawn = np.random.default_rng(seed).integers(0, len(used), size=(RESAMPLES, len(used)))
        share = np.stack([np.bincount(row, minlength=len(used)) for row in drawn]) / len(used)
        for part in np.array_split(columns, -(-len(columns) * RESAMPLES // _CHUNK)):
            sample = effects[np.ix_(used, part)]
            value[part] = sample.mean(axis=0)
            if len(used) == 1:  # resamples of one pair are that pair: no interval, rather than one without a width
                low[part] = high[part] = np.nan
                continue
            low[part], high[part] = np.quantile(share @ sample, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return value, low, high, have.sum(axis=0)
