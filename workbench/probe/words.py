"""The baseline without a model: the same labels from the words of the texts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Num

from workbench.core.errors import DataError

STRENGTHS = (0.1, 1.0, 10.0, 100.0)


def bag_of_words(
    texts: Sequence[str],
    labels: Num[np.ndarray, "n"],
    inner: Sequence[tuple[np.ndarray, np.ndarray]],
    judge: Callable[[np.ndarray, np.ndarray], float],
    held: Sequence[str],
    *,
    classes: bool,
) -> tuple[Float64[np.ndarray, "held row"], float]:
    """Decisions on the held-out texts of a linear model of their words and pairs of words.

    Features are tf-idf weights (lower case; a punctuation mark is a word), fitted on the training texts alone; the model is
    logistic regression, or ridge regression for numbers. Its inverse regularization is the one of STRENGTHS with the best mean
    over the inner folds, so that the baseline is not beaten for want of tuning; 1 without folds.

    Args:
        texts, labels: of the training rows; codes of classes, or numbers.
        inner: positions that train and that judge, one pair a fold.
        judge: (decisions, labels) -> a number, higher is better.
    Returns: decisions [held, row] as those of a `LinearProbe`, and the inverse regularization.
    """
    best = 1.0
    if inner:
        each: dict[float, list[float]] = {strength: [] for strength in STRENGTHS}
        for seen, asked in inner:
            inside, outside = [str(texts[i]) for i in seen], [str(texts[i]) for i in asked]
            known, new = _features(inside, outside)
            for strength, found in each.items():
                found.append(judge(_decisions(known, labels[seen], new, strength, classes), labels[asked]))
        best = max(STRENGTHS, key=lambda strength: np.mean(each[strength]))
    known, new = _features(texts, held)
    return _decisions(known, labels, new, best, classes), best


def _decisions(known: Any, labels: np.ndarray, new: Any, strength: float, classes: bool) -> Float64[np.ndarray, "held row"]:
    from sklearn.linear_model import LogisticRegression, Ridge

    if classes:
        found = LogisticRegression(C=strength, max_iter=1000).fit(known, labels).decision_function(new)
    else:
        found = Ridge(alpha=1 / strength).fit(known, labels).predict(new)
    return found.reshape(len(found), -1).astype(np.float64)


def _features(seen: Sequence[str], asked: Sequence[str]) -> tuple[Any, Any]:
    """Sparse tf-idf matrices of both; what only the second holds is not known."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    made = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]", sublinear_tf=True)
    try:
        return made.fit_transform(seen), made.transform(asked)
    except ValueError as error:
        raise DataError(f"bag of words: the training texts hold no word ({error}).") from error
