"""One vector a text and site: activations pooled over the tokens while the model runs, for all layers in one pass.

    mean   f_i = (1/|T_i|) sum_{t in T_i} x_it          last   f_i = x_i,max T_i          max   f_ij = max_{t in T_i} x_itj

T_i are the tokens of row i from `start` on (bos=True: all of them), never padding. No activation outlives its hook; what is kept
is [n, d] a site and layer. Nothing behind the last site that was asked for is run, so never the output head.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.core.errors import DataError, InputError, NumericsError, unknown
from workbench.core.numerics import wide
from workbench.core.runtime import plan_memory, progress
from workbench.load.batches import Batch, Encoded, by_length, collate
from workbench.load.models import Model
from workbench.trace.forward import check_eval, logits
from workbench.trace.hooks import patch


@dataclass(frozen=True, eq=False)
class Features:
    """Pooled activations: `features["resid_post", 3]` is [n, d], float32 on the CPU, in the order of the rows.

    values: by (site, layer), sites by canonical name without the layer.   pool, bos: how the tokens were pooled.
    tokens: how many real tokens the model read.
    """

    values: dict[tuple[str, int], Tensor]
    pool: str
    bos: bool
    tokens: int

    def __getitem__(self, place: tuple[str, int]) -> Float[Tensor, "n d"]:
        if place not in self.values:
            raise unknown("features", str(place), map(str, self.values))
        return self.values[place]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        n = len(next(iter(self.values.values())))
        sites = ", ".join(dict.fromkeys(site for site, _ in self.values))
        return f"Features({n} rows, {sites} at {len(self)} places, {self.pool} over tokens)"


def features(
    model: Model,
    rows: Sequence[Encoded],
    *,
    sites: Sequence[str] = ("resid_post",),
    layers: Sequence[int] | None = None,
    pool: str = "mean",
    bos: bool = False,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Features:
    """Pooled activations of every row at every site of every layer, from one forward pass over the rows.

    Padding side and batch size change nothing beyond rounding. Sums are float32 (float64 of a float64 model).

    Args:
        rows: such as `load.texts.encode_texts` makes; those of `load.batches.encode_all` are pooled over their answers.
        sites: sites of a block, such as "resid_post", "mlp.post", "attn_out".
        layers: counted from 0; all without.
        pool: "mean", "last" or "max".
        bos: also pool the special tokens before `start`.
        batch_tokens: largest padded batch, in tokens.
    Raises: UnknownNameError for a site the model lacks or an unknown pool, before the first pass; InputError for a layer it lacks;
        DataError for no rows, or a row without a token to pool; NumericsError naming site, layer and row of a value that is NaN or
        infinite; MemoryPlanError if the result would not fit.
    """
    if pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    check_eval(model)
    places = _places(model, sites, layers)
    if not rows:
        raise DataError("features: there are no rows to read.")
    for row in rows:
        if not bos and row.start >= len(row.tokens):
            raise DataError(f"row {row.id!r}: none of its {len(row.tokens)} tokens lies behind the special ones; pass bos=True.")
    found: dict[tuple[str, int], Tensor] = {}
    for chosen in progress(list(by_length(rows, max_tokens=batch_tokens)), label="features", show=show):
        pooled = _read(model, collate([rows[i] for i in chosen], device=model.device), places, pool, bos)
        if not found:
            needed = 4 * len(rows) * sum(value.shape[-1] for value in pooled.values())
            cure = "Ask for fewer sites or layers, or read the rows in parts."
            plan_memory("features", needed, torch.device("cpu"), cure=cure)
            found = {place: torch.empty(len(rows), pooled[name].shape[-1]) for name, place in places.items()}
        for name, place in places.items():
            found[place][chosen] = _finite(pooled[name].float().cpu(), name, [rows[i] for i in chosen])
    return Features(found, pool, bos, sum(len(row.tokens) for row in rows))


def _places(model: Model, sites: Sequence[str], layers: Sequence[int] | None) -> dict[str, tuple[str, int]]:
    """Full name of every site → (site, layer), in the order of sites, then layers."""
    if isinstance(sites, str):
        raise InputError(f"features: sites must be a list of names, got the string {sites!r}. Write [{sites!r}].")
    asked = range(model.n_layers) if layers is None else layers
    if not sites or not asked:
        raise InputError("features: sites or layers is empty; name at least one of each.")
    found: dict[str, tuple[str, int]] = {}
    for site in sites:
        if site in ("embed", "ln_final", "unembed"):
            raise InputError(
                f"features: {site!r} is not a site of a block. Use resid_pre of layer 0, or resid_post of the last one."
            )
        for layer in asked:
            name = model.sites.at(site, layer=layer).name
            found[name] = (name.split(".", 2)[2], layer)
    return found


class _Enough(Exception):
    """Every site has been read; raised out of the model's forward pass."""


def _read(model: Model, batch: Batch, places: dict[str, tuple[str, int]], pool: str, bos: bool) -> dict[str, Tensor]:
    """The pooled activations of one batch, by full name of the site."""
    mask = batch.attention if bos else batch.answer
    kept: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[[Tensor], None]:
        def read(x: Tensor) -> None:
            kept[name] = POOLS[pool](x, mask)
            if len(kept) == len(places):
                raise _Enough

        return read

    with patch(model, {name: reader(name) for name in places}), torch.no_grad(), suppress(_Enough):
        logits(model, batch)  # which are never reached
    return kept


def _mean(x: Float[Tensor, "batch pos d"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch d"]:
    # filled, not multiplied by 0: what a model computes at padding may be NaN
    return wide(x).masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True)


def _last(x: Float[Tensor, "batch pos d"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch d"]:
    last = mask.long().cumsum(-1).argmax(-1)  # the first position where all of the row's tokens are counted
    return x[torch.arange(len(x), device=x.device), last]


def _max(x: Float[Tensor, "batch pos d"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch d"]:
    return x.masked_fill(~mask[..., None], -torch.inf).amax(1)


POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "last": _last, "max": _max}


def _finite(value: Float[Tensor, "batch d"], name: str, rows: Sequence[Encoded]) -> Float[Tensor, "batch d"]:
    """`value`, or NumericsError naming the site and the first row that is not finite."""
    good = torch.isfinite(value).all(-1)
    if not bool(good.all()):
        row = rows[int((~good).nonzero()[0])]
        raise NumericsError(
            f"features: {name} is NaN or infinite in row {row.id!r}. The weights may hold NaN, or half precision overflowed: "
            "load the model with dtype='float32'."
        )
    return value
