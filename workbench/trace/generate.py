"""Greedy text by Hugging Face's own `generate`, for looking at a model; judging has `evaluate.generate`."""

from collections.abc import Sequence

import torch

from workbench.core.errors import InputError
from workbench.load.batches import Encoded, collate, render
from workbench.load.models import Model
from workbench.trace.forward import check_eval


@torch.no_grad()
def generate(model: Model, prompts: str | Sequence[str], *, max_new_tokens: int = 64) -> list[str]:
    """What the model answers, one text a prompt, without special tokens and white space at the ends.

    Prompts go through the chat template where the tokenizer has one, are padded on the left, and continue greedily: a sampling or
    beam setting of the checkpoint is ignored. Edits that are applied take part, those done by hooks too.

    Raises: InputError for no prompt, an empty one, or one that leaves no room in the context.
    """
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
    batch = collate(rows, device=model.device, side="left")
    width = batch.tokens.shape[1]
    made = model.hf.generate(  # pyright: ignore[reportCallIssue]  # transformers types it as a Tensor
        input_ids=batch.tokens,
        attention_mask=batch.attention.long(),
        max_new_tokens=min(max_new_tokens, model.context - width),
        do_sample=False,
        num_beams=1,
        pad_token_id=_pad(model),
    )
    return [str(text).strip() for text in model.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)]


def _pad(model: Model) -> int:
    """What is written behind a text that has ended; decoding drops it with the other special tokens."""
    ids = (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id)
    return next((i for i in ids if isinstance(i, int)), 0)
