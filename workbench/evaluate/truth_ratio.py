"""How probable false answers are, compared with the true one.

R = agg_j q(false_j) / q(true), where q(y) = exp(-NLL(y) / |y|) is the length-normalized probability. R > 1: the model finds false
answers likelier than the truth.

Two definitions are in use. The geometric mean, exp(mean loss), is what TOFU's aggregation script, its published numbers and
OpenUnlearning compute; the arithmetic mean is what TOFU's paper and its utils.py say. Model utility of the same log differs
by .04 between them, so the name of each number here says which it is.

The true answer is the paraphrase on TOFU's forget and retain sets, and the answer itself on real_authors and world_facts.
"""

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError, InputError
from workbench.core.registry import metric
from workbench.evaluate.answers import Answers
from workbench.evaluate.table import Table, answers


@metric(unit="ratio", better="reference")
def truth_ratio_geometric(
    table: Table, reference: Table | None = None, *, truth: str = "paraphrase"
) -> Float[np.ndarray, "example"]:
    """Geometric mean of the false answers' probabilities over the true answer's, per example.

    R = exp(NLL(true) - mean_j NLL(false_j)), each NLL in nats per token. tofu/aggregate_eval_stat.py stores 1/R and the log's
    own field `truth_ratio` is the arithmetic R.

    Args: truth: which answer is the true one, "paraphrase" or "response".   reference: not used.
    Returns: [example] >= 0; 1 where the model cannot tell.
    Raises: DataError if an example has no false answer, or no paraphrase where that is asked for.
    Reference: Maini et al. 2024 (TOFU), arXiv:2401.06121, as computed by tofu/evaluate_util.py.
    """
    return np.exp(log_ratio(answers(table), aggregate="geometric", truth=truth))


@metric(unit="ratio", better="reference")
def truth_ratio_arithmetic(
    table: Table, reference: Table | None = None, *, truth: str = "paraphrase"
) -> Float[np.ndarray, "example"]:
    """Arithmetic mean of the false answers' probabilities over the true answer's, per example.

    R = mean_j exp(-NLL(false_j)) / exp(-NLL(true)), each NLL in nats per token. Never below the geometric one.

    Args: truth: which answer is the true one, "paraphrase" or "response".   reference: not used.
    Returns: [example] >= 0; 1 where the model cannot tell.
    Raises: DataError if an example has no false answer, or no paraphrase where that is asked for.
    Reference: Maini et al. 2024 (TOFU), arXiv:2401.06121, equation 1.
    """
    return np.exp(log_ratio(answers(table), aggregate="arithmetic", truth=truth))


@metric(unit="score", better="higher")
def truth_ratio_score_geometric(
    table: Table, reference: Table | None = None, *, truth: str = "paraphrase", forget: bool = False
) -> Float[np.ndarray, "example"]:
    """Score of the geometric truth ratio of each example: see `score`."""
    return score(truth_ratio_geometric(table, truth=truth), forget=forget)


@metric(unit="score", better="higher")
def truth_ratio_score_arithmetic(
    table: Table, reference: Table | None = None, *, truth: str = "paraphrase", forget: bool = False
) -> Float[np.ndarray, "example"]:
    """Score of the arithmetic truth ratio of each example: see `score`."""
    return score(truth_ratio_arithmetic(table, truth=truth), forget=forget)


def score(ratio: Float[np.ndarray, "example"], *, forget: bool) -> Float[np.ndarray, "example"]:
    """TOFU's score of a truth ratio, in [0, 1].

    max(0, 1 - R): 1 where the truth is certain, 0 where false answers are at least as probable. For the forget set
    min(R, 1/R): 1 where the model cannot tell. tofu/aggregate_eval_stat.py holds 1/R and so writes max(0, 1 - 1/x).
    """
    if not forget:
        return np.maximum(0.0, 1.0 - ratio)
    log = np.log(np.maximum(ratio, np.finfo(np.float64).tiny))  # R may have underflowed to 0; its score is 0 either way
    return np.exp(-np.abs(log))


def log_ratio(table: Answers, *, aggregate: str, truth: str) -> Float[np.ndarray, "example"]:
    """ln R of each example, nats per token; the false answers an example has are averaged, however many.

    Raises: InputError for an unknown `aggregate` or `truth`; DataError as the metrics.
    """
    if aggregate not in ("geometric", "arithmetic"):
        raise InputError(f"truth ratio: aggregate is {aggregate!r}, expected 'geometric' or 'arithmetic'.")
    if truth not in ("paraphrase", "response"):
        raise InputError(f"truth ratio: truth is {truth!r}, expected 'paraphrase' or 'response'.")
    false = table.options()
    true = table.response if truth == "response" else _paraphrase(table)
    if aggregate == "geometric":
        return true - np.nanmean(false, axis=1)
    least = np.nanmin(false, axis=1, keepdims=True)
    return true - least[:, 0] + np.log(np.nanmean(np.exp(least - false), axis=1))


def _paraphrase(table: Answers) -> Float[np.ndarray, "example"]:
    absent = np.isnan(table.paraphrase)
    if absent.any():
        raise DataError(
            f"truth ratio: {int(absent.sum())} of {len(table)} rows of {table.name!r} have no paraphrase, first "
            f"{table.ids[int(np.flatnonzero(absent)[0])]!r}. Use rows that have one, or truth='response' where the answer itself "
            "is compared with the false ones (real_authors, world_facts)."
        )
    return table.paraphrase
