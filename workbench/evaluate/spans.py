"""The tokens of one answer of every example, side by side: what the metrics over tokens reduce."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.core.errors import DataError, InputError, unknown
from workbench.evaluate.table import NO_END, Table, TokenTable

RESPONSE = "response"


class Spans(NamedTuple):
    """The tokens of one variant, in the order of the examples and of their positions.

    ids: of the examples.   first, length: [example] where an answer's tokens begin, and how many there are, at least 1.
    owner: [token] the example.   right: [token] whether the token is the model's first choice.
    logprob, mean, variance: [token] float64, as in `evaluate.moments`.
    """

    ids: tuple[str, ...]
    first: Int[np.ndarray, "example"]
    length: Int[np.ndarray, "example"]
    owner: Int[np.ndarray, "token"]
    right: Bool[np.ndarray, "token"]
    logprob: Float[np.ndarray, "token"]
    mean: Float[np.ndarray, "token"]
    variance: Float[np.ndarray, "token"]

    def average(self, values: Float[np.ndarray, "token"]) -> Float[np.ndarray, "example"]:
        """Mean of a value per token over each answer, float64."""
        return np.add.reduceat(values, self.first) / self.length

    def lowest(self, values: Float[np.ndarray, "token"], share: float) -> Float[np.ndarray, "example"]:
        """Mean of the lowest `share` of an answer's values: floor(share * length) of them, at least one.

        The product is nudged up by 1e-9, so that 0.29 of 100 are 29 and not the 28 of floating point.
        """
        order = np.lexsort((values, self.owner))
        kept = np.maximum(1, np.floor(share * self.length + 1e-9)).astype(np.int64)
        inside = np.arange(len(values)) - np.repeat(self.first, self.length)
        chosen = inside < np.repeat(kept, self.length)
        return np.add.reduceat(np.where(chosen, values[order], 0.0), self.first) / kept


def spans(name: str, table: Table, *, variant: str = RESPONSE, end: bool = True) -> Spans:
    """The tokens of every example's answer.

    Args:
        name: of the metric that asks, for its errors.
        variant: which answer: "response", "paraphrase", "perturbed.0" ...
        end: whether the end-of-text token counts as one of the answer's. Where a tokenizer has none, nothing is left out.
    Raises: InputError for Answers, which hold no tokens, or `end=False` of a table that does not say which token ends a text;
        UnknownNameError for a variant no example has; DataError for a table without rows, an example without this answer, or
        with nothing in it but the end-of-text token that is left out.
    """
    if not isinstance(table, TokenTable):
        raise InputError(
            f"{name}: needs the token table of {table.name!r}, but got Answers, which hold one number an answer. "
            "Read the rows with `evaluate.tokens`, or load a table with `TokenTable.load`; a log has no tokens."
        )
    if variant not in table.variants:
        raise unknown("variant", variant, table.variants)
    n = len(table.ids)
    if n == 0:
        raise DataError(f"{name}: the token table {table.name!r} has no example; nothing was measured.")
    at = np.flatnonzero(table.variant == table.variants.index(variant))
    at = at[np.lexsort((table.position[at], table.row[at]))]
    _check(name, table, variant, np.bincount(table.row[at], minlength=n), "has no such answer")
    if not end:
        at = at[~_closing(name, table, at)]
        _check(name, table, variant, np.bincount(table.row[at], minlength=n), "holds the end-of-text token alone")
    owner = table.row[at].astype(np.int64)
    length = np.bincount(owner, minlength=n)
    return Spans(
        table.ids,
        length.cumsum() - length,
        length,
        owner,
        table.top[at] == table.token[at],
        *(column[at].astype(np.float64) for column in (table.logprob, table.mean, table.variance)),
    )


def _closing(name: str, table: TokenTable, at: Int[np.ndarray, "token"]) -> Bool[np.ndarray, "token"]:
    """Which of the tokens is the last of its answer and the end-of-text token."""
    if table.end is None:
        raise InputError(
            f"{name}: end=False leaves the end-of-text token out, but the token table {table.name!r} does not say which it is. "
            "Use dataclasses.replace(table, end=model.tokenizer.eos_token_id), NO_END where the tokenizer has none."
        )
    last = np.ones(len(at), dtype=bool)
    last[:-1] = table.row[at][1:] != table.row[at][:-1]
    return last & (table.token[at] == table.end) & (table.end != NO_END)


def _check(name: str, table: TokenTable, variant: str, count: Int[np.ndarray, "example"], why: str) -> None:
    if (count == 0).any():
        lacking = np.flatnonzero(count == 0)
        raise DataError(
            f"{name}: the {variant} of {len(lacking)} of {len(table.ids)} rows of {table.name!r} {why}, first "
            f"{table.ids[int(lacking[0])]!r}. Leave those rows out."
        )
