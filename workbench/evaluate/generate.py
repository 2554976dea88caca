"""Greedy generation from prompts that are already in the model's cache.

The prompt is given as tokens: those before the first answer token of the joint tokenization, so a prompt is never tokenized a
second time. Only the arg max decides: sampling, penalties and forced tokens of the checkpoint's generation_config are ignored.
TOFU's script stops at 200 tokens with the prompt, OpenUnlearning at 200 new ones.
"""

import torch

from workbench.evaluate.prompts import Prompts, extend, take
from workbench.load.models import Model


def stop_tokens(model: Model) -> set[int]:
    """Ids that end a text: the tokenizer's end-of-text, and all that the checkpoint's generation_config names."""
    settings = getattr(model.hf, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    several = [model.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return {token for token in several if isinstance(token, int)}


@torch.no_grad()
def greedy(model: Model, prompts: Prompts, *, max_new_tokens: int) -> list[list[int]]:
    """The most likely next token, again and again, for each prompt: new tokens without the one that ended the text.

    A row stops at an end-of-text token, after `max_new_tokens`, or where the model's context is full; it then leaves the
    batch, so that the rest is not slowed down by it.

    Args: prompts: used up by this call.
    """
    ends = stop_tokens(model)
    made: list[list[int]] = [[] for _ in prompts.tokens]
    room = [min(max_new_tokens, model.context - int(n)) for n in prompts.attention.sum(-1)]
    alive = [i for i, n in enumerate(room) if n > 0]
    if len(alive) < len(made):
        prompts = take(prompts, torch.tensor(alive, dtype=torch.long, device=model.device))
    while alive:
        token = prompts.last.argmax(-1)
        going = []
        for place, (i, new) in enumerate(zip(alive, token.tolist(), strict=True)):
            if new in ends:
                continue
            made[i].append(new)
            if len(made[i]) < room[i]:
                going.append(place)
        if len(going) < len(alive):
            alive = [alive[place] for place in going]
            stay = torch.tensor(going, dtype=torch.long, device=model.device)
            prompts, token = take(prompts, stay), token[stay]
        if alive:
            _, prompts = extend(model, prompts, token[:, None], torch.ones_like(token[:, None], dtype=torch.bool))
    return made


def text(model: Model, tokens: list[int]) -> str:
    """Generated tokens as text: without special tokens, white space at both ends removed, nothing else cleaned up."""
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()
