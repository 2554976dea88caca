"""Names and lists in sentences, and the words of an answer that the truth has too."""

import re
from collections.abc import Iterable

from markupsafe import Markup, escape

from workbench.core.svg import clean, label
from workbench.report.folder import Arm, Key

COMPARED_WORDS = 300
"""Words of an answer that are compared; a longer one is shown whole, with nothing underlined after them."""


def named(key: Key) -> str:
    """A metric and its split in words: "ROUGE-L recall on forget rows"."""
    metric, split = key
    return label(metric) if split == "all" else f"{label(metric)} on {split.replace('_', ' ')} rows"


def listed(names: Iterable[str]) -> str:
    """a; a and b; a, b, and c; "none" of nothing."""
    names = list(names)
    if len(names) < 3:
        return " and ".join(names) or "none"
    return f"{', '.join(names[:-1])}, and {names[-1]}"


def titles(arms: Iterable[Arm]) -> str:
    """The titles of arms as a list in a sentence."""
    return listed(arm.title for arm in arms)


def capital(text: str) -> str:
    """`text` with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def underlined(answer: str, truth: str) -> Markup:
    """The answer as HTML, with the words of the longest common subsequence of answer and truth in <u>.

    That subsequence is what ROUGE-L counts; here words are compared without case and punctuation, and without stemming.
    """
    parts = re.split(r"(\s+)", clean(answer))
    places = [i for i, part in enumerate(parts) if part.strip()][:COMPARED_WORDS]
    told = clean(truth).split()[:COMPARED_WORDS]
    shared = _common([_bare(parts[i]) for i in places], [_bare(word) for word in told])
    kept = {places[i] for i in shared}
    for i in range(1, len(parts) - 1):
        if i - 1 in kept and i + 1 in kept:  # one line under neighbors, not one a word
            kept.add(i)
    html = [Markup("<u>{}</u>").format(part) if i in kept else escape(part) for i, part in enumerate(parts)]
    return Markup(Markup("").join(html).replace("</u><u>", ""))


def _bare(word: str) -> str:
    return re.sub(r"\W", "", word.lower()) or word


def _common(a: list[str], b: list[str]) -> list[int]:
    """Positions in `a` of one longest common subsequence of a and b."""
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        for j in range(len(b) - 1, -1, -1):
            best[i][j] = best[i + 1][j + 1] + 1 if a[i] == b[j] else max(best[i + 1][j], best[i][j + 1])
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            found.append(i)
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return found
