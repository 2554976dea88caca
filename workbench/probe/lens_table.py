"""LensTable: what a lens reads at every layer and position, and where the token stands that did follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from markupsafe import Markup
from torch import Tensor

from workbench.core.errors import DataError, InputError, unknown
from workbench.core.numerics import check_finite, wide
from workbench.core.picture import heat_map
from workbench.core.records import Provenance
from workbench.core.statistics import mean_estimate
from workbench.core.svg import number, shorten, tag
from workbench.probe.lens_text import show

if TYPE_CHECKING:
    import pandas as pd

NEXT = "next token"  # the target that every table has: what follows in the text
NONE = -1  # id of no token: nothing follows the last one
SHOWN = 40  # positions drawn at most; frame() has them all
_WORD = 14  # characters of a token in a cell
_HUE = "217,102,11"  # core.svg.ORANGE


@dataclass(frozen=True, eq=False)
class LensTable:
    """The distributions read from the residual stream, by layer and position, as far as they are kept.

    layers: "embed" (the stream before layer 0) and layer numbers.   positions: in the text, from 0.   tokens: text at each.
    words: text of every id in the table.   targets: name -> token id at each position, NONE where there is none.
    top_ids, top_logprob: the k most likely tokens, most likely first (of equal ones the lower id), and ln p, float64, nats.
    ranks, logprobs: of the targets; rank 1 is the most likely token, 1 + the number of tokens with a strictly larger logit.
    entropy: of the distribution read.   kl: KL(model's own || read), both in nats.
    """

    layers: tuple[str, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    words: dict[int, str]
    targets: dict[str, Int[np.ndarray, "pos"]]
    top_ids: Int[np.ndarray, "layer pos k"]
    top_logprob: Float[np.ndarray, "layer pos k"]
    ranks: Int[np.ndarray, "layer target pos"]
    logprobs: Float[np.ndarray, "layer target pos"]
    entropy: Float[np.ndarray, "layer pos"]
    kl: Float[np.ndarray, "layer pos"]
    provenance: Provenance

    def rank(self, target: str | None = None) -> Float[np.ndarray, "layer pos"]:
        """Rank of the target by layer and position, 1 = most likely; NaN where there is none.

        Args: target: a name in `targets`; None is the target that was asked for, or else the token that follows.
        Raises: UnknownNameError for a target that was not asked for.
        """
        return self._where_any(self.ranks.astype(np.float64), target)

    def probability(self, target: str | None = None) -> Float[np.ndarray, "layer pos"]:
        """Probability of the target by layer and position; NaN where there is none. Args and errors as `rank`."""
        return self._where_any(np.exp(self.logprobs), target)

    def frame(self, target: str | None = None) -> "pd.DataFrame":
        """One line a layer and position: what is most likely there, the target's rank and ln p, entropy, KL."""
        import pandas as pd

        n_layers, n_positions = self.entropy.shape
        name = self._name(target)
        follows = [self.words.get(int(i), "") for i in self.targets[name]]
        which = list(self.targets).index(name)
        rank = pd.array(self.rank(name).ravel(), dtype="Float64").astype("Int64")
        return pd.DataFrame(
            {
                "layer": np.repeat(self.layers, n_positions),
                "position": list(self.positions) * n_layers,
                "token": list(self.tokens) * n_layers,
                "top": [self.words[int(i)] for i in self.top_ids[..., 0].ravel()],
                "probability": np.exp(self.top_logprob[..., 0]).ravel(),
                "target": follows * n_layers,
                "rank": rank,
                "logprob": np.where(np.isnan(self.rank(name)), np.nan, self.logprobs[:, which]).ravel(),
                "entropy": self.entropy.ravel(),
                "kl": self.kl.ravel(),
            }
        )

    def by_layer(self, target: str | None = None, *, seed: int = 0) -> "pd.DataFrame":
        """Per layer over positions: median rank, share ranked first, and mean ln p and KL with their 95 % intervals.

        The intervals are of a bootstrap over positions; those of one text depend on each other, so they are too narrow.

        Raises: DataError where no position has the target.
        """
        import pandas as pd

        name = self._name(target)
        have, which = self.targets[name] != NONE, list(self.targets).index(name)
        if not have.any():
            raise DataError("LensTable.by_layer: no token follows any of the positions kept; keep more, or give the lens a target.")
        rows = []
        for i, layer in enumerate(self.layers):
            rank, logprob = self.ranks[i, which, have], self.logprobs[i, which, have]
            said, kl = mean_estimate(logprob, seed=seed), mean_estimate(self.kl[i], seed=seed)
            row = {"layer": layer, "n": len(rank), "median_rank": float(np.median(rank)), "first": float((rank == 1).mean())}
            means = {"logprob": said.value, "logprob_low": said.low, "logprob_high": said.high}
            rows.append(row | means | {"kl": kl.value, "kl_low": kl.low, "kl_high": kl.high})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        said = self.provenance.options
        return (
            f"LensTable({self.provenance.method!r}, {len(self.layers)} layers x {len(self.positions)} positions, "
            f"{said['site']}, norm {said['norm']!r}, targets: {', '.join(self.targets)})"
        )

    def _repr_html_(self) -> str:
        """The top token in every cell, colored by its probability; below, the rank of the target."""
        name = self._name(None)
        last = slice(-SHOWN, None)
        columns = [show(token) for token in self.tokens[last]]
        unit = f"rank of {'the token that follows' if name == NEXT else show(name)}, 1 = most likely"
        ranks = heat_map([*self.layers], columns, self.rank(name)[:, last], label=unit, signed=False, across="after the token")
        return str(tag("div", self._table(name, columns), ranks))

    def _table(self, name: str, columns: list[str]) -> Markup:
        first = len(self.positions) - len(columns)
        head = tag("tr", tag("th", "layer"), *(tag("th", column, style="padding:2px 6px;text-align:left") for column in columns))
        body = [
            tag("tr", tag("th", layer), *(self._cell(i, j, int(self.targets[name][j])) for j in range(first, len(self.positions))))
            for i, layer in enumerate(self.layers)
        ]
        said = self.provenance.options
        which = "the token that follows" if name == NEXT else show(name)
        caption = (
            f"{self.provenance.method}, {said['site']}, norm {said['norm']}. In each cell the most likely token after the one on "
            f"top; the stronger the color, the higher its probability (0 to 1); underlined: {which}. “embed”: before layer 0."
        )
        if first:
            caption += f" The last {len(columns)} of {len(self.positions)} positions."
        style = "border-collapse:collapse;white-space:nowrap;font-size:12px"
        grid = tag("table", tag("thead", head), tag("tbody", *body), style=style)
        return tag("div", tag("p", caption), tag("div", grid, style="overflow-x:auto;margin-bottom:12px"))

    def _cell(self, i: int, j: int, target: int) -> Markup:
        top, share = self.top_ids[i, j], np.exp(self.top_logprob[i, j])
        says = ", ".join(f"{show(self.words[int(t)])} {number(float(p))}" for t, p in zip(top, share, strict=True))
        strength = 0.04 + 0.56 * float(share[0])  # text takes the page's color, which must stay readable on the full color
        style = f"padding:2px 6px;text-align:left;background:rgba({_HUE},{strength:.2f})"
        word = shorten(show(self.words[int(top[0])]), _WORD)
        inside = tag("u", word) if int(top[0]) == target else word
        return tag("td", inside, style=style, title=f"layer {self.layers[i]}, position {self.positions[j]}: {says}")

    def _name(self, target: str | None) -> str:
        """The target's key; None is the last, which is the one asked for."""
        name = list(self.targets)[-1] if target is None else target
        if name not in self.targets:
            raise unknown("target (pass target= to the lens)", name, self.targets)
        return name

    def _where_any(self, values: Float[np.ndarray, "layer target pos"], target: str | None) -> Float[np.ndarray, "layer pos"]:
        name = self._name(target)
        return np.where(self.targets[name] == NONE, np.nan, values[:, list(self.targets).index(name)])


def top_ids(logits: Float[Tensor, "*batch d_vocab"], k: int) -> Int[Tensor, "*batch k"]:
    """Ids of the k largest logits, largest first; of equal ones the lower id comes first, whatever the machine.

    In half precision many logits are equal, and torch.topk takes any of them.
    """
    least = logits.topk(k, dim=-1).values[..., -1:]
    above, level = logits > least, logits == least
    taken = above | (level & (level.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    ids = taken.nonzero()[:, -1].reshape(*logits.shape[:-1], k)  # in order of id
    return ids.gather(-1, logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices)


class Reading(NamedTuple):
    """One layer's part of a LensTable, whose arrays have these with the layer as first axis."""

    top_ids: Int[np.ndarray, "pos k"]
    top_logprob: Float[np.ndarray, "pos k"]
    ranks: Int[np.ndarray, "target pos"]
    logprobs: Float[np.ndarray, "target pos"]
    entropy: Float[np.ndarray, "pos"]
    kl: Float[np.ndarray, "pos"]


def reading(
    found: Float[Tensor, "pos d_vocab"], own: Float[Tensor, "pos d_vocab"], targets: Int[Tensor, "target pos"], k: int, layer: str
) -> Reading:
    """What is kept of one layer's logits.

    Args: own: ln p of the model itself, nats.   targets: ids; where one is NONE, id 0 stands in and is never shown.
    Raises: NumericsError naming the layer if a logit is not finite.
    """
    check_finite(f"lens at layer {layer}: logits", found)
    z = wide(found)
    logprob, top = z.log_softmax(-1), top_ids(z, k)
    at = targets.clamp_min(0).T
    ranks = torch.stack([(z > z.gather(-1, column[:, None])).sum(-1) + 1 for column in at.T])
    entropy = -(logprob.exp() * logprob).sum(-1, dtype=torch.float64)
    kl = (own.exp() * (own - logprob)).sum(-1, dtype=torch.float64)
    columns = (top, logprob.gather(-1, top).double(), ranks, logprob.gather(-1, at).T.double(), entropy, kl)
    return Reading(*(column.cpu().numpy() for column in columns))


def positions_of(positions: Sequence[int] | None, n: int) -> list[int]:
    """Positions from 0, in the order asked; None for all n of them. Raises: InputError for one that does not exist."""
    if positions is None:
        return list(range(n))
    wrong = next((p for p in positions if not -n <= p < n), None)
    if wrong is not None or not positions:
        raise InputError(f"lens: positions has {'nothing' if wrong is None else wrong}; the text has tokens 0 to {n - 1}.")
    return [p % n for p in positions]
