"""Which value vectors may stand for a concept, judged without asking anybody: by what they write and by when they fire.

    contrast     s_j (mean m_j on texts - mean m_j on against) / sqrt((var + var') / 2),   s_j = sign of the mean on texts
    write        ||v_j|| (rms m_j on texts - rms m_j on against): how much more it adds to the residual stream
    top_logit    mean of the k largest logits of s_j v_j: how strongly it writes
    coherence    mean pairwise cosine of the embeddings of those k tokens: whether they belong together

s_j v_j is what the vector writes when the texts are read: in a gated MLP a neuron may be negative there, and its bottom tokens
are then the ones it raises. Means and variances run over all tokens behind the special ones in front, prompts included.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from workbench.core.errors import DataError, InputError, unknown
from workbench.core.numerics import check_finite, wide
from workbench.core.runtime import progress
from workbench.load.batches import Encoded, by_length, collate
from workbench.load.models import Model
from workbench.probe.value_vectors import ValueVectors
from workbench.trace.forward import check_eval, logits
from workbench.trace.hooks import patch

MEASURES = ("contrast", "write", "top_logit", "coherence")
_CHUNK = 4096  # vectors whose k embeddings are held at once


class Moments(NamedTuple):
    """Mean and variance of every coefficient over tokens, float64, [vector] in the order of layers and neurons; n: tokens."""

    mean: Float[np.ndarray, "vector"]
    variance: Float[np.ndarray, "vector"]
    n: int

    @property
    def rms(self) -> Float[np.ndarray, "vector"]:
        """Root mean square."""
        return np.sqrt(self.variance + self.mean**2)


class Candidates(NamedTuple):
    """What speaks for every value vector, [vector] in the order of the ValueVectors.

    side: +1 if it writes its top tokens on the texts, -1 for the bottom.   score: weighted mean of the measures' percentiles.
    """

    contrast: Float[np.ndarray, "vector"]
    write: Float[np.ndarray, "vector"]
    top_logit: Float[np.ndarray, "vector"]
    coherence: Float[np.ndarray, "vector"]
    side: Int[np.ndarray, "vector"]
    score: Float[np.ndarray, "vector"]


def candidates(vectors: ValueVectors, texts: Moments, against: Moments, *, weights: Mapping[str, float]) -> Candidates:
    """The measures of every value vector, and their weighted mean percentile.

    score_j = sum_q w_q rank_q(j) / (n sum_q w_q): percentiles, because the measures have no common unit. Ties share their rank.

    Args:
        vectors: of the layers the moments are of.
        weights: of MEASURES, >= 0; one that is not named counts 0.
    Raises: UnknownNameError for another measure; InputError if no weight is positive.
    """
    for name, weight in weights.items():
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES)
        if not weight >= 0:
            raise InputError(f"candidates: the weight of {name} is {weight}, expected 0 or more.")
    if not sum(weights.values()) > 0:
        raise InputError(f"candidates: no weight in {dict(weights)} is positive; one of {', '.join(MEASURES)} must count.")
    side = np.where(texts.mean < 0, -1, 1)
    spread = np.sqrt((texts.variance + against.variance) / 2)
    # a neuron that never changes tells nothing apart
    contrast = side * np.divide(texts.mean - against.mean, spread, out=np.zeros_like(spread), where=spread > 0)
    above = side > 0
    top_logit = np.where(above, vectors.top_logits.mean(1, dtype=np.float64), -vectors.bottom_logits.mean(1, dtype=np.float64))
    written = np.where(above[:, None], vectors.top_ids, vectors.bottom_ids)
    hf, sites = vectors.model.hf, vectors.model.sites
    embedding = hf.get_parameter(sites.parameter("embed")).detach()
    write = vectors.norm.astype(np.float64) * (texts.rms - against.rms)
    values = {"contrast": contrast, "write": write, "top_logit": top_logit, "coherence": coherence(embedding, written)}
    ranks = np.sum([weights.get(name, 0.0) * rankdata(value) for name, value in values.items()], axis=0)
    return Candidates(**values, side=side, score=ranks / (len(side) * sum(weights.values())))


@torch.no_grad()
def coherence(embedding: Float[Tensor, "d_vocab d_model"], ids: Int[np.ndarray, "vector k"]) -> Float[np.ndarray, "vector"]:
    """Mean cosine over all pairs of the embeddings of each row's tokens, float64.

    (||sum_t e_t||^2 - k) / (k (k - 1)) with unit vectors e_t. 1 for k = 1, where there is no pair.
    """
    k = ids.shape[1]
    if k == 1:
        return np.ones(len(ids))
    unit = torch.nn.functional.normalize(wide(embedding), dim=1)
    chunks = (torch.from_numpy(part).to(unit.device).long() for part in np.array_split(ids, -(-len(ids) // _CHUNK)))
    parts = [unit[chunk].sum(1).double() for chunk in chunks]
    total = torch.cat([part.square().sum(1) for part in parts]).cpu().numpy()
    return (total - k) / (k * (k - 1))


@torch.no_grad()
def moments(
    model: Model, rows: Sequence[Encoded], layers: Sequence[int], *, batch_tokens: int = 4096, show: bool = False
) -> Moments:
    """Mean and variance of every value coefficient (site mlp.post) over the tokens of the rows, from one forward pass.

    Sums of values and squares are float64 on the model's device, so that the variance survives the difference; no activation is
    kept. The tokens are all of a row behind leading special ones.

    Raises: DataError for no rows; NumericsError naming the layer of a coefficient that is not finite; ModelError where mlp.post
        cannot be hooked.
    """
    check_eval(model)
    if not rows:
        raise DataError("moments: there is no text to read.")
    sums = torch.zeros(2, len(layers), model.d_mlp, dtype=torch.float64, device=model.device)
    n, special = 0, torch.tensor(sorted(model.tokenizer.all_special_ids), dtype=torch.long, device=model.device)
    for chosen in progress(list(by_length(rows, max_tokens=batch_tokens)), label="coefficients", show=show):
        batch = collate([rows[i] for i in chosen], device=model.device)
        leading = (torch.isin(batch.tokens, special) | ~batch.attention).long().cumprod(1).bool()
        used = batch.attention & ~leading
        n += int(used.sum())

        def add(at: int, used: Tensor = used) -> Callable[[Tensor], None]:
            def read(post: Tensor) -> None:
                own = wide(post[used])
                check_finite(f"coefficients of layer {layers[at]}", own)
                sums[0, at] += own.sum(0, dtype=torch.float64)
                sums[1, at] += torch.linalg.vector_norm(own, dim=0, dtype=torch.float64).square()

            return read

        with patch(model, {f"blocks.{layer}.mlp.post": add(at) for at, layer in enumerate(layers)}):
            logits(model, batch)
    if n == 0:
        raise DataError("moments: the texts hold nothing but special tokens.")
    mean, square = (sums / n).cpu().numpy().reshape(2, -1)
    return Moments(mean, np.maximum(square - mean**2, 0.0), n)
