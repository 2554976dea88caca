"""Multiple-choice questions in the shape of WMDP and MMLU, and as rows with one answer a choice.

    {"question": "...", "choices": ["...", "...", "...", "..."], "answer": 2}

one JSON object a line; `answer` is the number of the right choice, from 0. Questions may have different numbers of choices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from workbench.core.errors import DataError, InputError, unknown
from workbench.core.records import Example, Examples, Rows
from workbench.core.store import existing
from workbench.load.datasets import json_rows, text_of

FORMS = ("letters", "texts")


@dataclass(frozen=True)
class Question:
    """One question. answer: which of the choices is right, from 0."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int


class Questions(Rows[Question]):
    """Rows of (id, question, choices, answer)."""


def questions(source: str | Path) -> Questions:
    """Questions from a .jsonl or .json file, one object a line.

    Raises: DataError naming file and line for a row without a question, with fewer than two choices, more than there are letters,
        or an answer that is none of them; InputError for a missing file, or another kind of file.
    """
    path = existing(source)
    if path.suffix not in (".jsonl", ".json"):
        raise InputError(f"{path}: expected a .jsonl or .json file of questions, one object a line.")
    return Questions(_read(path), str(path))


def choice_rows(rows: Questions, *, form: str = "texts", description: str = "") -> Examples:
    """Each question as a prompt with an answer for every choice: the first is the response, the others are perturbed ones.

    Args:
        form: "texts": the prompt is "question\\nAnswer:", an answer a choice's text, as the harness asks ARC and most own tasks.
            "letters": the choices stand in the prompt, "A. ..." a line each, and an answer is a letter, as WMDP and MMLU are asked.
        description: stands in front of every prompt, such as "The following are multiple choice questions.\\n\\n".
    Raises: UnknownNameError for another form.
    """
    if form not in FORMS:
        raise unknown("form of a multiple-choice question", form, FORMS)
    return Examples((_row(one, form, description) for one in rows), rows.name)


def _row(one: Question, form: str, description: str) -> Example:
    letters = ascii_uppercase[: len(one.choices)]
    listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip(letters, one.choices, strict=True))
    first, *rest = letters if form == "letters" else one.choices
    prompt = f"{description}{one.question.strip()}{listed if form == 'letters' else ''}\nAnswer:"
    return Example(one.id, prompt, first, perturbed=tuple(rest))


def _read(path: Path) -> Iterator[Question]:
    for number, (row, where) in enumerate(json_rows(path)):
        choices = _choices(row.get("choices"), where)
        answer = _answer(row.get("answer"), choices, where)
        yield Question(str(row.get("id", number)), text_of(row, ("question",), where), choices, answer)


def _choices(choices: Any, where: str) -> tuple[str, ...]:
    if not isinstance(choices, list) or not all(isinstance(one, str) and one.strip() for one in choices):
        raise DataError(f"{where}: 'choices' is {choices!r}, expected a list of texts.")
    if not 2 <= len(choices) <= len(ascii_uppercase):
        raise DataError(f"{where}: there are {len(choices)} choices, expected 2 to {len(ascii_uppercase)}.")
    return tuple(choices)


def _answer(answer: Any, choices: tuple[str, ...], where: str) -> int:
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise DataError(
            f"{where}: 'answer' is {answer!r}, expected the number of the right choice, from 0 to {len(choices) - 1}, not a letter."
        )
    return answer
