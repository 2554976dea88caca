"""What a model still knows: nine numbers about three sets of rows in one harmonic mean."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError
from workbench.core.registry import metric
from workbench.core.statistics import Estimate, bootstrap
from workbench.evaluate.probability import probability
from workbench.evaluate.probability_options import probability_options
from workbench.evaluate.rouge_l_recall import rouge_l_recall
from workbench.evaluate.table import Table, answers
from workbench.evaluate.truth_ratio import log_ratio, score

UTILITY_SPLITS = ("retain", "real_authors", "world_facts")
WITH_OPTIONS = ("real_authors", "world_facts")


@metric(unit="harmonic mean", better="higher")
def model_utility_geometric(table: Mapping[str, Table], reference: Table | None = None, *, seed: int = 0) -> Estimate:
    """TOFU's model utility with the geometric truth ratio: the definition behind its published numbers (.62 to .63).

    Harmonic mean of nine means: probability (among options on real_authors and world_facts), ROUGE-L recall and truth-ratio
    score max(0, 1 - R), on retain, real_authors and world_facts. One mean of 0 makes it 0: the limit, and the definition.

    Args:
        table: the three splits by name, each read with generated text; others are ignored.
        reference: not used.   seed: of the bootstrap.
    Returns: Estimate in [0, 1]; the interval resamples rows inside each split, each with its three numbers. n: rows of all three.
    Raises: DataError if a split is missing, or its rows lack what the nine need; InputError without generated text.
    Reference: Maini et al. 2024 (TOFU), arXiv:2401.06121; tofu/aggregate_eval_stat.py.
    """
    return _utility(table, "geometric", seed)


@metric(unit="harmonic mean", better="higher")
def model_utility_arithmetic(table: Mapping[str, Table], reference: Table | None = None, *, seed: int = 0) -> Estimate:
    """TOFU's model utility with the arithmetic truth ratio of its paper, about .04 lower; else as `model_utility_geometric`."""
    return _utility(table, "arithmetic", seed)


def truth_of(split: str, table: Table) -> str:
    """Which answer is the true one in a split's truth ratio: the response where real_authors or world_facts have no paraphrase.

    TOFU's logs hold the response's loss there a second time, read in another batch and up to .12 nats per token apart; the
    published utility uses the second.
    """
    without = np.isnan(answers(table).paraphrase).all()
    return "response" if split in WITH_OPTIONS and without else "paraphrase"


def components(split: str, table: Table, *, aggregate: str) -> Float[np.ndarray, "example 3"]:
    """Probability, ROUGE-L recall and truth-ratio score of each example of a utility split."""
    ratio = np.exp(log_ratio(answers(table), aggregate=aggregate, truth=truth_of(split, table)))
    chance = probability_options(table) if split in WITH_OPTIONS else probability(table)
    return np.stack([chance, rouge_l_recall(table), score(ratio, forget=False)], axis=1)


def harmonic_mean(values: Float[np.ndarray, "resample value"]) -> Float[np.ndarray, "resample"]:
    """n / sum(1/x) of non-negative values; 0 if one of them is 0."""
    positive = np.all(values > 0, axis=1)
    safe = np.where(np.all(values > 0, axis=1, keepdims=True), values, 1.0)
    return np.where(positive, values.shape[1] / (1.0 / safe).sum(axis=1), 0.0)


def _utility(tables: Mapping[str, Table], aggregate: str, seed: int) -> Estimate:
    absent = [split for split in UTILITY_SPLITS if split not in tables]
    if absent:
        raise DataError(f"model utility: no {', '.join(absent)} among {', '.join(tables) or 'no splits'}; it needs all three.")
    parts = [components(split, tables[split], aggregate=aggregate) for split in UTILITY_SPLITS]
    return bootstrap(lambda *drawn: harmonic_mean(np.concatenate([d.mean(axis=1) for d in drawn], axis=1)), *parts, seed=seed)
