"""Pairs of prompts that differ in one thing, with the answers that thing decides: what patching works on.

    clean      "Then, Aaron and Amber went to the store. Aaron gave a drink to"      correct:   " Amber"
    corrupted  "Then, Aaron and Amber went to the store. Tiffany gave a drink to"    incorrect: " Aaron"

Answers continue the prompt as they stand, so an answer that is a new word begins with its space.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from workbench.core.errors import DataError, InputError
from workbench.core.records import Rows
from workbench.core.store import existing, open_text
from workbench.load.batches import Encoded, render
from workbench.load.datasets import json_rows, text_of
from workbench.load.models import Model

_IOI = {"clean", "corrupted", "corrupted_hard"}
_GREATER_THAN = {"clean", "corrupted", "label"}
_NAME = re.compile(r"\b[A-Z][a-z]+\b")


@dataclass(frozen=True)
class Contrast:
    """A clean and a corrupted prompt, and the answers to tell apart: `correct` continues the clean prompt.

    completion: the prompts are text to go on with, which a model with a chat template gets as it stands and not as a turn.
    """

    id: str
    clean: str
    corrupted: str
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]
    completion: bool = False


class Contrasts(Rows[Contrast]):
    """Rows of (id, clean, corrupted, correct, incorrect, completion)."""


class EncodedContrasts(NamedTuple):
    """The pairs a model can be asked about, as tokens.

    clean, corrupted: prompts without an answer (`start` is their length).   correct, incorrect: first token of every answer,
    each once, by pair.   dropped: reason → number of pairs that were left out for it.
    """

    clean: list[Encoded]
    corrupted: list[Encoded]
    correct: list[list[int]]
    incorrect: list[list[int]]
    dropped: dict[str, int]

    @property
    def ids(self) -> list[str]:
        """Ids of the pairs that were kept, in order."""
        return [row.id for row in self.clean]


def contrasts(source: str | Path, *, hard: bool = False) -> Contrasts:
    """Pairs of a clean and a corrupted prompt with their answers.

    Args:
        source: a .jsonl file of {"clean", "corrupted", "correct", "incorrect"} (an answer or a list of them; "id" and
            "completion": true if given), or one of EAP-IG's .csv files, told apart by their columns. Indirect object: the name
            that stands once in the clean prompt is correct, the one that stands twice is incorrect. Greater than: correct are
            the two-digit years above the label, incorrect those from 00 up to it. Both are completions.
        hard: take `corrupted_hard` of the indirect-object file, where the second name is exchanged for the correct answer
            (the answer flips), instead of `corrupted`, where it is a third name (nothing is repeated).
    Raises: DataError naming file and line for a broken row; InputError for another kind of file.

    The token ids in EAP-IG's indirect-object file belong to one tokenizer and are not read.
    """
    path = existing(source)
    if path.suffix in (".jsonl", ".json"):
        if hard:
            raise InputError(f"contrasts: hard=True needs the column corrupted_hard of a .csv file; {path} is JSON lines.")
        return Contrasts((_row(row, where, i) for i, (row, where) in enumerate(json_rows(path))), str(source))
    if path.suffix == ".csv":
        return Contrasts(_csv_rows(path, hard), str(source))
    raise InputError(f"contrasts: {path}: expected a .jsonl or .csv file.")


def encode_contrasts(model: Model, contrasts: Contrasts, *, aligned: bool = True) -> EncodedContrasts:
    """Tokenize the pairs and leave out those that cannot be compared, counted by reason.

    Left out are pairs whose prompts differ in number of tokens (patching goes position by position), answers that merge with
    the end of the prompt, and pairs where a correct and an incorrect answer have the same first token.

    Args: aligned: False keeps pairs of unequal length, for what looks at one prompt alone.
    Raises: DataError if no pair is left, or one is longer than the model's context.
    """
    kept: list[tuple[Encoded, Encoded, list[int], list[int]]] = []
    dropped: Counter[str] = Counter()
    for row in contrasts:
        texts = [(row.clean, True) if row.completion else render(model, row.clean)]
        texts.append((row.corrupted, True) if row.completion else render(model, row.corrupted))
        pair = [_prompt(model, row.id, text, special) for text, special in texts]
        answers = [_first_tokens(model, pair[0], *texts[0], given) for given in (row.correct, row.incorrect)]
        reason = _reason(pair, answers, aligned=aligned)
        if reason is not None:
            dropped[reason] += 1
        else:
            kept.append((pair[0], pair[1], sorted(answers[0] or ()), sorted(answers[1] or ())))
    if not kept:
        why = ", ".join(f"{reason}: {n}" for reason, n in dropped.items())
        raise DataError(
            f"contrasts ({contrasts.name}): none of the {len(contrasts)} pairs can be used with this tokenizer ({why}). Choose "
            "names or words that it splits into equally many tokens, and answers that differ in their first token."
        )
    clean, corrupted, correct, incorrect = (list(column) for column in zip(*kept, strict=True))
    return EncodedContrasts(clean, corrupted, correct, incorrect, dict(dropped))


def _prompt(model: Model, id: str, text: str, special: bool) -> Encoded:
    tokens = list(model.tokenizer(text, add_special_tokens=special)["input_ids"])
    if special and tokens and tokens[-1] == model.tokenizer.eos_token_id:
        tokens.pop()  # a tokenizer that appends end-of-text itself; the answer follows the prompt
    if not 0 < len(tokens) < model.context:
        raise DataError(
            f"row {id!r}: the prompt has {len(tokens)} tokens; expected 1 to {model.context - 1}, the model's context less one "
            "for the answer. Shorten the row or leave it out."
        )
    return Encoded(id, tokens, len(tokens))


def _first_tokens(model: Model, prompt: Encoded, text: str, special: bool, answers: Sequence[str]) -> set[int] | None:
    """First token of each answer behind the prompt; None if one cannot be had without another tokenization of the prompt."""
    found: set[int] = set()
    for answer in answers:
        joint = list(model.tokenizer(text + answer, add_special_tokens=special)["input_ids"])
        if joint[: prompt.start] == prompt.tokens and len(joint) > prompt.start:
            found.add(joint[prompt.start])
            continue
        # "13" + "52" may be other tokens than "1352": then the answer's own, if the two together still spell the text
        alone = list(model.tokenizer(answer, add_special_tokens=False)["input_ids"])
        spelled = [model.tokenizer.decode(tokens) for tokens in (prompt.tokens + alone, prompt.tokens)]
        if not alone or spelled[0] != str(spelled[1]) + answer:
            return None
        found.add(alone[0])
    return found


def _reason(pair: Sequence[Encoded], answers: Sequence[set[int] | None], *, aligned: bool) -> str | None:
    """Why a pair is left out; None if it is kept."""
    if aligned and pair[0].start != pair[1].start:
        return "unequal length"
    if answers[0] is None or answers[1] is None:
        return "answer merges with the prompt"
    return "shared first token" if answers[0] & answers[1] else None


def _row(row: Mapping[str, Any], where: str, number: int) -> Contrast:
    sides = []
    for key in ("correct", "incorrect"):
        given = row.get(key)
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise DataError(f"{where}: {key!r} is {given!r}, expected an answer or a list of answers.")
        sides.append(tuple(texts))
    completion = row.get("completion", False)
    if not isinstance(completion, bool):
        raise DataError(f"{where}: 'completion' is {completion!r}, expected true or false.")
    clean, corrupted = (text_of(row, (key,), where) for key in ("clean", "corrupted"))
    return Contrast(str(row.get("id", number)), clean, corrupted, sides[0], sides[1], completion)


def _csv_rows(path: Path, hard: bool) -> Iterator[Contrast]:
    with open_text(path, newline="") as lines:
        reader = csv.DictReader(lines)
        columns = set(reader.fieldnames or ())
        ioi = columns >= _IOI
        if not ioi and not columns >= _GREATER_THAN:
            raise InputError(
                f"contrasts: {path} has the columns {', '.join(sorted(columns))}; expected clean, corrupted, corrupted_hard "
                "(indirect object) or clean, corrupted, label (greater than). Write other pairs as .jsonl."
            )
        if hard and not ioi:
            raise InputError(f"contrasts: hard=True needs the column corrupted_hard, which {path} does not have.")
        for number, row in enumerate(reader):
            where = f"{path}, line {reader.line_num}"
            clean = text_of(row, ("clean",), where)
            corrupted = text_of(row, ("corrupted_hard" if hard else "corrupted",), where)
            answers = _names(clean, where) if ioi else _years(row.get("label"), where)
            yield Contrast(str(row.get("") or number), clean, corrupted, *answers, completion=True)


def _names(clean: str, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Indirect object and subject: the name that stands once and the one that stands twice. The first word is no name."""
    counts = Counter(match[0] for match in _NAME.finditer(clean) if match.start() > 0)
    once, twice = ([name for name, n in counts.items() if n == wanted] for wanted in (1, 2))
    if len(once) != 1 or len(twice) != 1 or len(counts) != 2:
        raise DataError(
            f"{where}: expected one name that stands once and one that stands twice in the clean prompt, found "
            f"{', '.join(f'{name} x{n}' for name, n in counts.items()) or 'none'}. Write such pairs as .jsonl with their answers."
        )
    return (f" {once[0]}",), (f" {twice[0]}",)


def _years(label: str | None, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two-digit years above the label, and those up to it."""
    if label is None or not label.isdecimal() or not 0 <= int(label) <= 98:
        raise DataError(f"{where}: label is {label!r}, expected a year from 0 to 98, so that a later one exists.")
    years = tuple(f"{year:02d}" for year in range(100))
    return years[int(label) + 1 :], years[: int(label) + 1]
