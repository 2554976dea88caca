"""TOFU's aggregation script (locuslab/tofu, aggregate_eval_stat.py and utils.py) as arithmetic on its logs: NumPy and SciPy alone,
nothing from the package, so that the two can disagree.

The script averages the perturbed answers' losses before it exponentiates (the geometric truth ratio) and holds P(true)/P(false),
the inverse of R; max(0, 1 - 1/x) of it is max(0, 1 - R).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import hmean, ks_2samp

SECTIONS = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
Log = Mapping[str, Mapping[str, Mapping[str, Any]]]


def values(log: Log, split: str, field: str) -> np.ndarray:
    """One field of a split, in the order of its rows."""
    rows = log[SECTIONS[split]]
    return np.array([rows[field][key] for key in rows["avg_gt_loss"]], dtype=np.float64)


def inverse_ratio(log: Log, split: str) -> np.ndarray:
    """P(true) / P(false) of every row, geometric over the false answers: what the script stores."""
    true, false = values(log, split, "avg_paraphrased_loss"), values(log, split, "average_perturb_loss")
    return np.exp(false.mean(axis=1) - true)


def numbers(log: Log) -> dict[tuple[str, str], float]:
    """Probability, ROUGE-L recall and truth ratio of every split, and model utility, as the script computes them."""
    found: dict[tuple[str, str], float] = {}
    for split in SECTIONS:
        chance = np.exp(-values(log, split, "avg_gt_loss"))
        if split in ("real_authors", "world_facts"):
            others = np.exp(-values(log, split, "average_perturb_loss"))
            chance = chance / (chance + others.sum(axis=1))
        ratio = inverse_ratio(log, split)
        truth = np.minimum(ratio, 1 / ratio) if split == "forget" else np.maximum(0, 1 - 1 / ratio)
        name = "probability_options" if split in ("real_authors", "world_facts") else "probability"
        found[name, split] = float(chance.mean())
        found["rouge_l_recall", split] = float(values(log, split, "rougeL_recall").mean())
        found["truth_ratio_score_geometric", split] = float(truth.mean())
    found["model_utility_geometric", "all"] = float(hmean([value for (_, split), value in found.items() if split != "forget"]))
    return found


def forget_quality(log: Log, retrained: Log) -> dict[tuple[str, str], float]:
    """p-value and statistic of the two-sample Kolmogorov-Smirnov test of the forget rows' truth ratios."""
    test: Any = ks_2samp(inverse_ratio(log, "forget"), inverse_ratio(retrained, "forget"))
    return {("forget_quality", "forget"): float(test.pvalue), ("ks_distance", "forget"): float(test.statistic)}
