"""Patchscopes: a hidden state is put into another prompt, and the model says in its own words what it holds.

    h = resid_post_l(text)[p];   in the pass over `prompt`, resid_post_m[last] := h;   then the model goes on

With a prompt that repeats what it is shown ("cat -> cat; 1135 -> 1135; hello -> hello; ?") the continuation decodes h.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from markupsafe import Markup
from torch import Tensor

from workbench.core.errors import DataError, InputError
from workbench.core.numerics import check_finite, wide
from workbench.core.records import Provenance
from workbench.core.store import text_sha256
from workbench.core.svg import number, shorten, tag
from workbench.load.batches import collate
from workbench.load.models import Model
from workbench.probe.lens import stream
from workbench.probe.lens_table import positions_of, top_ids
from workbench.probe.lens_text import as_row, show, text_of, token_texts
from workbench.trace.forward import check_eval
from workbench.trace.hooks import patch

if TYPE_CHECKING:
    import pandas as pd

IDENTITY = "cat -> cat; 1135 -> 1135; hello -> hello; ?"


class Patched(NamedTuple):
    """The pass over the prompt with a hidden state put in: logits at its last token, and the cache to go on from."""

    logits: Float[Tensor, "batch d_vocab"]
    cache: Any


@dataclass(frozen=True, eq=False)
class Readout:
    """What the model says of each hidden state.

    layers, positions, tokens: where the states are from; positions in the text, from 0.   said: greedy continuations.
    top_ids, top_logprob: the k most likely first tokens, and ln p, float64, nats.   words: text of every id.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    said: tuple[tuple[str, ...], ...]
    top_ids: Int[np.ndarray, "layer pos k"]
    top_logprob: Float[np.ndarray, "layer pos k"]
    words: dict[int, str]
    provenance: Provenance

    def frame(self) -> "pd.DataFrame":
        """One line a layer and position: the token there, what was said, and the probability of its first token."""
        import pandas as pd

        places = [(i, j) for i in range(len(self.layers)) for j in range(len(self.positions))]
        lines = [
            {
                "layer": self.layers[i],
                "position": self.positions[j],
                "token": self.tokens[j],
                "said": self.said[i][j],
                "probability": float(np.exp(self.top_logprob[i, j, 0])),
            }
            for i, j in places
        ]
        return pd.DataFrame(lines)

    def __repr__(self) -> str:
        return f"Readout({len(self.layers)} layers x {len(self.positions)} positions, prompt {self.provenance.options['prompt']!r})"

    def _repr_html_(self) -> str:
        """Layers by positions, with what was said in the cell."""
        cell = {"style": "padding:2px 6px;text-align:left"}
        head = tag("tr", tag("th", "layer"), *(tag("th", show(token), **cell) for token in self.tokens))
        body = [
            tag("tr", tag("th", layer), *(self._cell(i, j) for j in range(len(self.tokens)))) for i, layer in enumerate(self.layers)
        ]
        options = self.provenance.options
        into = "the layer it is from" if options["into"] is None else f"layer {options['into']}"
        caption = (
            f"The state behind each layer and token, put into {into} at the end of “{options['prompt']}”, and what the model says."
        )
        grid = tag(
            "table", tag("thead", head), tag("tbody", *body), style="border-collapse:collapse;white-space:nowrap;font-size:12px"
        )
        return str(tag("div", tag("p", caption), tag("div", grid, style="overflow-x:auto")))

    def _cell(self, i: int, j: int) -> Markup:
        pairs = zip(self.top_ids[i, j], np.exp(self.top_logprob[i, j]), strict=True)
        says = ", ".join(f"{show(self.words[int(token)])} {number(float(p))}" for token, p in pairs)
        title = f"layer {self.layers[i]}, position {self.positions[j]}: first {says}"
        return tag("td", shorten(self.said[i][j].replace("\n", "↵"), 24), title=title, style="padding:2px 6px;text-align:left")


def patchscope(
    model: Model,
    text: str | tuple[str, str] | Sequence[int] | Int[Tensor, "pos"],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = (-1,),
    into: int | None = None,
    prompt: str = IDENTITY,
    max_new_tokens: int = 5,
    k: int = 5,
    chat: bool = False,
) -> Readout:
    """Decode hidden states of a text with the model itself, by patching them into a prompt.

    Args:
        text, chat: as for `logit_lens`.
        layers: of the hidden states, from 0; None for all.   positions: of the text, negative from the end; None for all.
        into: the layer of the prompt's pass whose output is replaced; None for the same layer as the state is from.
        prompt: its last token is the placeholder, whose hidden state is replaced. Only the pass over the prompt is patched.
        max_new_tokens: length of the greedy continuation.   k: how many of the most likely first tokens to keep.
    Returns: a Readout. A state from the last layer says what the text itself would go on with.
    Raises: DataError for a text or prompt of no token, or longer than the context; InputError for a layer or position that does
        not exist; NumericsError if a logit is not finite.
    Reference: Ghandeharioun et al. 2024, arXiv:2401.06102, with the identity as the mapping between the states. What comes out is
        the model's opinion: small models that cannot follow the prompt say nothing about the state.
    """
    if max_new_tokens < 1:
        raise InputError(f"patchscope: max_new_tokens is {max_new_tokens}, expected at least 1.")
    if not 1 <= k <= model.d_vocab:
        raise InputError(f"patchscope: k is {k}, expected 1 to {model.d_vocab}, the size of the vocabulary.")
    row, ask = as_row(model, text, chat=chat), as_row(model, prompt).tokens
    if len(ask) + max_new_tokens > model.context:
        raise DataError(
            f"patchscope: the prompt's {len(ask)} tokens and {max_new_tokens} new ones exceed the context of {model.context}."
        )
    at = positions_of(positions, len(row.tokens))
    asked = list(range(model.n_layers)) if layers is None else list(layers)
    states = stream(model, collate([row], device=model.device), layers=asked).resid
    said, ids, logprobs = [], [], []
    for layer in asked:
        target = layer if into is None else into
        passed = patched_pass(model, ask, states[str(layer)][0, at], layer=target)
        logprob = wide(passed.logits).log_softmax(-1)
        ids.append(top_ids(wide(passed.logits), k))
        logprobs.append(logprob.gather(-1, ids[-1]).double())
        said.append(tuple(text_of(model.tokenizer, tokens) for tokens in _go_on(model, passed, max_new_tokens)))
    found, found_logprob = (torch.stack(column).cpu().numpy() for column in (ids, logprobs))
    used = sorted({*row.tokens, *found.ravel().tolist()})
    words = dict(zip(used, token_texts(model.tokenizer, used), strict=True))
    options = {"into": into, "prompt": prompt, "max_new_tokens": max_new_tokens, "k": k}
    data = {"tokens": text_sha256(row.tokens)}
    about = Provenance("patchscope", model.fingerprint(), data, options, dtype=str(model.dtype), tokens=len(row.tokens))
    shown = tuple(words[row.tokens[p]] for p in at)
    return Readout(tuple(asked), tuple(at), shown, tuple(said), found, found_logprob, words, about)


def patched_pass(model: Model, prompt: Sequence[int], states: Float[Tensor, "batch d_model"], *, layer: int) -> Patched:
    """One pass over copies of a prompt, each with one state as the output of `layer` at the last token."""
    check_eval(model)
    tokens = torch.tensor([list(prompt)] * len(states), device=model.device)

    def put(resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        new = resid.clone()
        new[:, -1] = states.to(new)
        return new

    with torch.no_grad(), patch(model, {model.sites.at("resid_post", layer=layer).name: put}):
        out: Any = model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=True)
    check_finite(f"patchscope into layer {layer}: logits", out.logits[:, -1])
    return Patched(out.logits[:, -1], out.past_key_values)


def _go_on(model: Model, passed: Patched, max_new_tokens: int) -> list[list[int]]:
    """The most likely tokens from here, without another patch: the state lives on in the keys and values of later layers."""
    now, cache, said = passed.logits.argmax(-1), passed.cache, []
    with torch.no_grad():
        while True:
            said.append(now)
            if len(said) == max_new_tokens:
                break
            out: Any = model.hf(input_ids=now[:, None], past_key_values=cache, use_cache=True)
            now, cache = out.logits[:, -1].argmax(-1), out.past_key_values
    return [_until_end(model, tokens) for tokens in torch.stack(said, dim=1).tolist()]


def _until_end(model: Model, tokens: list[int]) -> list[int]:
    end = model.tokenizer.eos_token_id
    return tokens[: tokens.index(end)] if end in tokens else tokens
