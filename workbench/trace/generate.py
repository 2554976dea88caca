"""Greedy text by Hugging Face's own `generate`, for looking at a model; judging has `evaluate.generate`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import GenerationConfig

from workbench.core.errors import InputError
from workbench.load.batches import Encoded, collate, render
from workbench.load.models import Model
from workbench.trace.forward import check_eval


@torch.no_grad()
def generate(model: Model, prompts: str | Sequence[str], *, max_new_tokens: int = 64) -> list[str]:
    """What the model answers, one text a prompt, without special tokens and white space at the ends.

    Prompts go through the chat template where the tokenizer has one, are padded on the left, and continue greedily: of the
    checkpoint's generation settings only the end-of-text tokens count, no sampling, beam, penalty or forced token. Where one prompt
    leaves less room in the context than `max_new_tokens`, the prompts are answered one by one, so that it cuts no other short.
    Edits that are applied take part, those done by hooks too.

    Raises: InputError for no prompt, an empty one, one that leaves no room in the context, or max_new_tokens below 1.
    """
    if max_new_tokens < 1:
        raise InputError(f"generate: max_new_tokens is {max_new_tokens}; expected 1 or more.")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise InputError("generate: there is no prompt. Give a text, or a list of them.")
    check_eval(model)
    rows = []
    for i, text in enumerate(texts):
        head, special = render(model, text)
        tokens = list(model.tokenizer(head, add_special_tokens=special)["input_ids"])
        if not tokens or len(tokens) >= model.context:
            said = f"it has {len(tokens)} tokens, the model's context {model.context}" if tokens else "no token is left of it"
            raise InputError(f"generate: prompt {i} cannot be continued: {said}. It begins {text[:40]!r}.")
        rows.append(Encoded(str(i), tokens, len(tokens)))
    together = max(len(row.tokens) for row in rows) + max_new_tokens <= model.context
    batches = [rows] if together else [[row] for row in rows]
    return [answer for some in batches for answer in _answers(model, some, max_new_tokens)]


def _answers(model: Model, rows: Sequence[Encoded], max_new_tokens: int) -> list[str]:
    """What the model answers to prompts that are batched together; fewer tokens where the context is full."""
    batch = collate(rows, device=model.device, side="left")
    width = batch.tokens.shape[1]
    asked = GenerationConfig(
        max_new_tokens=min(max_new_tokens, model.context - width),
        do_sample=False,
        num_beams=1,
        eos_token_id=_ends(model) or None,
        pad_token_id=_pad(model),
    )
    with _settings(model, asked):
        made = model.hf.generate(  # pyright: ignore[reportCallIssue]  # transformers types it as a Tensor
            input_ids=batch.tokens, attention_mask=batch.attention.long(), generation_config=asked
        )
    return [str(text).strip() for text in model.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)]


@contextmanager
def _settings(model: Model, settings: GenerationConfig) -> Iterator[None]:
    """The model with these generation settings for its own: `generate` fills from those all that a given config leaves open."""
    before = model.hf.generation_config
    model.hf.generation_config = settings
    try:
        yield
    finally:
        model.hf.generation_config = before


def _ends(model: Model) -> list[int]:
    """Ids that end a text: the tokenizer's end-of-text, and all that the checkpoint's generation settings name."""
    named = getattr(model.hf.generation_config, "eos_token_id", None)
    several = [model.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return sorted({token for token in several if isinstance(token, int)})


def _pad(model: Model) -> int:
    """What is written behind a text that has ended; decoding drops it with the other special tokens."""
    ids = (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id)
    return next((i for i in ids if isinstance(i, int)), 0)
