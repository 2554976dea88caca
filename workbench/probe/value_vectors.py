"""Which tokens every MLP value vector writes: its largest and smallest logits under the unembedding.

    mlp.out = sum_j m_j v_j + bias        l_j = W_U x_j,   x_j = v_j as the unembedding reads it (`norm`, see load/unembedding.py)

A neuron that fires (m_j > 0) raises the tokens at the top of l_j and lowers those at the bottom; in a gated MLP m_j can be
negative, and then it is the other way round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from workbench.core.components import Place
from workbench.core.errors import InputError, MismatchError
from workbench.core.numerics import check_finite, wide
from workbench.core.picture import table
from workbench.core.records import Provenance
from workbench.core.runtime import progress
from workbench.core.store import load_tensors, save_tensors
from workbench.core.svg import number, tag
from workbench.load.models import Model
from workbench.load.unembedding import readable, unembedding
from workbench.probe.cards import Card, snippets, visible
from workbench.probe.extremes import Extremes, extremes

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("layer", "neuron", "norm", "mean_logit", "top_ids", "top_logits", "bottom_ids", "bottom_logits")
_SHOWN = 12  # vectors, and tokens of each, in a notebook


@dataclass(frozen=True, eq=False)
class ValueVectors:
    """The k largest and smallest logits of value vectors.

    model: whose vectors they are; its tokenizer turns ids into text.   layer, neuron: which vector.
    norm: ||v_j||, float32.   mean_logit: over the whole vocabulary, float32.
    top_ids, top_logits: largest first; bottom_ids, bottom_logits: smallest first; ids int32, logits float32.
    """

    model: Model
    layer: Int[np.ndarray, "vector"]
    neuron: Int[np.ndarray, "vector"]
    norm: Float[np.ndarray, "vector"]
    mean_logit: Float[np.ndarray, "vector"]
    top_ids: Int[np.ndarray, "vector k"]
    top_logits: Float[np.ndarray, "vector k"]
    bottom_ids: Int[np.ndarray, "vector k"]
    bottom_logits: Float[np.ndarray, "vector k"]
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.layer)

    def __repr__(self) -> str:
        layers = len(np.unique(self.layer))
        about = self.provenance.options
        return f"ValueVectors({len(self):,} vectors in {layers} layer(s), k={about['k']}, norm={about['norm']!r})"

    @cached_property
    def _words(self) -> dict[int, str]:
        every = np.unique(np.concatenate([self.top_ids.ravel(), self.bottom_ids.ravel()])).tolist()
        return {i: str(self.model.tokenizer.decode([i])) for i in every}

    def tokens(self, ids: Int[np.ndarray, "*shape"]) -> list[str]:
        """The text of each id, as it stands in a text, white space and all."""
        return [self._words[i] for i in np.ravel(ids).tolist()]

    def position(self, layer: int, neuron: int) -> int:
        """Where the vector stands in the record; InputError if it is not in it."""
        found = np.flatnonzero((self.layer == layer) & (self.neuron == neuron))
        if not len(found):
            raise InputError(f"value vector ({layer}, {neuron}): {self!r} has none; layers and neurons count from 0.")
        return int(found[0])

    def frame(self) -> "pd.DataFrame":
        """One row a vector: layer, neuron, norm, mean_logit, top_ids, top_tokens, bottom_ids, bottom_tokens (lists of k)."""
        import pandas as pd

        columns: dict[str, object] = {name: getattr(self, name) for name in ("layer", "neuron", "norm", "mean_logit")}
        for side in ("top", "bottom"):
            ids = getattr(self, f"{side}_ids")
            columns |= {f"{side}_ids": ids.tolist(), f"{side}_tokens": [self.tokens(row) for row in ids]}
        return pd.DataFrame(columns)

    def card(self, layer: int, neuron: int, texts: Sequence[str] | None = None, *, count: int = 5) -> Card:
        """One vector on a card; with texts also the `count` places where its coefficient is largest in size (see `cards`)."""
        return self.cards([Place(layer, neuron)], texts, count=count)[0]

    def cards(
        self,
        places: Sequence[Place],
        texts: Sequence[str] | None = None,
        *,
        count: int = 5,
        batch_tokens: int = 4096,
        show: bool = False,
    ) -> list[Card]:
        """Cards of several vectors; the texts are read in one forward pass for all of them.

        Args:
            places: (layer, neuron) of each.
            texts: plain texts; each gives one snippet at most, around the token where |m_j| is largest.
            count: snippets of a card.
        Raises: InputError for a vector that is not in the record; what `encode_texts` raises.
        """
        at = [self.position(*place) for place in places]
        where = [Place(*place) for place in places]
        found = snippets(self.model, where, texts, count=count, batch_tokens=batch_tokens, show=show) if texts is not None else None
        return [
            Card(
                layer=int(self.layer[i]),
                neuron=int(self.neuron[i]),
                norm=float(self.norm[i]),
                mean_logit=float(self.mean_logit[i]),
                top=tuple(zip(self.tokens(self.top_ids[i]), self.top_logits[i].tolist(), strict=True)),
                bottom=tuple(zip(self.tokens(self.bottom_ids[i]), self.bottom_logits[i].tolist(), strict=True)),
                read_as=str(self.provenance.options["norm"]),
                snippets=found[j] if found else None,
            )
            for j, i in enumerate(at)
        ]

    def _repr_html_(self) -> str:
        order = np.argsort(-self.top_logits.mean(axis=1), kind="stable")[:_SHOWN]
        rows = [
            (
                f"{self.layer[i]}/{self.neuron[i]}",
                number(float(self.norm[i])),
                number(float(self.top_logits[i].mean())),
                " ".join(map(visible, self.tokens(self.top_ids[i][:_SHOWN]))),
                " ".join(map(visible, self.tokens(self.bottom_ids[i][:_SHOWN]))),
            )
            for i in order
        ]
        heading = tag("p", f"{self!r}; those with the largest mean top logit:")
        return str(heading + table(("layer/neuron", "norm", "mean top logit", "top tokens", "bottom tokens"), rows))

    def save(self, path: str | Path) -> None:
        """Write safetensors, exactly; the tokens' texts stay with the model."""
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in _COLUMNS}
        save_tensors(path, tensors, {"kind": "value_vectors", "provenance": self.provenance.as_dict()})

    @classmethod
    def load(cls, path: str | Path, model: Model) -> "ValueVectors":
        """Read what `save` wrote; MismatchError if it was computed on another model."""
        tensors, about = load_tensors(path, "value_vectors")
        provenance = Provenance(**about["provenance"])
        if provenance.model != model.fingerprint():
            raise MismatchError(f"{path}: is of model {provenance.model[:12]}, this one is {model.fingerprint()[:12]}.")
        return cls(model=model, **{name: tensors[name].numpy().copy() for name in _COLUMNS}, provenance=provenance)


@torch.no_grad()
def value_vectors(
    model: Model, *, layer: int | Sequence[int] | None = None, norm: str = "raw", k: int = 20, show: bool = False
) -> ValueVectors:
    """Top and bottom tokens of every MLP value vector.

    l_j = W_U x_j for value vector j of a layer, [d_vocab], float32 whatever the model's dtype; its k largest and smallest entries,
    equal ones by id. The vocabulary and the vectors are streamed (`extremes`), so memory does not grow with either's product.

    Args:
        layer: one, several, or None for all, from 0.
        norm: "raw", x = v, what ConceptVectors' code does (it has no option); "final_norm_gain", x = diag(g) v, for LayerNorm
            diag(g)(v - mean v), which is how the model itself reads it. Biases and the softcap are left out.
        k: 1 to the vocabulary's size.
        show: draw a progress bar.
    Raises: UnknownNameError for a norm; InputError for k or a missing layer; ModelError where the MLP has no neurons (mixture of
        experts) or the unembedding does not read the residual stream.
    Reference: Geva et al. 2022, arXiv:2203.14680; Hong et al. 2024 (ConceptVectors), arXiv:2406.11614.
    """
    weight = unembedding(model)
    if not 1 <= k <= len(weight):
        raise InputError(f"value_vectors: k is {k}, expected 1 to {len(weight):,}, the size of the vocabulary.")
    mean_row = weight.mean(0, dtype=torch.float64)
    found: list[dict[str, np.ndarray]] = []
    for at in progress(which_layers(model, layer), label="value vectors", show=show):
        vectors = model.sites.value_vectors(at).view(model.hf)
        read = readable(model, vectors, norm=norm)
        size = wide(vectors).norm(dim=-1)
        check_finite(f"value_vectors: layer {at}", size)
        found.append(_columns(at, size, read.double() @ mean_row, extremes(read, weight, k=k)))
    columns = {name: np.concatenate([part[name] for part in found]) for name in _COLUMNS}
    about = Provenance("value_vectors", model.fingerprint(), options={"norm": norm, "k": k}, dtype="float32")
    return ValueVectors(model=model, **columns, provenance=about)


def which_layers(model: Model, layer: int | Sequence[int] | None) -> list[int]:
    """The layers asked for, checked; all of them for None.

    Raises: InputError for a layer the model lacks, or none at all.
    """
    asked = list(range(model.n_layers)) if layer is None else [layer] if isinstance(layer, int) else list(layer)
    bad = [at for at in asked if not 0 <= at < model.n_layers]
    if bad or not asked or len(set(asked)) < len(asked):
        raise InputError(f"layer is {layer}, expected layers 0 to {model.n_layers - 1}, each once.")
    return asked


def _columns(layer: int, size: torch.Tensor, mean_logit: torch.Tensor, found: Extremes) -> dict[str, np.ndarray]:
    n = len(size)
    tensors = dict(zip(_COLUMNS[4:], found, strict=True)) | {"norm": size.float(), "mean_logit": mean_logit.float()}
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()} | {
        "layer": np.full(n, layer, dtype=np.int64),
        "neuron": np.arange(n, dtype=np.int64),
    }
