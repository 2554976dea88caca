"""From plain texts to tokens: what a probe or a streaming mean reads, where there is no prompt and no answer.

The rows are those of `load.batches`, so `collate` and `by_length` take them. `start` is the first token of the text itself:
the beginning-of-text token before it holds whatever the model parks there (its activations are often a hundred times larger),
and pooling leaves it out unless asked otherwise. A tokenizer that adds no such token (GPT-2) has start 0.
"""

from collections.abc import Sequence

from workbench.core.errors import DataError, InputError
from workbench.load.batches import Encoded, render
from workbench.load.models import Model

LEAST = 2
"""Tokens a text must have of its own: of one token, no token was read in the light of another."""


class EncodedTexts(list[Encoded]):
    """Texts as tokens, in their order, with ids "0", "1", ...

    cut: how many texts were longer than `limit` tokens and lost their end.
    """

    def __init__(self, rows: Sequence[Encoded], *, cut: int, limit: int) -> None:
        super().__init__(rows)
        self.cut = cut
        self.limit = limit


def encode_texts(model: Model, texts: Sequence[str], *, max_tokens: int | None = None, chat: bool = False) -> EncodedTexts:
    """Tokenize plain texts, with the special tokens the tokenizer adds in front.

    An end-of-text token that the tokenizer appends itself is left out: the last token is the text's.

    Args:
        max_tokens: longer texts lose their end; the model's context without, or where that is shorter.
        chat: render each text as one user turn and the opening of the assistant's, where the tokenizer has a chat template
            (see `load.batches.render`). Of a turn that is too long the text loses its end, and the opening stays.
    Returns: one row a text; `start` is the index of the first token behind the special ones that the text does not hold itself.
    Raises: DataError naming the position of a text that has fewer than two tokens of its own (some tokenizers drop what they do
        not know), or of what is no text; InputError for a bare string, or a max_tokens below two.
    """
    if isinstance(texts, str):
        raise InputError(f"encode_texts: texts is the string {texts[:40]!r}, expected a list of texts. Write [text].")
    if not len(texts):
        raise DataError("encode_texts: texts is empty; there is nothing to read.")
    if max_tokens is not None and max_tokens < LEAST:
        raise InputError(f"encode_texts: max_tokens is {max_tokens}, expected at least {LEAST}.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {i}: is {type(text).__name__}, expected a str. Are texts and labels exchanged?")
    limit = model.context if max_tokens is None else min(max_tokens, model.context)
    said = [render(model, text) if chat else (text, True) for text in texts]
    adds = said[0][1]
    coded = model.tokenizer([text for text, _ in said], add_special_tokens=adds, return_offsets_mapping=True)
    every = zip(coded["input_ids"], coded["offset_mapping"], said, texts, strict=True)
    rows = [_row(model, i, ids, offsets, whole, text, limit) for i, (ids, offsets, (whole, _), text) in enumerate(every)]
    return EncodedTexts([row for row, _ in rows], cut=sum(was_cut for _, was_cut in rows), limit=limit)


def _row(
    model: Model, i: int, ids: Sequence[int], offsets: Sequence[tuple[int, int]], whole: str, text: str, limit: int
) -> tuple[Encoded, bool]:
    """One text's tokens, and whether it was cut. offsets: first and last character of each token in `whole`."""
    begin = whole.rfind(text.strip())  # templates strip the white space around a turn
    begin, end = (begin, begin + len(text.strip())) if begin >= 0 else (0, len(whole))
    tokens, spans = list(ids), list(offsets)
    while tokens and tokens[-1] == model.tokenizer.eos_token_id and spans[-1][0] == spans[-1][1]:
        tokens, spans = tokens[:-1], spans[:-1]
    own = [stop > first and stop > begin and first < end for first, stop in spans]
    behind = own[::-1].index(True) if True in own else 0  # of a chat template
    was_cut = len(tokens) > limit
    if was_cut:
        kept = [*range(limit - behind), *range(len(tokens) - behind, len(tokens))]
        tokens, own = [tokens[k] for k in kept], [own[k] for k in kept]
    if sum(own) < LEAST:
        room = f" within {limit} tokens" if was_cut else ""
        raise DataError(
            f"text {i} ({text[:40]!r}) has {sum(own)} token(s) of its own{room}, expected at least {LEAST}. Take the row out, or "
            "give a longer text; a tokenizer may drop characters it does not know."
        )
    special = set(model.tokenizer.all_special_ids)
    start = next(k for k, token in enumerate(tokens) if own[k] or token not in special)
    return Encoded(str(i), tokens, start), was_cut
