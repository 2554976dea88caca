"""How the unembedding reads a vector that was written into the residual stream.

    raw                x = v                       the logits are W_U v, as ConceptVectors and most lens code without a norm
    final_norm_gain    x = g * v                   RMSNorm: W_U diag(g) v is the linear part of the logits, but for the scale
                       x = g * (v - mean(v))       LayerNorm: it centers what it reads, so a constant vector says nothing

The scale 1/rms (or 1/std) of the whole residual stream is one number for all tokens, so it changes no ranking and is left out; so
are biases of the norm and the unembedding and Gemma-2's softcap, which are not the vector's doing.
"""

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.core.errors import ModelError, unknown
from workbench.core.numerics import check_finite, wide
from workbench.load.models import Model

NORMS = ("raw", "final_norm_gain")


def unembedding(model: Model) -> Float[Tensor, "d_vocab d_model"]:
    """W_U, one row a token, in the model's dtype and memory; the embedding itself where the two are tied.

    Raises: ModelError if its rows are not of the residual stream's width (OPT-350m projects in between).
    """
    weight = model.hf.get_parameter(model.sites.parameter("unembed")).detach()
    if weight.ndim != 2 or weight.shape[1] != model.d_model:
        raise ModelError(
            f"unembedding: {tuple(weight.shape)} does not read the residual stream of width {model.d_model} directly; "
            f"{type(model.hf).__name__} puts something between the two."
        )
    return weight


def readable(model: Model, vectors: Float[Tensor, "n d_model"], *, norm: str) -> Float[Tensor, "n d_model"]:
    """Vectors of the residual stream as W_U reads them, at least float32.

    Args: norm: "raw" or "final_norm_gain", see the module.
    Raises: UnknownNameError for another norm.
    """
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    read = wide(vectors)
    if norm == "raw":
        return read
    gain, centers = final_norm(model)
    gain = gain.to(read)
    return (read - read.mean(-1, keepdim=True)) * gain if centers else read * gain


@torch.no_grad()
def final_norm(model: Model) -> tuple[Float[Tensor, "d_model"], bool]:
    """Gain of the final norm, float64, and whether it centers, asked of the module: so Gemma's 1 + w needs no table.

    For z of mean 0 the norm f is odd up to its bias, so g = (f(z) - f(-z)) / 2 * rms(z) / z. z is large, so that the epsilon
    under the root vanishes. A norm that centers does not see a constant that is added.
    """
    norm: nn.Module = deepcopy(model.sites.module("ln_final")).double()
    z = torch.ones(model.d_model, dtype=torch.float64, device=model.device)
    z[1::2] = -1
    z = (z - z.mean()) * 1e4
    gain = (norm(z) - norm(-z)) / 2 * z.square().mean().sqrt() / z
    check_finite("final_norm: the gain", gain)
    at_zero_mean = norm(z)
    size = float(at_zero_mean.abs().max())
    return gain, bool(torch.allclose(norm(z + 2e4), at_zero_mean, rtol=1e-3, atol=1e-3 * size))
