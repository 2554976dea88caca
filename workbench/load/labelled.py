"""Labelled texts: what a probe is fitted on, from one's own JSON lines or table."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import DataError, InputError
from workbench.core.records import Rows
from workbench.core.store import existing, open_text
from workbench.load.datasets import json_rows, text_of

Label = int | float | str


@dataclass(frozen=True)
class LabelledText:
    """One text and its label. group: rows that say nearly the same share it; None for a row of its own."""

    id: str
    text: str
    label: Label
    group: str | None = None


class LabelledTexts(Rows[LabelledText]):
    """Rows of (id, text, label, group)."""

    @property
    def texts(self) -> list[str]:
        """The texts in order."""
        return [row.text for row in self.rows]

    @property
    def labels(self) -> list[Label]:
        """The labels in order."""
        return [row.label for row in self.rows]

    @property
    def groups(self) -> list[str] | None:
        """The group of every row, a row without one being its own; None if no row has one."""
        if all(row.group is None for row in self.rows):
            return None
        return [f"row {row.id}" if row.group is None else row.group for row in self.rows]


def labelled(source: str | Path) -> LabelledTexts:
    """One's own labelled texts: a .jsonl file of {"text", "label"} (and "id", "group"), or a .csv file with these columns.

    Labels are whole numbers or texts (classes), or numbers (targets of a regression); a .csv's are numbers if all are.

    Raises: DataError naming file and line for a broken row; InputError for another kind of file.
    """
    path = existing(source)
    if path.suffix in (".jsonl", ".json"):
        return LabelledTexts((_row(row, where, i) for i, (row, where) in enumerate(json_rows(path))), str(source))
    if path.suffix == ".csv":
        return LabelledTexts(_csv_rows(path), str(source))
    raise InputError(f"labelled: {path}: expected a .jsonl or .csv file of texts and labels.")


def _row(row: Mapping[str, Any], where: str, number: int) -> LabelledText:
    label, group = row.get("label"), row.get("group")
    if isinstance(label, bool) or not isinstance(label, Label) or label == "":
        raise DataError(f"{where}: 'label' is {label!r}, expected a number or a text.")
    if group is not None and (isinstance(group, bool) or not isinstance(group, str | int)):
        raise DataError(f"{where}: 'group' is {group!r}, expected a text or a whole number.")
    text = text_of(row, ("text",), where)
    return LabelledText(str(row.get("id", number)), text, label, None if group is None else str(group))


def _csv_rows(path: Path) -> Iterator[LabelledText]:
    with open_text(path, encoding="utf-8-sig", newline="") as lines:  # a spreadsheet begins its file with a byte-order mark
        reader = csv.DictReader(lines)
        columns = list(reader.fieldnames or ())
        if not {"text", "label"} <= set(columns):
            raise InputError(f"labelled: {path} has the columns {', '.join(columns) or 'none'}; expected text and label.")
        rows = [(row, f"{path}, line {reader.line_num}") for row in reader]
    kind = _kind([row["label"] or "" for row, _ in rows])
    for number, (row, where) in enumerate(rows):
        given = {key: value for key, value in row.items() if value not in (None, "")}
        if "label" in given:
            given["label"] = kind(given["label"])
        yield _row(given, where, number)


def _kind(labels: list[str]) -> type[int] | type[float] | type[str]:
    """int or float if every label reads as one, else str."""
    for kind in (int, float):
        try:
            [kind(label) for label in labels if label]
        except ValueError:
            continue
        return kind
    return str
