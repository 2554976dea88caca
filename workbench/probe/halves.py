"""Rows of a concept and of something else, divided once into a half that selects and a half that reports."""

from collections.abc import Sequence
from typing import NamedTuple

from workbench.core.errors import DataError
from workbench.core.numerics import permutation
from workbench.core.records import Examples
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.load.texts import encode_texts

FIRST = 4  # tokens of a plain text that are read before its log-probability counts


class Half(NamedTuple):
    """Rows of the concept and unrelated ones, as tokens; log-probabilities count from `start` on."""

    answers: list[Encoded]
    unrelated: list[Encoded]


def halves(model: Model, texts: Examples | Sequence[str], against: Examples | Sequence[str], seed: int) -> tuple[Half, Half]:
    """Rows of both sets, each divided at random into a selecting and a reporting half (the larger, if odd)."""
    divided: list[tuple[list[Encoded], list[Encoded]]] = []
    seen: set[tuple[int, ...]] = set()
    for name, rows in (("texts", texts), ("against", against)):
        coded = encode_all(model, rows) if isinstance(rows, Examples) else _plain(model, rows)
        if len(coded) < 2:
            raise DataError(f"find_concept: {name} has {len(coded)} row(s), expected 2 or more: half select, half report.")
        own = {tuple(row.tokens) for row in coded}
        if seen & own:
            raise DataError(f"find_concept: {len(seen & own)} row(s) stand in both sets; what they share tells nothing apart.")
        seen = own
        order = permutation(len(coded), seed)
        middle = len(coded) // 2
        divided.append(([coded[i] for i in order[:middle]], [coded[i] for i in order[middle:]]))
    return Half(divided[0][0], divided[1][0]), Half(divided[0][1], divided[1][1])


def _plain(model: Model, texts: Sequence[str]) -> list[Encoded]:
    """Plain texts whose log-probability counts behind their first FIRST tokens, at least for the last token."""
    return [row._replace(start=min(row.start + FIRST, len(row.tokens) - 1)) for row in encode_texts(model, texts)]
