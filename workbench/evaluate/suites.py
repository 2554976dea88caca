"""Named sets of rows and metrics that others publish, with an interval beside every number."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError, unknown
from workbench.core.measurements import Measurement, Measurements
from workbench.core.records import Examples
from workbench.core.registry import metric
from workbench.core.statistics import Estimate, mean_estimate
from workbench.evaluate.answers import Answers
from workbench.evaluate.forget_quality import forget_quality, ks_distance, log_truth_ratio_difference, p_floor
from workbench.evaluate.model_utility import (
    UTILITY_SPLITS,
    WITH_OPTIONS,
    model_utility_arithmetic,
    model_utility_geometric,
    truth_of,
)
from workbench.evaluate.probability import probability
from workbench.evaluate.probability_options import probability_options
from workbench.evaluate.rouge_l_recall import rouge_l_recall
from workbench.evaluate.table import Table, TokenTable, answers
from workbench.evaluate.tokens import BATCH_TOKENS, tokens
from workbench.evaluate.truth_ratio import truth_ratio_score_arithmetic, truth_ratio_score_geometric
from workbench.load.models import Model

SUITES = ("tofu",)
SPLITS = ("forget", *UTILITY_SPLITS)
GENERATE = 200  # new tokens, as OpenUnlearning; TOFU's script counts the prompt among its 200


def suite(
    name: str,
    model: Model,
    *,
    data: Mapping[str, Examples],
    reference: Model | Mapping[str, Table] | None = None,
    seed: int = 0,
    generate: int = GENERATE,
    batch_tokens: int = BATCH_TOKENS,
    show: bool = False,
) -> Measurements:
    """Run a published suite on a model: `read`, then `tofu`.

    Args:
        name: "tofu".
        data: rows of the splits forget, retain, real_authors and world_facts, all with false answers.
        reference: a model retrained without the forget rows, or what it says about them ({"forget": table}).
        generate, batch_tokens, show: as in `tokens`.   seed: of the bootstrap.
    Raises: UnknownNameError for another suite; DataError if a split is missing or its rows lack false answers or paraphrases.
    """
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    check_data(data)
    if isinstance(reference, Model):
        reference = {"forget": tokens(reference, data["forget"], batch_tokens=batch_tokens, show=show)}
    return tofu(read(model, data, generate=generate, batch_tokens=batch_tokens, show=show), reference, seed=seed)


def check_data(data: Mapping[str, Examples]) -> None:
    """DataError unless every split of `tofu` is there, and its rows have the false answers and paraphrases that are needed."""
    for split in _complete(data):
        _check_rows(split, data[split])


def read(
    model: Model,
    data: Mapping[str, Examples],
    *,
    generate: int | None = GENERATE,
    batch_tokens: int = BATCH_TOKENS,
    show: bool = False,
) -> dict[str, TokenTable]:
    """The token table of every set, one forward pass a row; all of `tofu`'s numbers come from these."""
    return {split: tokens(model, rows, generate=generate, batch_tokens=batch_tokens, show=show) for split, rows in data.items()}


def tofu(tables: Mapping[str, Table], reference: Mapping[str, Table] | None = None, *, seed: int = 0) -> Measurements:
    """TOFU's numbers from token tables or logs: probability, ROUGE-L recall, truth ratio, model utility, forget quality.

    On the forget split low probability and recall mean forgotten, and a retrained model is the goal, not 0: read the reference's
    own forget row beside it. Without a reference there is no forget_quality, ks_distance or log_truth_ratio_difference.

    Args:
        tables: forget, retain, real_authors, world_facts.
        reference: {"forget": table} of a model retrained without the forget rows, on the same rows.
        seed: of every bootstrap.
    Returns: Measurements; metric names are the registry's, with `_arithmetic` added where the truth ratio is not the geometric
        one. Model utility stands under the split "all".
    Raises: DataError if a split is missing, rows lack false answers or paraphrases, or the reference has other rows.
    Reference: Maini et al. 2024, arXiv:2401.06121. Means over examples; intervals resample examples.
    """
    ready = {split: _with_recall(answers(tables[split])) for split in _complete(tables)}
    rows = [row for split, table in ready.items() for row in _split_rows(split, table, seed)]
    for function in (model_utility_geometric, model_utility_arithmetic):
        rows.append(_row(function.__name__, function.__name__, "all", function(ready, seed=seed)))
    if reference is not None:
        if "forget" not in reference:
            raise DataError(f"tofu: the reference has {', '.join(reference) or 'no splits'}, but not 'forget'.")
        rows += _reference_rows(ready["forget"], reference["forget"], seed)
    return Measurements(rows)


def _split_rows(split: str, table: Answers, seed: int) -> list[Measurement]:
    forget, truth = split == "forget", truth_of(split, table)
    likely = probability_options if split in WITH_OPTIONS else probability
    values: dict[str, Float[np.ndarray, "example"]] = {
        likely.__name__: likely(table),
        "rouge_l_recall": rouge_l_recall(table),
        "truth_ratio_score_geometric": truth_ratio_score_geometric(table, truth=truth, forget=forget),
        "truth_ratio_score_arithmetic": truth_ratio_score_arithmetic(table, truth=truth, forget=forget),
    }
    lower = {"probability", "rouge_l_recall"} if forget else set()
    return [
        _row(name, name, split, mean_estimate(value, seed=seed), better="lower" if name in lower else None)
        for name, value in values.items()
    ]


def _reference_rows(table: Answers, reference: Table, seed: int) -> list[Measurement]:
    n = len(table)
    note = f"no interval: a p-value; its floor at n={n} is {p_floor(n, n)}; compare only at equal n; ignores pairing"
    rows = []
    for aggregate, suffix in (("geometric", ""), ("arithmetic", "_arithmetic")):
        p = forget_quality(table, reference, aggregate=aggregate)
        distance = ks_distance(table, reference, aggregate=aggregate, seed=seed)
        shift = log_truth_ratio_difference(table, reference, aggregate=aggregate, seed=seed)
        rows += [
            _row("forget_quality" + suffix, "forget_quality", "forget", p, note=note),
            _row("ks_distance" + suffix, "ks_distance", "forget", distance, note=f"a multiple of 1/{n}; ignores pairing"),
            _row("log_truth_ratio_difference" + suffix, "log_truth_ratio_difference", "forget", shift, note="paired"),
        ]
    return rows


def _row(name: str, member: str, split: str, estimate: Estimate, *, better: str | None = None, note: str = "") -> Measurement:
    about = metric[member].about
    return Measurement.of(name, split, estimate, unit=about["unit"], better=better or about["better"], note=note)


def _with_recall(table: Answers) -> Answers:
    """The record with ROUGE computed once, for the metrics that need it again."""
    return replace(table, recall=rouge_l_recall(table))


def _complete(given: Mapping[str, object]) -> tuple[str, ...]:
    for split in given:
        if split not in SPLITS:
            raise unknown("split of tofu", split, SPLITS)
    absent = [split for split in SPLITS if split not in given]
    if absent:
        raise DataError(f"tofu: no {', '.join(absent)} among {', '.join(given) or 'no splits'}; it needs {', '.join(SPLITS)}.")
    return SPLITS


def _check_rows(split: str, rows: Examples) -> None:
    """DataError before the model runs, if rows lack what the split's truth ratio needs."""
    needs_paraphrase = split not in WITH_OPTIONS or any(row.paraphrase for row in rows)
    usable = [bool(row.perturbed) and (not needs_paraphrase or row.paraphrase is not None) for row in rows]
    if all(usable):
        return
    count, leading = sum(usable), usable.index(False)
    cure = f"{split}[:{leading}]" if leading == count else f"{split}.take(i for i, row in enumerate({split}) if row.perturbed)"
    raise DataError(
        f"tofu: {len(usable) - count} of {len(usable)} rows of {split} have no perturbed answers"
        f"{' or no paraphrase' if needs_paraphrase else ''}, first {rows[leading].id!r}; the truth ratio needs them. "
        + (f"Use {cure}." if count else "TOFU's files with false answers are named *_perturbed.")
    )
