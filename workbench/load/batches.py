"""From rows of text to padded batches with an exact answer mask.

Prompt and answer are tokenized once, together. A token belongs to the answer if its characters reach past the end of the
prompt, which its offsets say. So a pad token that equals the end-of-text token, a tokenizer that merges across the border or
a repeated prompt inside the answer cannot shift the mask.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.core.errors import DataError, InputError, TooLongError
from workbench.core.records import Examples, PreferencePair, PreferencePairs
from workbench.load.models import Model


class Encoded(NamedTuple):
    """One row as tokens. start: index of the first answer token; everything from there on is answer."""

    id: str
    tokens: list[int]
    start: int


class EncodedPair(NamedTuple):
    """One preference pair as tokens: one prompt with either answer."""

    id: str
    chosen: Encoded
    rejected: Encoded


class Batch(NamedTuple):
    """Padded rows.

    tokens [batch pos] ids; attention [batch pos] true on real tokens; answer [batch pos] true on answer tokens;
    positions [batch pos] position of each token in its own row.
    """

    tokens: Int[Tensor, "batch pos"]
    attention: Bool[Tensor, "batch pos"]
    answer: Bool[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"]


def render(model: Model, prompt: str) -> tuple[str, bool]:
    """The prompt as the model expects it, and whether special tokens are still to be added by the tokenizer.

    A tokenizer with a chat template renders one user turn and the opening of the assistant's; without one the prompt is
    used as it stands.
    """
    if model.tokenizer.chat_template is None:
        return prompt, True
    turn = [{"role": "user", "content": prompt}]
    return str(model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)), False


def encode(model: Model, prompt: str, response: str, *, id: str = "row", end: bool = True) -> Encoded:
    """Tokenize prompt and answer together; the answer ends with the end-of-text token where the tokenizer has one.

    One space is put between prompt and answer unless white space already stands there; it belongs to the answer.

    Args: end: False leaves the end-of-text token out, to read one token alone, say; `score.ches` needs it.
    Raises: DataError naming the row if it is longer than the model's context or has no answer.
    """
    head, special = render(model, prompt)
    gap = "" if not head or head[-1].isspace() or response[:1].isspace() else " "
    if not response.strip():
        raise DataError(f"row {id!r}: the response is empty.")
    coded = model.tokenizer(head + gap + response, add_special_tokens=special, return_offsets_mapping=True)
    tokens, offsets = list(coded["input_ids"]), coded["offset_mapping"]
    stop = model.tokenizer.eos_token_id
    while tokens and tokens[-1] == stop and offsets[len(tokens) - 1][1] == offsets[len(tokens) - 1][0]:
        tokens.pop()  # a tokenizer that appends end-of-text itself; exactly one is added below
    start = next((i for i, (_, last) in enumerate(offsets[: len(tokens)]) if last > len(head)), len(tokens))
    if not any(last > len(head) + len(gap) for _, last in offsets[: len(tokens)]):
        raise DataError(f"row {id!r}: no token of the answer {response[:40]!r} survives the tokenizer.")
    if end and stop is not None:
        tokens.append(stop)
    if len(tokens) > model.context:
        raise TooLongError(
            f"row {id!r}: {len(tokens)} tokens, but the model's context is {model.context}. Shorten the row or leave it out."
        )
    return Encoded(id, tokens, start)


def encode_all(model: Model, examples: Examples) -> list[Encoded]:
    """Every row's prompt with its response."""
    return [encode(model, row.prompt, row.response, id=row.id) for row in examples]


def check_lengths(what: str, rows: str, context: int, errors: Sequence[TooLongError], total: int) -> None:
    """TooLongError that names all rows that are too long at once, if any of `total` was."""
    if errors:
        long = [str(error).split(", but")[0] for error in errors]
        listed = "; ".join(long[:8]) + (f"; and {len(long) - 8} more" if len(long) > 8 else "")
        raise TooLongError(
            f"{what}: {len(long)} of {total} {rows} do not fit the model's context of {context} tokens: {listed}. "
            "Shorten them or leave them out."
        )


def encode_pairs(model: Model, pairs: PreferencePairs, *, end: bool = True) -> list[EncodedPair]:
    """Every pair's prompt with its chosen and with its rejected answer.

    Args: end: see `encode`.
    Raises: DataError naming all pairs that are longer than the model's context, or the first that has no answer.
    """
    coded: list[EncodedPair] = []
    long: list[TooLongError] = []
    for pair in pairs:
        try:
            sides = (encode(model, pair.prompt, text, id=f"{pair.id}, {side}", end=end) for side, text in _sides(pair))
            coded.append(EncodedPair(pair.id, *sides))
        except TooLongError as error:
            long.append(error)
    check_lengths(pairs.name, "pairs", model.context, long, len(pairs))
    return coded


def _sides(pair: PreferencePair) -> tuple[tuple[str, str], ...]:
    return ("chosen", pair.chosen), ("rejected", pair.rejected)


def collate(rows: Sequence[Encoded], *, device: torch.device | str = "cpu", pad: int = 0, side: str = "right") -> Batch:
    """Pad rows to one length.

    Args: pad: id written where there is no token; never looked at.   side: "right" or "left".
    """
    if side not in ("right", "left"):
        raise InputError(f"collate: side is {side!r}, expected 'right' or 'left'.")
    width = max(len(row.tokens) for row in rows)
    tokens = torch.full((len(rows), width), pad, dtype=torch.int64)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    answer = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        first = width - len(row.tokens) if side == "left" else 0
        last = first + len(row.tokens)
        tokens[i, first:last] = torch.tensor(row.tokens)
        attention[i, first:last] = True
        answer[i, first + row.start : last] = True
    positions = (attention.long().cumsum(-1) - 1).clamp_min(0)
    return Batch(*(t.to(device) for t in (tokens, attention, answer, positions)))


def by_length(rows: Sequence[Encoded], *, max_tokens: int) -> Iterator[list[int]]:
    """Positions of rows grouped so that a padded group has at most `max_tokens` tokens, longest rows first.

    A row that is longer is a group by itself.

    Raises: InputError, when the first group is asked for, unless max_tokens is at least 1.
    """
    if max_tokens < 1:
        raise InputError(f"batch_tokens is {max_tokens}, expected 1 or more: the tokens of the largest padded batch.")
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))
    group: list[int] = []
    for i in order:
        width = len(rows[group[0]].tokens) if group else len(rows[i].tokens)
        if group and width * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
