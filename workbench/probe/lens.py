"""The logit lens: what the model would say if it stopped at a layer.

    z_l = f(W_U norm(h_l)),   p_l = softmax(z_l)

h_l is the residual stream behind layer l, norm the model's final norm with its gain, W_U the unembedding, f the model's own last
step (Gemma-2's softcap). At the last layer this is the model, bit for bit, which is checked at every call.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.core.errors import InputError, ModelError, unknown
from workbench.core.numerics import check_finite, wide
from workbench.core.records import Provenance
from workbench.core.store import text_sha256
from workbench.load.batches import Batch, collate
from workbench.load.models import Model
from workbench.probe.lens_table import NEXT, NONE, LensTable, Reading, positions_of, reading
from workbench.probe.lens_text import as_row, target_id, token_texts
from workbench.trace.forward import logits
from workbench.trace.hooks import capture

NORMS = ("final", "none")
EMBED = "embed"
SITES = ("resid_post", "resid_mid", "resid_pre", "attn_out", "mlp_out")
# Largest difference between the last layer's lens and the model's logits, over the largest logit, that is still rounding.
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class Stream(NamedTuple):
    """One forward pass.

    logits: the model's own.   resid: the asked residuals by layer name.   last: the stream behind the last layer.
    attention: true on real tokens; what stands at padding means nothing.
    """

    logits: Float[Tensor, "batch pos d_vocab"]
    resid: dict[str, Float[Tensor, "batch pos d_model"]]
    last: Float[Tensor, "batch pos d_model"]
    attention: Bool[Tensor, "batch pos"]


def logit_lens(
    model: Model,
    text: str | tuple[str, str] | Sequence[int] | Int[Tensor, "pos"],
    *,
    layers: Sequence[int | str] | None = None,
    site: str = "resid_post",
    target: str | int | None = None,
    positions: Sequence[int] | None = None,
    k: int = 5,
    norm: str = "final",
    chat: bool = False,
) -> LensTable:
    """The tokens that every layer's residual stream would predict, at every position of a text.

    Args:
        text: text; (prompt, answer), tokenized as in training, with the chat template and the end-of-text token; or token ids.
        layers: layer numbers from 0, and "embed" for the stream before layer 0; None for "embed" and all of them.
        site: "resid_post"; or "resid_mid", "resid_pre", "attn_out", "mlp_out" (what one part adds, normed by its own size).
        target: a token, by id or as text that is one token, whose rank is followed beside that of the token that follows.
        positions: which to keep, from 0 or, negative, from the end; None for all.
        k: how many of the most likely tokens to keep.
        norm: "final": the model's final norm first. "none": the bare unembedding, with no norm and no last step.
        chat: the text is a user's turn, and goes through the chat template.
    Returns: a LensTable; provenance.notes["exact"] says whether the last layer gave the model's logits to the bit.
    Raises: DataError for a text of no token or one longer than the context; InputError for a layer, position, site or target
        that does not exist, or a target of several tokens; ModelError if the last layer's lens is not the model's output;
        NumericsError naming the layer if a logit is not finite.
    Reference: nostalgebraist 2020, "interpreting GPT: the logit lens". Code that takes HF's `hidden_states[-1]` and applies the
        final norm norms twice at the last layer; ConceptVectors (arXiv:2406.11614) applies none, here norm="none".
    """
    options = {"site": site, "norm": norm, "target": target, "k": k}
    return lens_table(
        model,
        text,
        lambda resid, layer: unembed(model, resid, norm=norm),
        Provenance("logit_lens", model.fingerprint(), options=options),
        layers=layers,
        site=site,
        target=target,
        positions=positions,
        k=k,
        chat=chat,
    )


def stream(model: Model, batch: Batch, *, layers: Sequence[int | str] | None = None, site: str = "resid_post") -> Stream:
    """One forward pass over a batch with the residuals that a lens reads, in the model's dtype.

    Args: layers, site: as for `logit_lens`.
    Raises: InputError for a site that is not d_model wide or a layer the model does not have.
    """
    if site not in SITES:
        raise unknown("site for a lens", site, SITES)
    asked: Sequence[int | str] = (EMBED, *range(model.n_layers)) if layers is None else layers
    if not asked:
        raise InputError("lens: layers is empty; give layer numbers, or None for all.")
    names = {str(layer): _place(model, layer, site) for layer in asked}
    last = f"blocks.{model.n_layers - 1}.resid_post"
    with torch.no_grad(), capture(model, {*names.values(), last}) as kept:
        own = logits(model, batch)
    return Stream(own, {layer: kept[name] for layer, name in names.items()}, kept[last], batch.attention)


def unembed(model: Model, resid: Float[Tensor, "*batch d_model"], *, norm: str = "final") -> Float[Tensor, "*batch d_vocab"]:
    """Logits read from residual vectors: f(W_U norm(h)); with norm="none" W_U h, plus the unembedding's bias if it has one."""
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    with torch.no_grad():
        return model.sites.logits(resid) if norm == "final" else model.sites.module("unembed")(resid)


def check_last(model: Model, passed: Stream) -> bool:
    """Whether the lens of the last layer is the model's own logits to the bit.

    Raises: ModelError if they differ by more than rounding: then the model has a step behind its last layer that is not known;
        NumericsError if the model's logits are not finite.
    """
    lens, own = unembed(model, passed.last)[passed.attention], passed.logits[passed.attention]
    check_finite("lens: the model's own logits", own)
    if torch.equal(lens, own):
        return True
    error = float((wide(lens) - wide(own)).abs().max() / wide(own).abs().max())
    if not error <= ROUNDING.get(model.dtype, max(ROUNDING.values())):
        raise ModelError(
            f"lens: at the last layer it misses the logits of {type(model.hf).__name__} by {error:.1e} of the largest. The model "
            "does something behind its last layer that is not its final norm and unembedding, so no lens can be read."
        )
    return False


def lens_table(
    model: Model,
    text: str | tuple[str, str] | Sequence[int] | Int[Tensor, "pos"],
    read: Callable[[Tensor, str], Tensor],
    provenance: Provenance,
    *,
    layers: Sequence[int | str] | None,
    site: str,
    target: str | int | None,
    positions: Sequence[int] | None,
    k: int,
    chat: bool,
) -> LensTable:
    """The table of any lens: `read` turns residuals [batch pos d_model] of a layer, by name, into logits.

    One layer's logits are held at a time, in the shape the model computes its own. Other arguments as for `logit_lens`.
    """
    row = as_row(model, text, chat=chat)
    tokens, kept = row.tokens, positions_of(positions, len(row.tokens))
    if not 1 <= k <= model.d_vocab:
        raise InputError(f"lens: k is {k}, expected 1 to {model.d_vocab}, the size of the vocabulary.")
    targets = {NEXT: [tokens[p + 1] if p + 1 < len(tokens) else NONE for p in kept]}
    if target is not None:
        wanted = target_id(model, target)
        targets[token_texts(model.tokenizer, [wanted])[0]] = [wanted] * len(kept)
    passed = stream(model, collate([row], device=model.device), layers=layers, site=site)
    exact = check_last(model, passed)
    at = torch.tensor(kept, device=model.device)
    ids = torch.tensor(list(targets.values()), device=model.device)
    own = wide(passed.logits[0, at]).log_softmax(-1)
    readings = [reading(read(resid, layer)[0, at], own, ids, k, layer) for layer, resid in passed.resid.items()]
    columns = Reading(*(np.stack(column) for column in zip(*readings, strict=True)))
    used = sorted({*tokens, *columns.top_ids.ravel().tolist(), *ids.ravel().tolist()} - {NONE})
    words = dict(zip(used, token_texts(model.tokenizer, used), strict=True))
    about = Provenance(
        provenance.method,
        provenance.model,
        {"tokens": text_sha256(tokens)},
        provenance.options,
        dtype=str(model.dtype),
        tokens=len(tokens),
        notes={**provenance.notes, "exact": exact},
    )
    said = {name: np.array(row, dtype=np.int64) for name, row in targets.items()}
    shown = tuple(words[tokens[p]] for p in kept)
    return LensTable(tuple(passed.resid), tuple(kept), shown, words, said, provenance=about, **columns._asdict())


def _place(model: Model, layer: int | str, site: str) -> str:
    """The site of a layer's row."""
    if layer == EMBED:
        return "blocks.0.resid_pre"
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise InputError(f"lens: layer {layer!r}; expected {EMBED!r} or a number from 0 to {model.n_layers - 1}.")
    return model.sites.at(site, layer=layer).name
