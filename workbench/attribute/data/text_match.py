"""The baselines: likeness of words (BM25), which any method that looks into the model must beat, and no likeness at all."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from workbench.attribute.data.same_rows import same_rows
from workbench.core.errors import InputError
from workbench.core.influence import Influence
from workbench.core.records import Example, Examples, Provenance
from workbench.core.registry import influence
from workbench.core.store import text_sha256
from workbench.load.models import Model

_WORD = re.compile(r"\w+")


@influence
def text_match(model: Model, query: Examples, train: Examples, *, k1: float = 1.2, b: float = 0.75) -> Influence:
    """BM25 of every query's text (prompt and response) against every training row's; the model is not asked.

    Sum over the query's words of idf tf (k1 + 1) / (tf + k1 (1 - b + b L / mean L)), idf = ln(1 + (n - df + 0.5) / (df + 0.5)),
    where tf counts the word in the training row of L words, and df the training rows that have it, of n. A word that the query
    says twice counts twice. The 1 in the logarithm keeps idf positive, as Lucene has it: without it a word in most rows would count
    against a row.

    Args:
        k1: >= 0; how much the second mention of a word adds: 0 nothing, large as much as the first.
        b: 0 to 1; how much long rows are marked down.
    Reference: Robertson & Zaragoza 2009, doi:10.1561/1500000019, equations 3.13 to 3.15. Words are runs of letters, digits and
        underscores, in lower case; there is no stemming and no list of stop words.
    """
    if not (math.isfinite(k1) and k1 >= 0):
        raise InputError(f"text_match: k1 is {k1}, expected a finite number of at least 0.")
    if not 0 <= b <= 1:
        raise InputError(f"text_match: b is {b}, expected 0 to 1.")
    documents = [Counter(words(row)) for row in train]
    lengths = np.array([sum(one.values()) for one in documents], dtype=np.float64)
    mean = lengths.mean() or 1.0  # of rows without a single word every score is 0
    discount = k1 * (1 - b + b * lengths / mean)
    posted: dict[str, list[int]] = {}
    for i, one in enumerate(documents):
        for word in one:
            posted.setdefault(word, []).append(i)
    values = np.zeros((len(query), len(train)))
    for q, row in enumerate(query):
        for word, times in Counter(words(row)).items():
            rows = posted.get(word, [])
            tf = np.array([documents[i][word] for i in rows], dtype=np.float64)
            idf = math.log(1 + (len(train) - len(rows) + 0.5) / (len(rows) + 0.5))
            values[q, rows] += times * idf * tf * (k1 + 1) / (tf + discount[rows])
    about = replace(_about(model, query, train, "text_match", {"k1": k1, "b": b}), notes=same_rows(query, train))
    return Influence(values, tuple(query.ids), tuple(train.ids), about)


@influence
def random(model: Model, query: Examples, train: Examples, *, seed: int = 0) -> Influence:
    """Uniform numbers in [0, 1) from the seed and both rows' ids: what an influence is worth that knows nothing.

    A pair has the same number in whatever sets it stands.
    """
    values = np.array([[_uniform([seed, q, i]) for i in train.ids] for q in query.ids])
    return Influence(values, tuple(query.ids), tuple(train.ids), _about(model, query, train, "random", {}, seed))


def words(row: Example) -> Sequence[str]:
    """The words of prompt and response, in lower case."""
    return _WORD.findall(f"{row.prompt} {row.response}".lower())


def _uniform(key: list[object]) -> float:
    return int(text_sha256(key)[:13], 16) / 16**13  # 52 bits, which a float64 holds


def _about(
    model: Model, query: Examples, train: Examples, method: str, options: dict[str, object], seed: int | None = None
) -> Provenance:
    return Provenance(method, model.fingerprint(), {"query": query.fingerprint(), "train": train.fingerprint()}, options, seed)
