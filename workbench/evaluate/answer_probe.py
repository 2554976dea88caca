"""A linear probe that tells right answers from false ones, fitted on some questions and judged on the others.

Answers stand in one list, a question's one behind the other, its right one first.
"""

import warnings

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from workbench.core.errors import NumericsError


def within_auc(
    scores: Float[np.ndarray, "answer"], truth: Bool[np.ndarray, "answer"], question: Int[np.ndarray, "answer"]
) -> Float64[np.ndarray, "question"]:
    """Share of each question's false answers that score below its right one, ties counting half."""
    mine = np.empty(question.max() + 1)
    mine[question[truth]] = scores[truth]
    beaten = np.where(scores == mine[question], 0.5, scores < mine[question]) * ~truth
    return np.bincount(question, beaten) / np.bincount(question, ~truth)


def held_out(
    x: Float[np.ndarray, "answer d"], truth: Bool[np.ndarray, "answer"], fold: Int[np.ndarray, "answer"], *, C: float
) -> Float64[np.ndarray, "answer"]:
    """Log-odds of being right, of every answer, by the probe fitted on the other folds.

    It minimizes |v|^2 / 2 + C sum_i w_i ln(1 + exp(-y_i f(z_i))), z the features divided by their standard deviation among the
    answers it is fitted on, and w_i such that right and false answers weigh the same. A feature that does not vary is left out.

    Raises: NumericsError if it has not converged.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scores = np.empty(len(x))
    for held in np.unique(fold):
        train, judge = fold != held, fold == held
        mean, std = x[train].mean(0), x[train].std(0)
        used = std > 0
        z = (x[:, used] - mean[used]) / std[used]
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                probe = LogisticRegression(C=C, class_weight="balanced", max_iter=1000, tol=1e-6).fit(z[train], truth[train])
            except ConvergenceWarning as error:
                raise NumericsError(
                    f"probe_recovery: a probe has not converged after 1000 iterations (C = {C:g}); lower C."
                ) from error
        scores[judge] = probe.decision_function(z[judge])
    return scores


def first_answers(question: Int[np.ndarray, "answer"]) -> Bool[np.ndarray, "answer"]:
    """True at each question's first answer."""
    return np.diff(question, prepend=-1) > 0


def shuffled(question: Int[np.ndarray, "answer"], *, count: int, seed: int) -> list[Bool[np.ndarray, "answer"]]:
    """`count` times one answer of each question, drawn from all of them, as if it were the right one."""
    rng = np.random.default_rng(seed)
    starts, sizes = np.flatnonzero(first_answers(question)), np.bincount(question)
    drawn = []
    for _ in range(count):
        truth = np.zeros(len(question), dtype=bool)
        truth[starts + rng.integers(0, sizes)] = True
        drawn.append(truth)
    return drawn
