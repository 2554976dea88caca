"""How much of the true answer the generated text repeats, in order."""

from functools import cache

import numpy as np
from jaxtyping import Float
from rouge_score import rouge_scorer

from workbench.core.errors import DataError, InputError
from workbench.core.registry import metric
from workbench.evaluate.table import Table, answers


@metric(unit="recall", better="higher")
def rouge_l_recall(table: Table, reference: Table | None = None, *, stemmer: bool = True) -> Float[np.ndarray, "example"]:
    """ROUGE-L recall of the generated text against the true answer of each example.

    LCS(truth, generated) / |truth|, over lower-case words of a-z and 0-9 (package rouge_score). TOFU and OpenUnlearning stem;
    MUSE's reference code does not, and reports F1 (`rouge_l_f`). A recall that was read from a log, which is stemmed, is returned
    as it stands.

    Args:
        reference: not used.
        stemmer: reduce words of more than three letters to Porter's stems, so that "running" finds "runs".
    Returns: [example] in [0, 1]; 0 for an empty generated text, which is a measured 0.
    Raises: InputError if nothing was generated, or a log has its recall but not the texts to compute another from; DataError if a
        true answer has no word of a-z or 0-9, the only ones rouge_score knows: its recall would be 0/0.
    Reference: Lin 2004, ROUGE; Maini et al. 2024 (TOFU), arXiv:2401.06121.
    """
    given = answers(table)
    if given.recall is not None and stemmer:
        return given.recall
    return np.array(
        [_recall(given.name, *row, stemmer=stemmer) for row in zip(given.ids, given.truth, given.generated, strict=True)],
        dtype=np.float64,
    )


@cache
def scorer(*, stemmer: bool) -> rouge_scorer.RougeScorer:
    """The package's ROUGE-L, with or without Porter's stems."""
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stemmer)


def _recall(name: str, id: str, truth: str | None, generated: str | None, *, stemmer: bool) -> float:
    if truth is None or generated is None:
        absent = "generated" if generated is None else "true"
        raise InputError(
            f"rouge_l_recall: {name!r} has no {absent} text for row {id!r}. Read the set with generate=200 "
            "(the most new tokens of an answer), or use a log with generated_text or rougeL_recall."
        )
    if not any(c.isascii() and c.isalnum() for c in truth):
        raise DataError(f"rouge_l_recall: {name!r}, row {id!r}: the answer {truth[:40]!r} has no word of a-z or 0-9.")
    return float(scorer(stemmer=stemmer).score(target=truth, prediction=generated)["rougeL"].recall)
