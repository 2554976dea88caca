"""Passages of plain text as rows of a beginning and its continuation, cut where tokens of a model end; and a model without its chat
template, which reads text as it stands.

A row puts white space between prompt and answer where there is none (`load.batches.encode`), so a passage is cut only where white
space stands: the tokens of the two parts are those of the whole.
"""

from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path

from workbench.core.errors import DataError, InputError
from workbench.core.records import Example, Examples, Rows
from workbench.core.store import existing, read_text
from workbench.load.datasets import json_rows, text_of
from workbench.load.models import Model

QUESTION = "Question: {question}\nAnswer:"


@dataclass(frozen=True)
class Passage:
    """One piece of running text."""

    id: str
    text: str


class Passages(Rows[Passage]):
    """Rows of (id, text)."""


def passages(source: str | Path) -> Passages:
    """Passages from a .jsonl or .json file, {"text": ...} a line with an optional "id", or a .txt file with blank lines between.

    Raises: DataError naming file and line for a row without a text; InputError for a missing file, or another kind of file.
    """
    path = existing(source)
    if path.suffix in (".jsonl", ".json"):
        read = enumerate(json_rows(path))
        return Passages((Passage(str(row.get("id", i)), text_of(row, ("text",), where)) for i, (row, where) in read), str(path))
    if path.suffix == ".txt":
        pieces = [" ".join(piece.split()) for piece in read_text(path).split("\n\n")]
        return Passages((Passage(str(i), piece) for i, piece in enumerate(p for p in pieces if p)), str(path))
    raise InputError(f"{path}: expected a .jsonl, .json or .txt file of passages.")


def whole(model: Model, rows: Passages, *, max_tokens: int | None = None) -> Examples:
    """Passages as rows to learn or to score: the first word is the prompt, the rest the answer.

    Every token but those of the first word is predicted, as in training on running text.

    Args: max_tokens: of a passage's own tokens, beside which a row has those that mark its beginning and end, and never more than
        the context holds with these; longer passages lose their end. None keeps all of it.
    Raises: DataError naming a passage of one word, or one whose first word is max_tokens long; InputError for a max_tokens below 2.
    """
    if max_tokens is not None and max_tokens < 2:
        raise InputError(f"whole: max_tokens is {max_tokens}, expected at least 2, or None.")
    if max_tokens is not None:
        max_tokens = min(max_tokens, model.context - _marks(model))
    return Examples((_cut(model, row, 1, max_tokens) for row in rows), rows.name)


def continuations(model: Model, rows: Passages, *, prompt_tokens: int = 32, new_tokens: int = 128) -> Examples:
    """The beginning of each passage, and how it goes on.

    Args:
        prompt_tokens: tokens of the beginning, or a few more up to the next word.
        new_tokens: tokens of the continuation at most.
    Raises: InputError unless both are at least 1 and fit the context together; DataError naming a passage with nothing behind its
        beginning.
    """
    for name, value in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
        if value < 1:
            raise InputError(f"continuations: {name} is {value}, expected at least 1.")
    if prompt_tokens + new_tokens > model.context:
        raise InputError(
            f"continuations: prompt_tokens {prompt_tokens} and new_tokens {new_tokens} are {prompt_tokens + new_tokens} tokens, "
            f"but the context of {model.name} is {model.context}. Lower one of them."
        )
    cut = (_cut(model, row, prompt_tokens, None, new_tokens=new_tokens) for row in rows)
    return Examples(cut, rows.name)


def asked(rows: Examples, *, shots: Examples | None = None) -> Examples:
    """Questions as running text, "Question: ...\\nAnswer:", behind solved ones; without paraphrases and false answers.

    MUSE's prompt has a space behind the colon; here it belongs to the answer, where most tokenizers put it.

    Args: shots: questions with their answers that stand in front, a blank line behind each.
    """
    front = "".join(f"{QUESTION.format(question=row.prompt)} {row.response}\n\n" for row in shots or ())
    return Examples((Example(row.id, front + QUESTION.format(question=row.prompt), row.response) for row in rows), rows.name)


def without_chat(model: Model) -> Model:
    """The same model, weights and applied edits, read without its chat template; the model itself if it has none.

    The two share everything but the tokenizer: an edit of one is an edit of the other.
    """
    if model.tokenizer.chat_template is None:
        return model
    plain = copy(model)
    plain.tokenizer = deepcopy(model.tokenizer)
    plain.tokenizer.chat_template = None
    return plain


def _cut(model: Model, row: Passage, prompt_tokens: int, max_tokens: int | None, *, new_tokens: int | None = None) -> Example:
    """A passage as prompt and answer; the cut is the first one between words with at least `prompt_tokens` tokens before it."""
    text = row.text.strip()
    spans = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    between = [i for i in range(prompt_tokens, len(spans)) if _is_between(text, spans[i][0]) and text[spans[i][0] :].strip()]
    if not between:
        raise DataError(
            f"passage {row.id!r} ({text[:40]!r}) has {len(spans)} tokens and no word behind the first {prompt_tokens}. Leave it "
            "out, or give a longer one."
        )
    first = between[0]
    ends = (len(spans), max_tokens, None if new_tokens is None else first + new_tokens)
    last = min(end for end in ends if end is not None)
    begin, end = spans[first][0], spans[last - 1][1]
    if not text[begin:end].strip():
        raise DataError(
            f"passage {row.id!r} ({text[:40]!r}) has nothing but white space from token {first + 1} to {last}. Leave it out, or "
            "take more tokens."
        )
    return Example(row.id, text[:begin], text[begin:end])


def _marks(model: Model) -> int:
    """How many tokens stand around a text's own: what the tokenizer puts in front or behind, and the end-of-text token."""
    around = [token for token in model.tokenizer("")["input_ids"] if token != model.tokenizer.eos_token_id]
    return len(around) + (model.tokenizer.eos_token_id is not None)


def _is_between(text: str, place: int) -> bool:
    """Whether white space stands on either side of a character's place."""
    return 0 < place < len(text) and (text[place].isspace() or text[place - 1].isspace())
