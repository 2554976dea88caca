"""A needle in a haystack: a sentence hidden in a long text, a question about it, and where its tokens lie."""

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.core.errors import DataError, InputError
from workbench.load.batches import Encoded, encode, render
from workbench.load.models import Model

_ENDS = (". ", "! ", "? ", ".\n", "!\n", "?\n", "\n")


@dataclass(frozen=True)
class Needle:
    """One prompt with a needle in it.

    row: tokens of the prompt and of the true answer behind it (from `row.start` on).   first, stop: the needle's tokens are
    row.tokens[first:stop].   answer: the true answer.   length: tokens of the prompt.   depth: share of the haystack before it.
    """

    row: Encoded
    first: int
    stop: int
    answer: str
    length: int
    depth: float


def needles(
    model: Model,
    haystack: str,
    needle: str,
    question: str,
    *,
    answer: str | None = None,
    lengths: Sequence[int] = (1000,),
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
) -> list[Needle]:
    """One Needle for every length and depth.

    The haystack is cut so that the prompt has `length` tokens or a few less; the needle goes in behind the last sentence that
    ends before `depth` of what is left, and the question stands on a line of its own at the end.

    Args:
        answer: what the model should say; the needle itself if not given.
        lengths: tokens of the whole prompt.   depths: 0 is the beginning of the haystack, 1 its end.
    Raises: DataError if the haystack is too short or holds the needle already, or a prompt does not fit the context;
        InputError for a depth outside 0 to 1.
    Reference: Kamradt 2023, Needle in a Haystack; Wu et al. 2024, arXiv:2404.15574, use 20 lengths x 10 depths.
    """
    if not lengths or not depths or not all(0 <= depth <= 1 for depth in depths):
        raise InputError(f"needles: lengths {list(lengths)} and depths {list(depths)}: give some of each, depths from 0 to 1.")
    if not needle.strip() or not question.strip() or needle in haystack:
        raise DataError("needles: needle and question must be texts, and the haystack must not hold the needle already.")
    offsets = model.tokenizer(haystack, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    made = []
    for length in lengths:
        empty = len(_prompt_offsets(model, _insert("", needle, question, 0.0), needle)[0])
        room = length - empty
        if not 0 < room <= len(offsets):
            raise DataError(
                f"needles: a prompt of {length} tokens needs {room} tokens of haystack beside needle and question, which have "
                f"{empty}; the haystack has {len(offsets)}. Lengths must lie above {empty} and the text must be that long."
            )
        cut = haystack[: offsets[room - 1][1]]
        made += [_needle(model, cut, needle, question, answer or needle, depth) for depth in depths]
    return made


def _needle(model: Model, haystack: str, needle: str, question: str, answer: str, depth: float) -> Needle:
    prompt = _insert(haystack, needle, question, depth)
    spans, at = _prompt_offsets(model, prompt, needle)
    inside = [i for i, (begin, end) in enumerate(spans) if begin < at + len(needle) and end > at]
    row = encode(model, prompt, answer, id=f"needle-{len(spans)}-{depth:g}")
    if not inside:
        raise DataError(f"needles: no token of the needle {needle[:40]!r} survives the tokenizer.")
    return Needle(row, inside[0], inside[-1] + 1, answer, row.start, depth)


def _insert(haystack: str, needle: str, question: str, depth: float) -> str:
    """The prompt: the haystack with the needle behind a sentence's end at about `depth`, and the question."""
    wanted = round(depth * len(haystack))
    at = max((haystack.rfind(end, 0, wanted) + len(end) for end in _ENDS if end in haystack[:wanted]), default=0)
    at = len(haystack) if depth == 1 else at
    before, after = haystack[:at].rstrip(), haystack[at:].lstrip()
    return " ".join(part for part in (before, needle, after) if part) + f"\n{question}"


def _prompt_offsets(model: Model, prompt: str, needle: str) -> tuple[list[tuple[int, int]], int]:
    """Characters of every token of the rendered prompt, and where the needle begins in it."""
    rendered, special = render(model, prompt)
    coded = model.tokenizer(rendered, add_special_tokens=special, return_offsets_mapping=True)
    if rendered.count(needle) != 1:
        raise DataError(f"needles: the needle stands {rendered.count(needle)} times in the rendered prompt, expected once.")
    return list(coded["offset_mapping"]), rendered.index(needle)
