"""What a model answers to the questions of a concept."""

from collections.abc import Sequence

import torch

from workbench.core.errors import DataError
from workbench.core.runtime import progress
from workbench.evaluate.generate import greedy, text
from workbench.evaluate.prompts import start
from workbench.evaluate.tokens import BATCH_TOKENS
from workbench.load.batches import Encoded, by_length, render
from workbench.load.concepts import Concept
from workbench.load.models import Model
from workbench.trace.forward import check_eval

NEW_TOKENS = 100  # as the published code


@torch.no_grad()
def ask(
    model: Model,
    concepts: Sequence[Concept],
    *,
    max_new_tokens: int = NEW_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    show: bool = False,
) -> dict[str, list[str]]:
    """Greedy answers to all questions of the concepts, by split: qa, completion (only where there is one), unrelated_qa.

    Prompts are padded on the left and answers cut off at each prompt's own end; the published code padded on the right and took the
    last 100 tokens.

    Returns: texts without special tokens, in the order of the concepts and their questions.
    Raises: DataError naming a prompt that leaves no room in the model's context.
    """
    check_eval(model)
    prompts = {
        "qa": [_prompt(model, q, concept.question) for concept in concepts for q in concept.qa],
        "completion": [_prompt(model, first, concept.start) for concept in concepts for first, _ in concept.completion],
        "unrelated_qa": [_prompt(model, q, concept.question) for concept in concepts for q in concept.unrelated_qa],
    }
    every = [Encoded(split, tokens, len(tokens)) for split, rows in prompts.items() for tokens in rows]
    made: dict[int, str] = {}
    for group in progress(list(by_length(every, max_tokens=batch_tokens)), label="answers", show=show):
        found = greedy(model, start(model, [every[i].tokens for i in group]), max_new_tokens=max_new_tokens)
        made |= {i: text(model, new) for i, new in zip(group, found, strict=True)}
    said: dict[str, list[str]] = {split: [] for split, rows in prompts.items() if rows}
    for i, row in enumerate(every):
        said[row.id].append(made[i])
    return said


def _prompt(model: Model, said: str, template: str | None) -> list[int]:
    """Tokens of a question or a first half, as Concept says it is put to the model."""
    whole, special = render(model, said) if template is None else (template.replace("{text}", said), True)
    tokens = list(model.tokenizer(whole, add_special_tokens=special)["input_ids"])
    while special and tokens and tokens[-1] == model.tokenizer.eos_token_id:
        tokens.pop()  # of a tokenizer that ends every text
    if not 0 < len(tokens) < model.context:
        raise DataError(f"ask: {said[:40]!r} is {len(tokens)} tokens as a prompt, expected 1 to {model.context - 1}.")
    return tokens
