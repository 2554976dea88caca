"""How much of one text's word sequences another text has: BLEU of single sentences."""

from typing import Any

import numpy as np
from jaxtyping import Float
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from workbench.core.registry import metric
from workbench.evaluate.pairing import paired
from workbench.evaluate.table import Table


@metric(unit="BLEU", better="higher")
def bleu(table: Table, reference: Table | None = None) -> Float[np.ndarray, "example"]:
    """BLEU of each example's generated text against what the reference generated, or without one against the true answer.

    Args: reference: what another model said about the same rows, such as the untouched model's table.
    Returns: [example] in [0, 1]; see `bleu_of`.
    Raises: InputError if a text is missing; DataError for other rows, or where the text to compare with has no word.
    """
    return np.array([bleu_of(reference=said, hypothesis=made) for said, made in paired("bleu", table, reference)])


def bleu_of(*, reference: str, hypothesis: str) -> float:
    """BLEU-4 of one sentence: how many of the hypothesis' word sequences the reference has.

    min(1, exp(1 - |reference| / |hypothesis|)) * (prod_n p_n)^(1/N), p_n the clipped share of the hypothesis' n-grams that are in
    the reference, N = min(4, |hypothesis|). Words are what white space separates. A p_n of 0 is 1 / (2^k its number of n-grams)
    for the k-th such n, nltk's smoothing method 3; without a word in common it is 0, which an empty text has with none.

    With N = 4 throughout, as nltk's default, a two-word answer would score 0.59 against itself. Not symmetric: ConceptVectors'
    code passes the two in exchanged order, and leaves N at 4.

    Reference: Papineni et al. 2002; Chen and Cherry 2014 (smoothing), both as computed by nltk.
    """
    words = hypothesis.split()
    if not words or not reference.split():
        return 0.0
    references, smoothing = [reference.split()], SmoothingFunction().method3
    score: Any = sentence_bleu(references=references, hypothesis=words, smoothing_function=smoothing, auto_reweigh=True)
    return float(score)
