"""TOFU's suite: probability, ROUGE-L recall, truth ratio, model utility, forget quality, and what else the same tables say."""

from collections.abc import Mapping
from dataclasses import replace

from workbench.core.errors import DataError, unknown
from workbench.core.measurements import Measurements
from workbench.core.records import Examples
from workbench.core.registry import metric
from workbench.core.statistics import Estimate, mean_estimate
from workbench.evaluate.answers import Answers
from workbench.evaluate.model_utility import UTILITY_SPLITS, WITH_OPTIONS, truth_of
from workbench.evaluate.rouge_l_recall import rouge_l_recall
from workbench.evaluate.suites.lines import REFERENCE, TEXTS, TOKENS, Given, Line, leak_of, mean, measured, share, told_from, whole
from workbench.evaluate.table import Table, TokenTable, answers
from workbench.evaluate.tokens import BATCH_TOKENS, tokens
from workbench.load.models import Model

SPLITS = ("forget", *UTILITY_SPLITS)
GENERATE = 200  # new tokens, as OpenUnlearning; TOFU's script counts the prompt among its 200


def _truth(line: Line, given: Given) -> Estimate:
    """Mean score of the truth ratio, with the split's own true answer and orientation."""
    table = given.answers[line.split]
    truth = truth_of(line.split, table)
    values = metric[line.metric].function(table, truth=truth, forget=line.split == "forget")
    return mean_estimate(values, seed=given.seed)


def _of_split(split: str) -> tuple[Line, ...]:
    """The four numbers of every split. On the forget split low means forgotten, and a retrained model is the goal, not 0."""
    lower = "lower" if split == "forget" else ""
    return (
        Line("probability_options" if split in WITH_OPTIONS else "probability", split, mean, better=lower),
        Line("rouge_l_recall", split, mean, better=lower),
        Line("truth_ratio_score_geometric", split, _truth),
        Line("truth_ratio_score_arithmetic", split, _truth),
    )


def _against_retrained(aggregate: str, suffix: str) -> tuple[Line, ...]:
    """How far the forget split's truth ratios lie from a retrained model's."""
    said = {
        "forget_quality": "no interval: a p-value; its floor at n={n} is {floor}; compare only at equal n; ignores pairing",
        "ks_distance": "a multiple of 1/{n}; ignores pairing",
        "log_truth_ratio_difference": "paired",
    }
    return tuple(
        Line(name, "forget", whole, {"aggregate": aggregate}, name + suffix, note=note, needs=(REFERENCE,))
        for name, note in said.items()
    )


HOLDOUT = "holdout"  # rows of the forget set's kind that no model saw: TOFU's holdout01, holdout05, holdout10
FORGET = (
    Line("probability", "forget", mean, {"variant": "paraphrase"}, "probability_paraphrase", better="lower"),
    Line("exact_memorization", "forget", mean, needs=(TOKENS,)),
    Line("extraction_strength", "forget", mean, needs=(TOKENS,)),
    Line("gibberish", "forget", mean, needs=(TEXTS,)),
    Line("empty_answer", "forget", share, needs=(TEXTS,)),
    Line("auc", "forget", told_from(HOLDOUT), name="auc_min_k", unit="AUC", better="reference", needs=(HOLDOUT,)),
    Line("privleak", "forget", leak_of(HOLDOUT), unit="percent", better="zero", needs=(HOLDOUT, REFERENCE)),
)
"""What the same tables say of the forget split beside TOFU's own numbers."""

LINES = (
    *(line for split in SPLITS for line in _of_split(split)),
    Line("model_utility_geometric", "all", whole),
    Line("model_utility_arithmetic", "all", whole),
    *_against_retrained("geometric", ""),
    *_against_retrained("arithmetic", "_arithmetic"),
    *FORGET,
)


def tofu(tables: Mapping[str, Table], reference: Mapping[str, Table] | None = None, *, seed: int = 0) -> Measurements:
    """TOFU's numbers from token tables or logs: probability, ROUGE-L recall, truth ratio, model utility, forget quality.

    Beside them stands what the same tables say of the forget rows (FORGET).

    On the forget split low probability and recall mean forgotten, and a retrained model is the goal, not 0: read the reference's
    own forget row beside it. Without a reference there is no forget_quality, ks_distance or log_truth_ratio_difference; from logs,
    which hold no tokens, no number that reads them.

    Args:
        tables: forget, retain, real_authors, world_facts; and holdout, for the AUC of membership and PrivLeak.
        reference: {"forget": table} of a model retrained without the forget rows, on the same rows; and holdout where there is one.
        seed: of every bootstrap.
    Returns: Measurements; metric names are the registry's, with `_arithmetic` added where the truth ratio is not the geometric
        one. Model utility stands under the split "all".
    Raises: DataError if a split is missing, rows lack false answers or paraphrases, or the reference has other rows.
    Reference: Maini et al. 2024, arXiv:2401.06121. Means over examples; intervals resample examples.
    """
    ready = {split: _with_recall(tables[split]) for split in _complete(tables)}
    for split in ("forget", HOLDOUT):
        if reference is not None and split in tables and split not in reference:
            raise DataError(f"tofu: the reference has {', '.join(reference) or 'no splits'}, but not {split!r}.")
    return Measurements(measured(LINES, Given(tables, ready, reference or {}, seed)))


def run_tofu(
    model: Model,
    data: Mapping[str, Examples],
    *,
    reference: Model | Mapping[str, Table] | None = None,
    generate: int = GENERATE,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
    show: bool = False,
) -> Measurements:
    """`read`, then `tofu`.

    Args:
        data: rows of the splits forget, retain, real_authors and world_facts, all with false answers; and of holdout if there are
            some, which need none.
        reference: a model retrained without the forget rows, or what it says about them ({"forget": table}, and holdout).
        generate, batch_tokens, show: as in `tokens`.   seed: of the bootstrap.
    Raises: DataError if a split is missing or its rows lack false answers or paraphrases.
    """
    check_data(data)
    if isinstance(reference, Model):
        asked = {split: data[split] for split in ("forget", HOLDOUT) if split in data}
        reference = read(reference, asked, generate=None, batch_tokens=batch_tokens, show=show)
    return tofu(read(model, data, generate=generate, batch_tokens=batch_tokens, show=show), reference, seed=seed)


def read(
    model: Model,
    data: Mapping[str, Examples],
    *,
    generate: int | None = GENERATE,
    batch_tokens: int = BATCH_TOKENS,
    show: bool = False,
) -> dict[str, TokenTable]:
    """The token table of every set, one forward pass a row; all of `tofu`'s numbers come from these.

    Nothing is generated for holdout rows: what is asked of them reads their tokens alone.
    """
    return {
        split: tokens(model, rows, generate=None if split == HOLDOUT else generate, batch_tokens=batch_tokens, show=show)
        for split, rows in data.items()
    }


def check_data(data: Mapping[str, Examples]) -> None:
    """DataError unless every split of `tofu` is there, and its rows have the false answers and paraphrases that are needed."""
    for split in _complete(data):
        _check_rows(split, data[split])


def _with_recall(table: Table) -> Answers:
    """The examples' record with ROUGE computed once, for the metrics that need it again."""
    given = answers(table)
    return replace(given, recall=rouge_l_recall(given))


def _complete(given: Mapping[str, object]) -> tuple[str, ...]:
    for split in given:
        if split not in (*SPLITS, HOLDOUT):
            raise unknown("split of tofu", split, (*SPLITS, HOLDOUT))
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
