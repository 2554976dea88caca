"""One forward pass over all answers of a set of examples: the token table.

A prompt goes through the model once; the response, the paraphrase and the false answers continue from its key-value cache, and
so does the generated text. Batches are grouped by length.

Against one full forward pass a sequence, float32 on a CPU: log-probabilities agree within 2e-5 nats (measured: 1.3e-5 on
stories260K and slm4096). With a float64 model only the table's own rounding to float32 is left: neither padding nor the cache
adds anything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.core.errors import DataError, InputError, NumericsError, TooLongError
from workbench.core.records import Examples, Provenance
from workbench.core.runtime import plan_memory, progress
from workbench.evaluate.generate import greedy, text
from workbench.evaluate.moments import Columns
from workbench.evaluate.prompts import Prompts, extend, start, take
from workbench.evaluate.table import NO_END, TokenTable
from workbench.load.batches import Encoded, by_length, check_lengths, collate, encode
from workbench.load.models import Model
from workbench.trace.forward import check_eval

BATCH_TOKENS = 4096  # on a CPU 2048 to 4096 is fastest; a GPU with free memory likes more


class Answer(NamedTuple):
    """One answer to be read. prompt: its number among the distinct prompts; tokens: those of the answer; first: where its
    values stand in the columns."""

    row: int
    variant: int
    prompt: int
    tokens: list[int]
    first: int


@dataclass(frozen=True)
class Plan:
    """All answers, row by row, and the distinct prompts they continue; response: the prompt number of each row's response."""

    answers: list[Answer]
    prompts: list[tuple[int, ...]]
    response: list[int]
    length: int


def tokens(
    model: Model,
    examples: Examples,
    *,
    generate: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    show: bool = False,
) -> TokenTable:
    """Read every answer of every example, and optionally let the model answer itself.

    Args:
        generate: most new tokens of the greedy answer to each prompt; None generates nothing.
        batch_tokens: most tokens in one padded batch, cached prompt tokens included; lower it where memory is short. The cache of
            generated text can grow to `generate` more tokens for each prompt of a batch.
        show: draw a progress bar.
    Returns: a TokenTable with the variants "response", "paraphrase", "perturbed.0", ... of each example that has them.
    Raises: TooLongError naming all rows that are too long; DataError for an empty answer, or nothing before an answer;
        NumericsError for a log-probability that is NaN or infinite; MemoryPlanError if a batch's logits would not fit.
    """
    for name, value in (("generate", generate), ("batch_tokens", batch_tokens)):
        if value is not None and value < 1:
            raise InputError(f"tokens: {name} is {value}, expected at least 1{' or None' if name == 'generate' else ''}.")
    check_eval(model)
    plan = _plan(model, examples)
    needed = 4 * model.d_vocab * batch_tokens
    plan_memory("tokens: the logits of one batch", needed, model.device, cure="Lower batch_tokens.")
    columns = Columns(plan.length, model.device)
    made = _run(model, plan, columns, generate=generate, batch_tokens=batch_tokens, show=show, label=examples.name)
    return _table(model, examples, plan, columns, made, generate=generate, batch_tokens=batch_tokens)


def _plan(model: Model, examples: Examples) -> Plan:
    numbers: dict[tuple[int, ...], int] = {}
    answers: list[Answer] = []
    response: list[int] = []
    first = 0
    long: dict[str, TooLongError] = {}
    for row, example in enumerate(examples):
        given = [example.response, example.paraphrase, *example.perturbed]
        for variant, answer in enumerate(given):
            if answer is None:
                continue
            try:
                coded = encode(model, example.prompt, answer, id=example.id)
            except TooLongError as error:
                long.setdefault(example.id, error)
                continue
            if coded.start == 0:
                raise DataError(
                    f"row {example.id!r}: no token stands before the answer, so nothing predicts its first token. "
                    "Give the row a prompt, or use a tokenizer with a beginning-of-text token."
                )
            prompt = numbers.setdefault(tuple(coded.tokens[: coded.start]), len(numbers))
            answers.append(Answer(row, variant, prompt, coded.tokens[coded.start :], first))
            first += len(answers[-1].tokens)
            if variant == 0:
                response.append(prompt)
    check_lengths(examples.name, "rows", model.context, list(long.values()), len(examples))
    return Plan(answers, list(numbers), response, first)


@torch.no_grad()
def _run(
    model: Model, plan: Plan, columns: Columns, *, generate: int | None, batch_tokens: int, show: bool, label: str
) -> dict[int, str]:
    """Fill the columns; returns the generated text of each prompt that a response belongs to."""
    made: dict[int, str] = {}
    coded = [Encoded("prompt", list(prompt), len(prompt)) for prompt in plan.prompts]
    belonging: list[list[Answer]] = [[] for _ in coded]
    for answer in plan.answers:
        belonging[answer.prompt].append(answer)
    groups = list(by_length(coded, max_tokens=batch_tokens))
    for group in progress(groups, label=label, show=show):
        prompts = start(model, [plan.prompts[number] for number in group])
        slots = {number: slot for slot, number in enumerate(group)}
        here = [answer for number in group for answer in belonging[number]]
        _read(model, prompts, here, [slots[a.prompt] for a in here], columns, batch_tokens=batch_tokens)
        if generate is not None:
            asked = sorted(slots.keys() & set(plan.response))
            texts = _write(model, prompts, [slots[n] for n in asked], generate=generate)
            made |= dict(zip(asked, texts, strict=True))
    return made


def _read(
    model: Model, prompts: Prompts, answers: Sequence[Answer], slots: list[int], columns: Columns, *, batch_tokens: int
) -> None:
    """Every token of `answers`, whose prompts stand at `slots`: the first from the prompts' last logits, the rest from a
    forward pass over the answers without their last token."""
    device, width = model.device, prompts.tokens.shape[1]

    def ids(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    columns.write(ids([a.first for a in answers]), prompts.last, ids(slots), ids([a.tokens[0] for a in answers]))
    longer = [i for i, a in enumerate(answers) if len(a.tokens) > 1]
    # the prompt's padded width stands in front, so that a batch is measured with the cached tokens it holds
    rows = [Encoded("answer", [0] * width + answers[i].tokens[:-1], width) for i in longer]
    for group in by_length(rows, max_tokens=batch_tokens):
        batch = collate([rows[i] for i in group], device=device)
        real = batch.answer[:, width:]
        chosen = take(prompts, ids([slots[longer[i]] for i in group]))
        logits, _ = extend(model, chosen, batch.tokens[:, width:], real)
        read = [answers[longer[i]] for i in group]
        at = ids([a.first + t for a in read for t in range(1, len(a.tokens))])
        target = ids([token for a in read for token in a.tokens[1:]])
        columns.write(at, logits.flatten(0, 1), real.flatten().nonzero().squeeze(-1), target)


def _write(model: Model, prompts: Prompts, slots: Sequence[int], *, generate: int) -> list[str]:
    """The model's own greedy answer to each prompt in `slots`, all in one batch: most rows stop long before `generate`."""
    chosen = take(prompts, torch.tensor(slots, dtype=torch.long, device=model.device))
    return [text(model, new) for new in greedy(model, chosen, max_new_tokens=generate)]


def _table(
    model: Model,
    examples: Examples,
    plan: Plan,
    columns: Columns,
    made: dict[int, str],
    *,
    generate: int | None,
    batch_tokens: int,
) -> TokenTable:
    counts = np.array([len(a.tokens) for a in plan.answers])
    values = columns.numpy()
    owner = np.repeat(np.arange(len(counts)), counts)
    if not np.isfinite(values["logprob"]).all():
        answer = plan.answers[owner[int(np.flatnonzero(~np.isfinite(values["logprob"]))[0])]]
        raise NumericsError(
            f"tokens: row {examples[answer.row].id!r} of {examples.name} has a log-probability that is NaN or infinite. "
            "The weights may hold NaN, or half precision overflowed: try dtype='float32'."
        )
    most = max(len(example.perturbed) for example in examples)
    prompt_tokens = sum(map(len, plan.prompts))
    return TokenTable(
        name=examples.name,
        ids=tuple(examples.ids),
        truth=tuple(example.response for example in examples),
        generated=tuple(made.get(number) for number in plan.response),
        variants=("response", "paraphrase", *(f"perturbed.{k}" for k in range(most))),
        row=np.array([a.row for a in plan.answers], dtype=np.int32)[owner],
        variant=np.array([a.variant for a in plan.answers], dtype=np.int32)[owner],
        position=(np.arange(plan.length) - np.array([a.first for a in plan.answers])[owner]).astype(np.int32),
        token=np.array([token for a in plan.answers for token in a.tokens], dtype=np.int32),
        **values,
        prompt_tokens=prompt_tokens,
        provenance=Provenance(
            "tokens",
            model.fingerprint(),
            {"examples": examples.fingerprint()},
            {"generate": generate, "batch_tokens": batch_tokens},
            dtype=str(model.dtype).removeprefix("torch."),
            reduction="none",
            tokens=prompt_tokens + plan.length,
        ),
        end=stop if isinstance(stop := model.tokenizer.eos_token_id, int) else NO_END,
    )
