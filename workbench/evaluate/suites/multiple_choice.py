"""Accuracy on multiple-choice questions, such as WMDP's or MMLU's: the choice the model gives the highest probability.

    accuracy        argmax_c ln p(c | question), the harness' acc
    accuracy_norm   argmax_c ln p(c | question) / |c|, |c| the choice's characters, the harness' acc_norm

ln p is summed over the choice's tokens, without an end-of-text token; of equal choices the first counts, as in the harness
(lm-evaluation-harness). "tokens" and "bytes" are other lengths in use, and give other numbers where choices are of unequal length.
With letters for answers both are the same.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.core.errors import InputError, unknown
from workbench.core.measurements import Measurement, Measurements
from workbench.core.statistics import wilson
from workbench.evaluate.table import NO_END, TokenTable
from workbench.evaluate.tokens import BATCH_TOKENS, tokens
from workbench.load.models import Model
from workbench.load.multiple_choice import Questions, choice_rows
from workbench.load.passages import without_chat

LENGTHS = ("characters", "bytes", "tokens")


class Choices(NamedTuple):
    """What a model says of every choice. logprob: nats, summed, NaN where a question has fewer; tokens: how many, 0 there."""

    logprob: Float[np.ndarray, "question choice"]
    tokens: Int[np.ndarray, "question choice"]


def run_multiple_choice(
    model: Model,
    data: Questions,
    *,
    form: str = "texts",
    length: str = "characters",
    description: str = "",
    chat: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    split: str = "questions",
    show: bool = False,
) -> Measurements:
    """Accuracy on questions, beside what guessing gives.

    Args:
        form, description: see `choice_rows`.   length: that `accuracy_norm` divides by.
        chat: put the question as a user's turn of the model's chat template; without, it is read as it stands, as by the harness.
        batch_tokens, show: as in `tokens`.   split: name of the questions in the result.
    Returns: Measurements accuracy and accuracy_norm with Wilson intervals, and chance, the mean over questions of 1 / choices.
    Raises: UnknownNameError for another form or length; DataError naming a question that is longer than the model's context.
    Reference: Li et al. 2024 (WMDP), arXiv:2403.03218; Gao et al., lm-evaluation-harness, `api/task.py`.
    """
    if length not in LENGTHS:
        raise unknown("length of a choice", length, LENGTHS)
    asked = model if chat else without_chat(model)
    table = tokens(asked, choice_rows(data, form=form, description=description), batch_tokens=batch_tokens, show=show)
    found = choices(table)
    n = len(data)
    rows = [
        Measurement.of(name, split, wilson(float(right.mean()), n), unit="share of questions", better="higher", note=note)
        for name, right, note in (
            ("accuracy", right_choices(data, found), f"form: {form}; not length-normalized"),
            ("accuracy_norm", right_choices(data, found, length=length, form=form), f"form: {form}; per {length[:-1]} of a choice"),
        )
    ]
    chance = float(np.mean([1 / len(one.choices) for one in data]))
    note = "no interval: what guessing gives on these questions"
    nan = float("nan")
    return Measurements([*rows, Measurement("chance", split, chance, nan, nan, n, "share of questions", note=note)])


def choices(table: TokenTable) -> Choices:
    """ln p of every choice from the token table of `choice_rows`, without the end-of-text token that closes each.

    Raises: InputError for a table that does not say which token that is.
    """
    if table.end is None:
        raise InputError(
            f"multiple_choice: the token table {table.name!r} does not say which token ends a text. Read the rows again, or use "
            "dataclasses.replace(table, end=model.tokenizer.eos_token_id), NO_END for a tokenizer without one."
        )
    width = len(table.variants)
    cell = table.row.astype(np.int64) * width + table.variant
    size = np.bincount(cell, minlength=len(table.ids) * width)
    own = np.ones(len(table), dtype=bool) if table.end == NO_END else table.position < size[cell] - 1
    total = np.bincount(cell[own], weights=table.logprob[own].astype(np.float64), minlength=len(size))
    count = np.bincount(cell[own], minlength=len(size))
    shape = len(table.ids), width
    kept = [i for i, name in enumerate(table.variants) if name != "paraphrase"]  # which no choice is
    return Choices(np.where(count > 0, total, np.nan).reshape(shape)[:, kept], count.reshape(shape)[:, kept])


def right_choices(
    data: Questions, found: Choices, *, length: str | None = None, form: str = "texts"
) -> Bool[np.ndarray, "question"]:
    """Whether the choice with the highest ln p, or ln p over its length (one of LENGTHS), is the right one. None does not
    normalize."""
    if length is None:
        score = found.logprob
    elif length == "tokens":
        score = found.logprob / np.maximum(found.tokens, 1)
    else:
        score = found.logprob / _lengths(data, found.logprob.shape[1], form, length)
    return np.nanargmax(score, axis=1) == np.array([one.answer for one in data])


def _lengths(data: Questions, width: int, form: str, length: str) -> Float[np.ndarray, "question choice"]:
    """Characters or bytes of every choice as it is put to the model; a letter has one."""
    sizes = np.ones((len(data), width))
    if form == "texts":
        for i, one in enumerate(data):
            sizes[i, : len(one.choices)] = [len(c.encode()) if length == "bytes" else len(c) for c in one.choices]
    return sizes
