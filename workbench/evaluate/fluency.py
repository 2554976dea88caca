"""How much a text reads like English, from counts over real text: no neural model, and the same number on every machine.

    letters   mean over characters of log2 p(character | the two before it), bits: do letters form words?
    order     mean over words of log2 p(class | class before it) / p(class), bits: do words form phrases? A class is one of the 100
              most frequent words and marks, a number, another mark, or a capitalized or small word by its ending.
    repeats   share of the text's runs of 8 characters that stood in it before: does it go round in circles?

A short text tells little, so either mean takes in the median of real sentences as so many observations more: 20 characters and 5
words. For the order of words the end of a text is none of them, and for letters a space: a text that was cut off at its most tokens
is not the worse for it where a word ends. In mid-word the last letters cost a little, most where one stands alone: held-out halves
of sentences have 0.961, 0.973 and 0.977 with one, two and three letters of a further word, 0.980 without. Each term is then put on
[0, 1] by a straight line between two quantiles of reference texts: 1 from where 95 % of real sentences lie on, 0 from where half of
the spoiled ones lie (letters shuffled inside words; words shuffled; a few words in a loop). The fluency is the product:

    fluency = ramp(letters) * ramp(order) * ramp(repeats)

The counts, and the ends of the lines, are in `fluency.safetensors`; data/fluency/CARD.md says what they were taken from.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from workbench.core.errors import DataError
from workbench.core.store import load_tensors

FILE = Path(__file__).parent / "fluency.safetensors"
LETTERS = " abcdefghijklmnopqrstuvwxyz0.,'\"-()?!:;~"  # 0 stands for every digit, ~ for every other character
OTHER = len(LETTERS) - 1
NUMBERS = np.array([LETTERS.find("0" if chr(c).isdigit() else chr(c)) % len(LETTERS) for c in range(129)])  # -1 becomes OTHER
RUN = 8  # characters
PRIOR = {"letters": 20, "order": 5}  # observations
WORD = re.compile(r"'[a-z]+|[^\W\d_]+|\d[\d.,]*|[^\w\s]|_")  # "I'm" is I and 'm
ENDINGS = ("ing", "ed", "ly", "s", "")
PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-"})


class Fluency(NamedTuple):
    """[text] each. letters, order, repeats: as in the module.   score: in [0, 1]; 0 for a text of white space alone."""

    score: Float[np.ndarray, "text"]
    letters: Float[np.ndarray, "text"]
    order: Float[np.ndarray, "text"]
    repeats: Float[np.ndarray, "text"]


class Counts(NamedTuple):
    """What `fluency.safetensors` holds. letters: log2 p [before before character]; order: log2 gain [before class]; words: frequent
    ones; ramps: by term, the values that give 0 and 1; typical: medians of real sentences by term."""

    letters: Float[np.ndarray, "before before character"]
    order: Float[np.ndarray, "before class"]
    words: tuple[str, ...]
    ramps: dict[str, tuple[float, float]]
    typical: dict[str, float]


def fluency(texts: Sequence[str]) -> Fluency:
    """Fluency of every text, with its three terms; those of a text of white space alone are NaN and its score is 0.

    It knows English only: letters of other scripts count as unknown characters, and lower the score.

    Raises: DataError without a text.
    """
    if not texts:
        raise DataError("fluency: there are no texts; nothing was measured.")
    known = counts()
    found = np.array([terms(text, known) for text in texts])
    score = np.ones(len(texts))
    for name, term in zip(known.ramps, found.T, strict=True):
        zero, one = known.ramps[name]
        score *= np.clip((term - zero) / (one - zero), 0.0, 1.0)
    return Fluency(np.where(np.isnan(score), 0.0, score), *found.T)


@cache
def counts() -> Counts:
    """The bundled counts, float64."""
    tensors, about = load_tensors(FILE, "Fluency")
    ramps = {name: (float(ends[0]), float(ends[1])) for name, ends in about["ramps"].items()}
    letters, order = (tensors[name].double().numpy() for name in ("letters", "order"))
    return Counts(letters, order, tuple(about["words"]), ramps, about["typical"])


def characters(text: str) -> Int[np.ndarray, "character"]:
    """Characters as numbers of LETTERS: small, without accents, white space as one space, a space at either end."""
    small = text.translate(PLAIN).lower()
    if not small.isascii():
        small = "".join(c for c in unicodedata.normalize("NFKD", small) if not unicodedata.combining(c))
    codes = np.frombuffer(f" {' '.join(small.split())} ".encode("utf-32-le"), dtype=np.uint32)
    return NUMBERS[np.minimum(codes, len(NUMBERS) - 1)]


def classes(text: str, words: Sequence[str]) -> Int[np.ndarray, "word"]:
    """Class of every word and mark, after an edge (0) that stands for the beginning."""
    place = _places(tuple(words))
    first = 1 + len(words)  # number, mark, small words by ending, capitalized words by ending

    def number(word: str) -> int:
        if word.lower() in place:
            return place[word.lower()]
        if word[0].isdigit():
            return first
        if not word[0].isalpha():
            return first + 1
        ending = next(i for i, end in enumerate(ENDINGS) if word.endswith(end))
        return first + 2 + ending + (len(ENDINGS) if word[0].isupper() else 0)

    return np.array([0, *(number(word) for word in WORD.findall(text.translate(PLAIN)))])


@cache
def _places(words: tuple[str, ...]) -> dict[str, int]:
    return {word: i for i, word in enumerate(words, start=1)}


def n_classes(words: Sequence[str]) -> int:
    """How many classes there are with these frequent words."""
    return 3 + len(words) + 2 * len(ENDINGS)


def repeats(read: Int[np.ndarray, "character"]) -> float:
    """Share of the runs of RUN characters that stood in the text before; 0 for a text that has one run at most."""
    if len(read) <= RUN:
        return 0.0
    runs = np.lib.stride_tricks.sliding_window_view(read, RUN)
    keys = runs @ (len(LETTERS) ** np.arange(RUN, dtype=np.int64))
    return 1.0 - len(np.unique(keys)) / len(keys)


def terms(text: str, known: Counts) -> tuple[float, float, float]:
    """letters, order and repeats of one text, the first two with the prior; NaN for white space alone."""
    if not text.strip():
        return float("nan"), float("nan"), float("nan")
    mean = {
        name: float((values.sum() + PRIOR[name] * known.typical[name]) / (len(values) + PRIOR[name]))
        for name, values in bits(text, known).items()
    }
    return mean["letters"], mean["order"], repeats(characters(text))


def bits(text: str, known: Counts) -> dict[str, Float[np.ndarray, "observation"]]:
    """What the counts say about every character after the second, and about every word and mark."""
    read, said = characters(text), classes(text, known.words)
    return {"letters": known.letters[read[:-2], read[1:-1], read[2:]], "order": known.order[said[:-1], said[1:]]}
