"""Prompts that went through the model once, and what continues from them: answers and generated text.

A group of prompts is padded on the left, so that all of them end at the same position. Its key-value cache is copied by row for
every batch that continues from it. Where a model keeps another state than plain keys and values (a sliding window, a
recurrent state), the prompt's tokens are forwarded again with each continuation: slower, and the same numbers.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from workbench.load.batches import Encoded, collate
from workbench.load.models import Model


@dataclass(frozen=True)
class Prompts:
    """A group of prompts after the model.

    tokens, attention: [prompt pos], left-padded, true on real tokens.   last: logits after the last token, model's dtype.
    cache: keys and values of all layers at `pos` positions, or None where the model has no such cache.
    """

    tokens: Int[Tensor, "prompt pos"]
    attention: Bool[Tensor, "prompt pos"]
    last: Float[Tensor, "prompt d_vocab"]
    cache: DynamicCache | None


def start(model: Model, prompts: Sequence[Sequence[int]]) -> Prompts:
    """Forward prompts of any lengths in one padded batch."""
    rows = [Encoded("prompt", list(tokens), len(tokens)) for tokens in prompts]
    batch = collate(rows, device=model.device, side="left")
    out = _forward(model, batch.tokens, batch.attention, keep=1)
    past = getattr(out, "past_key_values", None)
    return Prompts(batch.tokens, batch.attention, out.logits[:, -1], past if _is_plain(past) else None)


def take(prompts: Prompts, rows: Int[Tensor, "chosen"]) -> Prompts:
    """The prompts at `rows`, repeats allowed; the cache is copied, so the original can be continued from again."""
    cache = prompts.cache
    if cache is not None:
        cache = copy(cache)
        cache.layers = [copy(layer) for layer in cache.layers]  # `batch_select_indices` rebinds keys and values of a layer
        cache.batch_select_indices(rows)
    return Prompts(prompts.tokens[rows], prompts.attention[rows], prompts.last[rows], cache)


def extend(
    model: Model, prompts: Prompts, tokens: Int[Tensor, "prompt new"], real: Bool[Tensor, "prompt new"]
) -> tuple[Float[Tensor, "prompt new d_vocab"], Prompts]:
    """Logits after each new token, and the longer prompts.

    Args:
        prompts: used up by this call, for its cache grows in place; continue from a `take` of what is needed again.
        real: false where `tokens` is padding (on the right).
    """
    attention = torch.cat([prompts.attention, real], dim=1)
    whole = torch.cat([prompts.tokens, tokens], dim=1)
    new = tokens.shape[1]
    given = whole if prompts.cache is None else tokens
    logits = _forward(model, given, attention, cache=prompts.cache, keep=new).logits[:, -new:]
    return logits, replace(prompts, tokens=whole, attention=attention, last=logits[:, -1])


def _forward(model: Model, tokens: Tensor, attention: Tensor, *, keep: int, cache: DynamicCache | None = None) -> Any:
    """The plain HF model on the last `tokens.shape[1]` positions of `attention`; logits of at least the last `keep`."""
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": attention.long()}
    if model.takes_positions:
        positions = (attention.long().cumsum(-1) - 1).clamp_min(0)
        inputs["position_ids"] = positions[:, -tokens.shape[1] :]
    accepted = signature(model.hf.forward).parameters
    if cache is not None:
        inputs["past_key_values"] = cache
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = keep
    return model.hf(**inputs, use_cache=True)


def _is_plain(cache: object) -> bool:
    """Whether every layer keeps all keys and values and nothing else, so that rows can be copied and continued from."""
    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers)
