"""The whole TOFU suite, from rows of text to numbers with intervals, against the forward passes it cannot do without."""

from collections.abc import Iterator

import torch

from benchmarks.cases import Row, Sets, batches, forward_only
from benchmarks.timing import peak_gib, versus
from workbench.core.records import Example
from workbench.evaluate import suite
from workbench.evaluate.generate import greedy
from workbench.evaluate.prompts import start
from workbench.load.batches import Encoded, by_length, encode
from workbench.load.models import Model

GENERATE = 48
"""New tokens of an answer at most; most of the organism's answers are shorter."""


def tofu_suite(model: Model, sets: Sets, tokens: int, *, repeats: int = 3) -> Iterator[Row]:
    """`evaluate.suite("tofu", ...)` against one forward pass over every row, its prompt once and all its answers behind, and greedy
    generation of the same tokens from the same prompts."""
    rows = [_joined(model, row) for split in sets.measured.values() for row in split]
    groups = batches(model, rows, tokens)
    prompts = [Encoded(row.id, row.tokens[: row.start], row.start) for row in rows]
    asked = [[prompts[i].tokens for i in chosen] for chosen in by_length(prompts, max_tokens=tokens)]

    @torch.no_grad()
    def floor() -> None:
        forward_only(model, groups)
        for group in asked:
            greedy(model, start(model, group), max_new_tokens=GENERATE)

    def job() -> None:
        suite("tofu", model, data=sets.measured, generate=GENERATE, batch_tokens=tokens)

    took, bare = versus(job, floor, model.device, repeats=repeats)
    yield Row("TOFU suite, whole", "every row once, and the same answers", took, bare, "≤ 1.25", peak_gib(job, model.device))


def _joined(model: Model, row: Example) -> Encoded:
    """The prompt and all answers in one sequence: as many tokens as the suite forwards."""
    texts = (row.response, row.paraphrase, *row.perturbed)
    answers = [encode(model, row.prompt, text, id=row.id) for text in texts if text is not None]
    first = answers[0]
    return Encoded(row.id, [*first.tokens, *(t for one in answers[1:] for t in one.tokens[one.start :])], first.start)
