"""Behaviors as data: labelled texts with a card that says what is asked, what the labels mean and where the texts are from.

    probes/refusal.yaml     question, labels, source, licence, unit, chance, n, sha256; chat, pool, groups, note if any
    probes/refusal.jsonl    {"id": "12", "text": "Describe in detail how to ...", "label": 1, "group": "7"} a line

Rows of one group (two statements about one fact, wordings of one sentence) must not stand on both sides of a split.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workbench.core.errors import DataError, InputError, unknown
from workbench.core.picture import table
from workbench.core.store import existing, file_sha256, read_text
from workbench.core.strict_yaml import StrictLoader
from workbench.core.svg import percent, shorten, tag
from workbench.load.labelled import Label, LabelledTexts, labelled

_REQUIRED = ("question", "labels", "source", "licence", "unit", "chance", "n", "sha256")
_OPTIONAL = {"chat": False, "pool": "mean", "groups": "", "note": ""}
_POOLS = ("mean", "last", "max")
_CHANCE = ("auc", "accuracy")


@dataclass(frozen=True, eq=False)
class Behavior:
    """A question about a text, and labelled texts that answer it.

    labels: what each label means.   chat: the texts are a user's turns, not plain text.   groups: what a group of rows is.
    pool: where a text's answer can be read: the "mean" over its tokens, the "last" one (texts that end with what is asked about).
    unit: of the number a probe is judged by.   chance: "auc" 0.5, and "accuracy" of always saying the commonest label.
    """

    name: str
    question: str
    labels: Mapping[Label, str]
    source: str
    licence: str
    unit: str
    chance: Mapping[str, float]
    rows: LabelledTexts
    chat: bool = False
    pool: str = "mean"
    groups: str = ""
    note: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Behavior({self.name!r}, {len(self)} {'turns' if self.chat else 'texts'}: {self.question})"

    @property
    def counts(self) -> dict[Label, int]:
        """How many rows have each label, in the card's order."""
        found = Counter(self.rows.labels)
        return {label: found[label] for label in self.labels}

    def _repr_html_(self) -> str:
        """A card: the question, the labels with counts and an example each, source and licence."""
        first = {row.label: row.text for row in reversed(self.rows)}
        labels = [[label, means, f"{self.counts[label]:,}", shorten(first[label], 60)] for label, means in self.labels.items()]
        families = len(set(self.rows.groups or ()))
        said = [
            ("rows", f"{len(self):,} {'turns of a user' if self.chat else 'texts'}, read at the {self.pool} of the tokens"),
            ("groups", f"{families:,}: {self.groups}" if families else "none"),
            ("chance", f"AUC {self.chance['auc']:g}, accuracy {percent(self.chance['accuracy'])}"),
            ("source", self.source),
            ("licence", self.licence),
            ("note", self.note),
        ]
        facts = (tag("div", tag("b", what), ": ", text) for what, text in said if text)
        head = tag("p", tag("b", self.name), ": ", self.question)
        return str(tag("div", head, *facts, table(["label", "means", "rows", "first"], labels), style="max-width:760px"))


def behavior(source: str | Path, *, root: str | Path = "probes") -> Behavior:
    """A behavior by name, or by the path of its card.

    Args:
        source: name of a card under `root` ("refusal"), or path of a .yaml file; the rows lie beside it as .jsonl.
        root: folder of cards.
    Raises: UnknownNameError for a name without a card, or a key no card has; DataError for a missing key, rows that are not
        those the card is about (SHA-256, n, labels, chance), or a broken row; InputError for a missing file.
    """
    path = _card(source, root)
    card = _read(path)
    rows_path = existing(path.with_suffix(".jsonl"))
    found = file_sha256(rows_path)
    if found != card["sha256"]:
        raise DataError(
            f"{rows_path}: its SHA-256 is {found}, and its card says {card['sha256']}. If you changed the rows, write the new "
            f"value (and n) into {path}; if not, get the file again."
        )
    made = Behavior(path.stem, rows=labelled(rows_path), **{key: card[key] for key in (*_REQUIRED[:6], *_OPTIONAL)})
    _check_rows(made, card["n"], path)
    return made


def behaviors(root: str | Path = "probes") -> list[str]:
    """Names of the behaviors under `root`, sorted."""
    return sorted(path.stem for path in existing(root).glob("*.yaml"))


def _card(source: str | Path, root: str | Path) -> Path:
    """Path of the card: `source` itself where it is one, else the one of this name under `root`."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        return existing(path)
    if path.suffix in (".jsonl", ".csv"):
        raise InputError(f"behavior: {path} holds rows, not a card; give the .yaml beside it, or read the rows with labelled().")
    known = behaviors(root)
    if str(source) not in known:
        raise unknown("behavior", str(source), known)
    return Path(root) / f"{source}.yaml"


def _read(path: Path) -> dict[str, Any]:
    """The card's mapping, every key and type checked."""
    try:
        card = yaml.load(read_text(path), Loader=StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise DataError(f"{path}: not valid YAML: {getattr(error, 'problem', None) or 'it cannot be read'}{where}.") from error
    if not isinstance(card, dict):
        raise DataError(f"{path}: expected a mapping with {', '.join(_REQUIRED)}.")
    for key in card:
        if key not in (*_REQUIRED, *_OPTIONAL):
            raise unknown(f"key in {path}", str(key), (*_REQUIRED, *_OPTIONAL))
    absent = [key for key in _REQUIRED if card.get(key) in (None, "", {})]
    if absent:
        raise DataError(f"{path}: there is no {', '.join(map(repr, absent))}; a card needs {', '.join(_REQUIRED)}.")
    card = {**_OPTIONAL, **card}
    kinds: dict[str, type] = {"labels": dict, "chance": dict, "n": int, "chat": bool}
    for key, value in card.items():
        wanted = kinds.get(key, str)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise DataError(f"{path}: {key!r} is {value!r}, expected {_WORDS[wanted]}.")
    if card["pool"] not in _POOLS:
        raise unknown(f"pool in {path}", card["pool"], _POOLS)
    for label, means in card["labels"].items():
        if isinstance(label, bool) or not isinstance(label, Label) or not isinstance(means, str):
            raise DataError(
                f"{path}: labels has {label!r}: {means!r}; expected a number or text and its meaning. YAML reads a bare yes, no, "
                "on or off as true or false: put it in quotation marks."
            )
    chance = card["chance"]
    if set(chance) != set(_CHANCE) or not all(isinstance(v, float | int) and 0 < v <= 1 for v in chance.values()):
        raise DataError(f"{path}: chance is {chance!r}, expected auc and accuracy, each above 0 and at most 1.")
    return card


_WORDS: dict[type, str] = {dict: "a mapping", int: "a whole number", bool: "true or false", str: "a text"}


def _check_rows(made: Behavior, n: int, path: Path) -> None:
    """DataError if the rows are not those the card describes."""
    if len(made) != n:
        raise DataError(f"{path}: n is {n}, but there are {len(made)} rows.")
    stray = sorted({str(label) for label in made.rows.labels if label not in made.labels})
    if stray:
        raise DataError(f"{path}: the rows have the label {', '.join(stray)}, which labels does not explain.")
    if not all(made.counts.values()) or len(made.counts) < 2:
        raise DataError(f"{path}: {made.counts} rows by label; a probe needs at least two labels, each with rows.")
    largest = max(made.counts.values()) / n
    if abs(made.chance["accuracy"] - largest) > 5e-4:  # the card may round to three decimals
        raise DataError(
            f"{path}: chance.accuracy is {made.chance['accuracy']:g}; always saying the commonest label is right in {largest:.3f}."
        )
