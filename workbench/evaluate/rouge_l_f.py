"""How much two texts share, in order: the F measure of their longest common subsequence."""

import numpy as np
from jaxtyping import Float

from workbench.core.registry import metric
from workbench.evaluate.pairing import paired
from workbench.evaluate.rouge_l_recall import scorer
from workbench.evaluate.table import Table


@metric(unit="F", better="higher")
def rouge_l_f(table: Table, reference: Table | None = None, *, stemmer: bool = True) -> Float[np.ndarray, "example"]:
    """ROUGE-L F of each example's generated text against what the reference generated, or without one against the true answer.

    Args:
        reference: what another model said about the same rows, such as the untouched model's table.
        stemmer: see `rouge_l_f_of`; MUSE's code has none.
    Returns: [example] in [0, 1]; see `rouge_l_f_of`.
    Raises: InputError if a text is missing; DataError for other rows, or where the text to compare with has no word.
    """
    return np.array(
        [rouge_l_f_of(reference=said, hypothesis=made, stemmer=stemmer) for said, made in paired("rouge_l_f", table, reference)]
    )


def rouge_l_f_of(*, reference: str, hypothesis: str, stemmer: bool = True) -> float:
    """ROUGE-L F of two texts: 2 P R / (P + R), P = LCS / |hypothesis|, R = LCS / |reference|.

    Lower-case words of a-z and 0-9, those of more than three letters reduced to Porter's stems unless `stemmer` is False, as
    `rouge_l_recall`. MUSE's code has no stemmer; ConceptVectors' uses the package `rouge`, which neither stems nor drops
    punctuation. Equal texts give 1, also those without such words (another script).
    """
    if reference.split() == hypothesis.split():
        return 1.0
    return float(scorer(stemmer=stemmer).score(target=reference, prediction=hypothesis)["rougeL"].fmeasure)
