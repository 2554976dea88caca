"""What every head, MLP and bias adds to the difference of two answers' logits, by way of the final norm and nothing else.

The residual stream at the last token is a sum, x = embed + sum_layer (attention + MLP), and with the scale of the final norm
frozen at its value there, the logits are linear in x:

    logit = W_U norm(x) + b_U,   norm(x) = s gain * center(x) + bias,   s frozen
    contribution of a term x_c to M = <u, s gain * center(x_c)>,   u = W_U[correct] - W_U[incorrect]

The contributions and those of the biases sum to M. No table of architectures says how a norm computes: gain, bias and whether it
centers are read off its answers to probes, s off its answer to x, and the result must reproduce that answer. Where a block
norms what it adds to the stream (Gemma-2, OLMo-2), that norm is frozen in the same way.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.core.components import OUTSIDE, Components, Place
from workbench.core.errors import ModelError, unknown
from workbench.core.records import Provenance
from workbench.load.batches import Encoded, by_length, collate
from workbench.load.contrasts import Contrasts, EncodedContrasts, encode_contrasts
from workbench.load.models import Model
from workbench.trace.forward import check_eval, logits
from workbench.trace.hooks import patch

# Largest difference between sum and model, as a share of the sum of absolute terms. Many norms are float32 in any dtype.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}


class FrozenNorm(NamedTuple):
    """A norm with its scale held: x -> scale gain * center(x) + bias, float64."""

    gain: Float[Tensor, "d_model"]
    bias: Float[Tensor, "d_model"]
    centered: bool
    scale: Float[Tensor, "batch 1"]

    def transpose(self, u: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """v with <u, scale gain * center(x)> = <v, x> for every x; centering is its own transpose."""
        return self.scale * _center(u * self.gain, self.centered)


class _Term(NamedTuple):
    """One summand of M: where it comes from, and its value for each pair."""

    site: str
    place: Place
    value: Float[Tensor, "batch"]


def direct_logit_attribution(
    model: Model, contrasts: Contrasts, *, prompt: str = "clean", batch_tokens: int = 4096, seed: int = 0
) -> Components:
    """Direct contribution of every head, MLP and bias to the logit difference at the last token, in logits (= nats of M).

    value = mean over pairs of <u, s gain * center(x_c)> with the symbols of the module. Sites of the rows: "attn.hook_z" (a
    head), "attn.o.bias", "mlp_out", with a layer; "embed" (token and position), "ln_final.bias", "unembed.bias" without one;
    "attn_out.bias" where a norm behind the attention has one. Biases that do not exist have no row.

    Args:
        contrasts: one prompt of each pair is looked at, so pairs of unequal length are kept. With several answers u is the
            mean of their unembedding rows: the difference of mean logits, which is not the log of summed probabilities that
            `attribution_patching` measures.
        prompt: "clean" or "corrupted".
        batch_tokens: largest padded batch.   seed: of the bootstrap.
    Returns: Components of kind "writer". Of each pair, and so on the mean, the contributions sum to the difference of logits
        before any softcap or scale behind the unembedding; provenance.notes: its mean, and the largest gap between the sum
        and the model's own number, which is the rounding of its dtype.
    Raises: ModelError naming the place where the parts do not sum to the whole: a residual stream with multipliers or a final
        norm of another form.
    Reference: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; TransformerLens' `ActivationCache.
        logit_attrs`, which folds norm and biases into the weights first and so needs a model it may rewrite. A head that
        matters through later layers has no direct contribution: patch it to see.
    """
    if prompt not in ("clean", "corrupted"):
        raise unknown("prompt", prompt, ("clean", "corrupted"))
    check_eval(model)
    coded = encode_contrasts(model, contrasts, aligned=False)
    rows = coded.clean if prompt == "clean" else coded.corrupted
    found: dict[tuple[str, Place], Float[np.ndarray, "pair"]] = {}
    whole, gaps = np.empty(len(rows)), np.empty(len(rows))
    with torch.no_grad():
        for chosen in by_length(rows, max_tokens=batch_tokens):
            seen = _last_activations(model, [rows[i] for i in chosen])
            u, bias = _answer_direction(model, coded, chosen)
            terms = _terms(model, seen, u) + bias
            total = torch.stack([term.value for term in terms])
            logit = _difference(seen["unembed"], coded, chosen)
            _close("M, from the contributions,", model, total.sum(0)[:, None], logit[:, None], total.abs().sum(0).max())
            whole[chosen], gaps[chosen] = logit.cpu(), (total.sum(0) - logit).abs().cpu()
            for term in terms:
                found.setdefault((term.site, term.place), np.zeros(len(rows)))[chosen] = term.value.cpu()
    about = Provenance(
        "direct_logit_attribution",
        model.fingerprint(),
        {"contrasts": contrasts.fingerprint()},
        {"prompt": prompt},
        seed,
        str(model.dtype),
        "mean over pairs, float64",
        sum(row.start for row in rows),
        {"kept": len(rows), "dropped": coded.dropped, "logit_difference": whole.mean().item(), "largest_gap": gaps.max().item()},
    )
    sites, places = zip(*found, strict=True)
    return Components.of(
        "writer", sites, places, np.stack(list(found.values()), 1), unit="logits", direction="", provenance=about, seed=seed
    )


@torch.no_grad()
def frozen_norm(
    norm: nn.Module, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_model"], *, name: str, tolerance: float
) -> FrozenNorm:
    """Read the affine map off a norm module, with the scale it has at x, and check that it reproduces its output y.

    Probes: 0 gives the bias; a constant vector gives nothing else if the norm centers; a vector of alternating signs gives the
    gain up to a factor, which goes into the scale, fitted to y by least squares.

    Args: name: of the module, for the error.   tolerance: largest difference, as a share of the largest entry of y.
    Raises: ModelError if y is not reproduced: the module is no layer norm or RMS norm.
    """
    wide_norm = deepcopy(norm).double()
    signs = 1.0 - 2.0 * (torch.arange(x.shape[-1], device=x.device) % 2).double()
    answers = [wide_norm.forward(probe[None])[0].double() for probe in (0 * signs, 0 * signs + 1, signs)]
    bias, constant, alternating = answers[0], answers[1] - answers[0], answers[2] - answers[0]
    centered = bool(constant.abs().max() <= 1e-3 * alternating.abs().max())
    gain = alternating / _center(signs, centered)
    shape = gain * _center(x.double(), centered)
    scale = ((y.double() - bias) * shape).sum(-1, keepdim=True) / shape.square().sum(-1, keepdim=True)
    error = (scale * shape + bias - y.double()).abs().max() / y.double().abs().max()
    if not bool(error <= tolerance):
        raise ModelError(
            f"direct_logit_attribution: {name!r} ({type(norm).__name__}) is not a layer norm or RMS norm with a fixed gain: its "
            f"output is missed by {float(error):.1e} of its size. Contributions are not defined for it; use attribution_patching."
        )
    return FrozenNorm(gain, bias, centered, scale)


def _center(x: Float[Tensor, "*batch d_model"], centered: bool) -> Float[Tensor, "*batch d_model"]:
    return x - x.mean(-1, keepdim=True) if centered else x


def _last_activations(model: Model, rows: Sequence[Encoded]) -> dict[str, Float[Tensor, "batch features"]]:
    """Every site the decomposition needs, at the last token of each row, in the model's dtype."""
    last = torch.tensor([row.start - 1 for row in rows], device=model.device)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            seen[name] = value[torch.arange(len(last), device=value.device), last.to(value.device)].clone()

        return read

    layers = range(model.n_layers)
    names = [f"blocks.{layer}.{site}" for layer in layers for site in ("attn.hook_z", "attn.o", "attn_out", "mlp_out")]
    names += ["blocks.0.resid_pre", f"blocks.{model.n_layers - 1}.resid_post", "ln_final", "unembed"]
    with patch(model, {name: keep(name) for name in names}):
        logits(model, collate(rows, device=model.device))
    return seen


def _terms(model: Model, seen: dict[str, Tensor], u: Float[Tensor, "batch d_model"]) -> list[_Term]:
    """All that is added to the residual stream, through the final norm onto u."""
    x, y = seen[f"blocks.{model.n_layers - 1}.resid_post"], seen["ln_final"]
    norm = frozen_norm(model.sites.module("ln_final"), x, y, name=model.sites.path("ln_final"), tolerance=_tolerance(model))
    added = [seen["blocks.0.resid_pre"]]
    for layer in range(model.n_layers):
        added += [seen[f"blocks.{layer}.attn_out"], seen[f"blocks.{layer}.mlp_out"]]
    parts = torch.stack([part.double() for part in added])
    _close("the residual stream, from what the blocks add,", model, parts.sum(0), x, parts.abs().sum(0).max())
    v = norm.transpose(u)
    terms = [_Term("embed", Place(OUTSIDE, OUTSIDE), (v * parts[0]).sum(-1))]
    for layer in range(model.n_layers):
        terms += _attention_terms(model, seen, layer, v)
        terms.append(_Term("mlp_out", Place(layer, OUTSIDE), (v * seen[f"blocks.{layer}.mlp_out"].double()).sum(-1)))
    return terms + _bias_term("ln_final.bias", OUTSIDE, u @ norm.bias, norm.bias)


def _attention_terms(model: Model, seen: dict[str, Tensor], layer: int, v: Float[Tensor, "batch d_model"]) -> list[_Term]:
    """Heads and biases of one layer; where a norm stands behind the output projection, through it with its scale frozen."""
    out, added = seen[f"blocks.{layer}.attn.o"], seen[f"blocks.{layer}.attn_out"]
    terms: list[_Term] = []
    norm_path = model.sites.path(f"blocks.{layer}.attn_out")
    if not model.sites.path(f"blocks.{layer}.attn.o").startswith(norm_path):
        norm = frozen_norm(model.hf.get_submodule(norm_path), out, added, name=norm_path, tolerance=_tolerance(model))
        terms += _bias_term("attn_out.bias", layer, v @ norm.bias, norm.bias)
        v = norm.transpose(v)
    else:
        _close(f"attn_out of layer {layer}, from its output projection,", model, out.double(), added, out.double().abs().max())
    z = seen[f"blocks.{layer}.attn.hook_z"].double().unflatten(-1, (model.sites.n_heads, -1))
    for head in range(model.sites.n_heads):
        w_o = model.sites.head(layer, head, "o").view(model.hf).double()
        value = torch.einsum("bm,mh,bh->b", v, w_o, z[:, head])  # b: pair, m: d_model, h: d_head
        terms.append(_Term("attn.hook_z", Place(layer, head), value))
    bias = getattr(model.sites.module(f"blocks.{layer}.attn.o"), "bias", None)
    return terms if bias is None else terms + _bias_term("attn.o.bias", layer, v @ bias.double(), bias)


def _bias_term(site: str, layer: int, value: Float[Tensor, "batch"], bias: Tensor) -> list[_Term]:
    """The term of a bias, unless it is zero everywhere: then there is none."""
    return [_Term(site, Place(layer, OUTSIDE), value)] if bool(bias.any()) else []


def _answer_direction(
    model: Model, coded: EncodedContrasts, chosen: Sequence[int]
) -> tuple[Float[Tensor, "batch d_model"], list[_Term]]:
    """u of each pair, and the term of the unembedding's bias."""
    head = model.sites.module("unembed")
    u = torch.stack([_mean_difference(cast(Tensor, head.weight), coded, i) for i in chosen])
    if getattr(head, "bias", None) is None:
        return u, []
    bias = cast(Tensor, head.bias)
    return u, _bias_term("unembed.bias", OUTSIDE, torch.stack([_mean_difference(bias, coded, i) for i in chosen]), bias)


def _difference(
    unembedded: Float[Tensor, "batch d_vocab"], coded: EncodedContrasts, chosen: Sequence[int]
) -> Float[Tensor, "batch"]:
    """The model's own logit difference."""
    return torch.stack([_mean_difference(row, coded, i) for row, i in zip(unembedded, chosen, strict=True)])


def _mean_difference(by_token: Float[Tensor, "d_vocab *x"], coded: EncodedContrasts, i: int) -> Float[Tensor, "*x"]:
    """Mean over the correct answers' tokens less mean over the incorrect ones', float64."""
    return by_token[coded.correct[i]].double().mean(0) - by_token[coded.incorrect[i]].double().mean(0)


def _tolerance(model: Model) -> float:
    return TOLERANCE.get(model.dtype, max(TOLERANCE.values()))


def _close(
    what: str, model: Model, found: Float[Tensor, "batch x"], expected: Float[Tensor, "batch x"], size: Float[Tensor, ""]
) -> None:
    """ModelError if a sum of parts misses the whole by more than the rounding of the model's dtype."""
    error = float((found.double() - expected.double()).abs().max() / size)
    if not error <= _tolerance(model):
        raise ModelError(
            f"direct_logit_attribution: {what} is missed by {error:.1e} of the size of its parts. {type(model.hf).__name__} adds "
            "something else (multipliers on the residual stream, a gate behind the attention); use attribution_patching."
        )
