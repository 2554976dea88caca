"""From a text to the tokens a lens reads, and from token ids back to text that shows its white space."""

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.core.errors import DataError, InputError
from workbench.load.batches import Encoded, encode, render
from workbench.load.models import Model


def as_row(model: Model, text: str | tuple[str, str] | Sequence[int] | Tensor, *, chat: bool = False) -> Encoded:
    """One text as tokens.

    Args:
        text: text; (prompt, answer), tokenized as in training, with the chat template and the end-of-text token; or token ids.
        chat: a plain text is a user's turn and goes through the chat template.
    Raises: DataError if no token is left of the text, or there are more than the model's context; InputError for an id outside
        the vocabulary.
    """
    if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return encode(model, str(text[0]), str(text[1]), id="text")
    tokens = _tokens(model, text, chat) if isinstance(text, str) else [int(token) for token in cast(Iterable[int], text)]
    if not set(tokens) - (set(model.tokenizer.all_special_ids) if isinstance(text, str) else set()):
        shown = f"the text {text[:40]!r}" if isinstance(text, str) else "an empty list of token ids"
        raise DataError(f"lens: there is no token to read in {shown}. Does the tokenizer know its characters?")
    wrong = next((token for token in tokens if not 0 <= token < model.d_vocab), None)
    if wrong is not None:
        raise InputError(f"lens: token id {wrong} does not exist; the model has ids 0 to {model.d_vocab - 1}.")
    if len(tokens) > model.context:
        raise DataError(f"lens: the text has {len(tokens)} tokens, but the model's context is {model.context}. Shorten it.")
    return Encoded("text", tokens, len(tokens))


def _tokens(model: Model, text: str, chat: bool) -> list[int]:
    said, special = render(model, text) if chat else (text, True)
    coded = model.tokenizer(said, add_special_tokens=special, return_offsets_mapping=True)
    tokens, (first, stop) = list(coded["input_ids"]), (coded["offset_mapping"] or [(0, 0)])[-1]
    if tokens and tokens[-1] == model.tokenizer.eos_token_id and first == stop:
        tokens.pop()  # a tokenizer that appends end-of-text itself; nothing is to be read behind the end
    return tokens


def target_id(model: Model, target: str | int) -> int:
    """The id of a target token: an id; or a text that is one token, also where the tokenizer puts the space in front by itself.

    Raises: InputError for an id that does not exist, or a text that is several tokens or none.
    """
    if isinstance(target, str):
        ids = list(model.tokenizer(target, add_special_tokens=False)["input_ids"])
        if len(ids) > 1 and target[:1] == " ":
            bare = list(model.tokenizer(target[1:], add_special_tokens=False)["input_ids"])
            ids = bare if token_texts(model.tokenizer, bare) == [target] else ids
        if len(ids) != 1:
            parts = ", ".join(f"{text!r} = {i}" for text, i in zip(token_texts(model.tokenizer, ids), ids, strict=True))
            raise InputError(
                f"lens: the target {target!r} is {len(ids)} tokens ({parts or 'none'}), and a rank is one token's. Give one of "
                "them, as text or id; a word inside a text usually begins with its space."
            )
        return int(ids[0])
    if isinstance(target, bool) or not 0 <= target < model.d_vocab:
        raise InputError(f"lens: target {target!r} is not a token; the model has ids 0 to {model.d_vocab - 1}.")
    return target


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Each token's own text, its leading space kept."""
    return [text_of(tokenizer, [token]) for token in ids]


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of some tokens from the middle of a text, with its leading space.

    Decoders drop the space in front of a text's first token, so the tokens are decoded behind a copy of the first.
    """
    if not ids:
        return ""
    before, whole = (str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)) for tokens in ([ids[0]], [ids[0], *ids]))
    return whole[len(before) :] or before


def show(text: str) -> str:
    """A token's text with its white space made visible."""
    for space, mark in ((" ", "·"), ("\n", "↵"), ("\t", "⇥"), ("\r", "␍")):
        text = text.replace(space, mark)
    return text or "∅"
