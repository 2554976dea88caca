"""Where the fact stands in an answer: the tokens of an entity, found by character offsets in the model's own tokenizer.

TOFU's answers are sentences, most of whose tokens say nothing about the author. What was to be forgotten is the entity: "Love
Inspired" in "Bahraini author Aysha Al-Hashim predominantly wrote in the genre of Love Inspired."
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.core.errors import DataError
from workbench.core.records import Example, Examples, Rows
from workbench.core.store import existing
from workbench.load.batches import Encoded, encode, render
from workbench.load.datasets import json_rows, text_of
from workbench.load.models import Model


@dataclass(frozen=True)
class Entity:
    """The entity in one example's response. prefix: the response up to it, for where it stands more than once."""

    id: str
    entity: str
    prefix: str | None = None


class Entities(Rows[Entity]):
    """Rows of (id, entity, prefix)."""


def entities(source: str | Path) -> Entities:
    """Entities from JSON lines of {"id": of the example, "entity": ..., "prefix": optional}.

    Raises: InputError for a missing file; DataError naming file and line for a row without id or entity, or an id twice.
    """
    path = existing(source)

    def rows() -> Iterator[Entity]:
        for row, where in json_rows(path):
            prefix = text_of(row, ("prefix",), where) if row.get("prefix") else None
            yield Entity(text_of(row, ("id",), where), text_of(row, ("entity",), where), prefix)

    return Entities(rows(), str(source))


def spans(model: Model, examples: Examples, marked: Entities) -> list[Encoded]:
    """Every example that has an entity as tokens that end with it: `start` is the entity's first token, its last is the row's last.

    So the entity is what `load.batches` calls the answer. What follows it is cut off, which no earlier position sees. A token is of
    the entity if it has a character of it, also where it reaches beyond: a tokenizer may merge across the border.

    Args: marked: of these examples; those of other rows are not used, and rows without one are left out.
    Returns: rows in the examples' order.
    Raises: DataError if no example has an entity; naming the row if its entity is not in its response, or more than once without
        a prefix that says which is meant.
    """
    known = {one.id: one for one in marked}
    found = [_span(model, example, known[example.id]) for example in examples if example.id in known]
    if not found:
        raise DataError(
            f"{examples.name}: none of its {len(examples)} rows has an entity in {marked.name}, whose first id is "
            f"{marked.ids[0]!r}. An entity carries the id of its example."
        )
    return found


def _span(model: Model, example: Example, marked: Entity) -> Encoded:
    """One row up to the end of its entity."""
    at = _place(example, marked)
    head, special = render(model, example.prompt)
    gap = "" if not head or head[-1].isspace() or example.response[:1].isspace() else " "
    coded = model.tokenizer(head + gap + example.response, add_special_tokens=special, return_offsets_mapping=True)
    first = len(head) + len(gap) + at
    last = first + len(marked.entity)
    inside = [i for i, (begin, end) in enumerate(coded["offset_mapping"]) if end > first and begin < last]
    row = encode(model, example.prompt, example.response, id=example.id)
    if not inside or inside[0] == 0 or row.tokens[: inside[-1] + 1] != coded["input_ids"][: inside[-1] + 1]:
        raise DataError(
            f"row {example.id!r}: no tokens of the entity {marked.entity!r} with something before them that predicts them. "
            "Give the row a prompt, or use a tokenizer whose offsets are those of the text."
        )
    return Encoded(example.id, row.tokens[: inside[-1] + 1], inside[0])


def _place(example: Example, marked: Entity) -> int:
    """Index of the entity's first character in the response."""
    text, wanted = example.response, marked.entity
    if marked.prefix is not None:
        rest = text.removeprefix(marked.prefix)
        at = len(text) - len(rest.lstrip())
        if not text.startswith(marked.prefix) or not text.startswith(wanted, at):
            raise DataError(f"row {example.id!r}: its response {text[:60]!r} does not go on with {wanted!r} behind the prefix.")
        return at
    if text.count(wanted) != 1:
        raise DataError(
            f"row {example.id!r}: the entity {wanted!r} stands {text.count(wanted)} times in its response {text[:60]!r}; expected "
            "once. " + ("Give its prefix, the response up to it." if wanted in text else "Spell it as the response does.")
        )
    return text.index(wanted)
