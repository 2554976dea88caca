"""The result of `validate_data` as a sheet: two questions, the bank behind them, and what to know before quoting a number."""

from collections.abc import Sequence

import numpy as np

from workbench.core.statistics import LEVEL, Estimate
from workbench.report.dots import Dot
from workbench.report.sheet import Cell, Section, Sheet
from workbench.report.words import listed
from workbench.study.lds import Reliability, reliability
from workbench.study.validate_data_result import Outcome, Result

NONE = (float("nan"), float("nan"), float("nan"))
CEILING = "ceiling"


def sheet(title: str, result: Result) -> Sheet:
    """The whole result."""
    trust = reliability(result.bank.losses)
    sections = (_predicting(result, trust), _removing(result), _bank(result, trust))
    return Sheet(title, _reading(result, trust), sections, _cautions(result, trust))


def baseline(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The method that looks at words alone, which the others must beat; None where it is not among them."""
    return next((one for one in outcomes if one.method.member == "text_match"), None)


def over(one: Outcome, other: Outcome) -> Cell:
    """How much higher one method's score is than another's, drawn on the same queries and models."""
    drawn = one.lds.drawn - other.lds.drawn
    if np.isnan(drawn).all():
        return NONE
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return one.lds.estimate.value - other.lds.estimate.value, float(low), float(high)


def _cell(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def _reading(result: Result, trust: Reliability) -> str:
    """What was done and came out, in sentences."""
    models, seeds, queries = result.bank.losses.shape
    share = result.bank.subsets.mean()
    ranked = sorted((one for one in result.outcomes if np.isfinite(one.lds.estimate.value)), key=lambda o: -o.lds.estimate.value)
    said = [
        f"{models} models were trained on {share:.0%} of {len(result.bank.train)} rows each, with {seeds} "
        f"{'seeds' if seeds > 1 else 'seed'}, and {len(result.outcomes)} methods had to tell beforehand how well each would do on "
        f"{queries} queries."
    ]
    if np.isfinite(trust.ceiling.value):
        said.append(
            f"Seeds agree about the order of the models with r = {trust.one_seed:.2f}; knowing the expected losses would score "
            f"about {trust.ceiling.value:.2f}."
        )
    if ranked:
        parts = [f"{one.method.name} {one.lds.estimate.value:.2f}" for one in ranked[:3]]
        said.append(f"Highest came {listed(parts)}; lowest {ranked[-1].method.name} ({ranked[-1].lds.estimate.value:.2f}).")
    base = baseline(result.outcomes)
    if base is not None:
        cells = [(one.method.name, over(one, base)) for one in ranked if one is not base and one.method.kind != "labels"]
        better = [name for name, cell in cells if isinstance(cell, tuple) and cell[1] > 0]
        said.append(_who(better, f"better than words alone ({base.method.name}) with its interval above 0"))
    hit = [one.method.name for one in result.outcomes if one.removal.beyond.low > 0]
    said.append(_who(hit, f"better than chance at naming {result.removed} rows that the queries need, with its interval above 0"))
    return " ".join(said)


def _who(names: Sequence[str], what: str) -> str:
    """A sentence about the methods that were `what`, or that none was."""
    if not names:
        return f"No method was {what}."
    return (
        f"{listed(names)} {'was' if len(names) == 1 else 'were'} {what if len(names) == 1 else what.replace(' its ', ' their ')}."
    )


def _predicting(result: Result, trust: Reliability) -> Section:
    """The linear datamodeling score of every method."""
    base = baseline(result.outcomes)
    dots = [Dot(one.method.name, "method", *_cell(one.lds.estimate)) for one in result.outcomes]
    if np.isfinite(trust.ceiling.value):
        dots.append(Dot("ceiling: the expected loss itself", CEILING, *_cell(trust.ceiling)))
    versus = () if base is None else (f"minus {base.method.name}",)
    said = any(one.lds.note for one in result.outcomes)
    rows: list[tuple[Cell, ...]] = []
    for one in result.outcomes:
        against: tuple[Cell, ...] = () if base is None else (NONE if one is base else over(one, base),)
        part = one.lds.estimate.value / trust.ceiling.value
        rows.append((one.method.name, _cell(one.lds.estimate), *against, part, one.seconds, *([one.lds.note] if said else [])))
    return Section(
        "Which method predicts retraining?",
        "For every query, a method's values are summed over the rows each model was trained on, and the sums are held against the "
        "models' losses: the linear datamodeling score is their rank correlation, the mean over queries. 1 is the right order of "
        "all models for every query, 0 is chance, below 0 is the wrong way round.",
        tuple(dots),
        "linear datamodeling score (mean Spearman correlation)",
        ("method", "score", *versus, "share of the ceiling", "seconds", *(["note"] if said else [])),
        tuple(rows),
        "95 % bootstrap intervals that draw queries and models; differences are paired. Seconds: for one model.",
    )


def _removing(result: Result) -> Section:
    """The counterfactual: rows are left out and the model is trained again."""
    name = f"{result.removed} random rows, {result.drops} draws"
    dots = [Dot(one.method.name, "method", *_cell(one.removal.rise)) for one in result.outcomes]
    dots.append(Dot(name, "random rows", *_cell(result.random)))
    rows: list[tuple[Cell, ...]] = [
        (one.method.name, _cell(one.removal.rise), _cell(one.removal.beyond), ", ".join(one.removed[:4])) for one in result.outcomes
    ]
    return Section(
        "What happens without the rows ranked highest?",
        f"The {result.removed} rows with the highest mean value over all queries are left out, and the model is trained again with "
        f"every seed. The loss of the queries with all rows is {result.start.mean():.3f} nats per token.",
        tuple(dots),
        "rise of the queries' loss, nats per token",
        ("method", "rise", "beyond random rows", "the first of the rows"),
        (*rows, (name, _cell(result.random), NONE, "")),
        "95 % bootstrap intervals that draw queries, seeds and random draws.",
    )


def _bank(result: Result, trust: Reliability) -> Section:
    """What the ground truth is worth."""
    losses = result.bank.losses
    models, seeds, queries = losses.shape
    rows: list[tuple[Cell, ...]] = [
        ("models x seeds", f"{models} x {seeds}"),
        ("training rows, queries", f"{len(result.bank.train)}, {queries}"),
        ("share of the rows in a model", float(result.bank.subsets.mean())),
        ("mean loss of the queries, nats per token", float(losses.mean())),
        ("spread of a query's loss over models (sd of seed means)", float(losses.mean(axis=1).std(axis=0).mean())),
        ("standard error of one query's score at 0, 1/sqrt(models - 1)", (models - 1) ** -0.5),
        ("agreement of two seeds, r, mean over queries", trust.one_seed),
        ("reliability of the mean over seeds, R r / (1 + (R - 1) r), mean over queries", trust.mean_of_seeds),
        ("ceiling, the mean over queries of the root of that", _cell(trust.ceiling)),
    ]
    if trust.note:
        rows.append(("note", trust.note))
    return Section("The bank", columns=("what", "value"), rows=tuple(rows), folded=True)


def _cautions(result: Result, trust: Reliability) -> tuple[str, ...]:
    """What a reader must know before quoting a number."""
    said = [
        "One task, one start and one recipe: the ranking of methods is about these, and other data can turn it round.",
        "Scores against random subsets of half the rows are not comparable with scores against banks that leave out one part in a "
        "hundred, nor with those of another task.",
        "Methods with labels know what no method is told: which rows are about the query, or which are right. They say how much of "
        "the order content alone explains.",
        "Scores of single rows (loss, EL2N, gradient norm) are taken as they are, the same for every query; they do not claim to "
        "be influence, and a score below 0 means that rows with high values hurt.",
        "LESS is computed without its random projection, and with the moments that Adam had at the end for every checkpoint.",
        "Rows of equal value are left out in the order of the file: labels rank the rows of all topics alike, so their removal "
        "says little.",
        "What is left out together need not add up: the removal of rows also tests interactions, and a mean over queries hides "
        "single ones.",
        "No correction is made for the number of methods; with many at the 5 % level some come out by chance.",
    ]
    if trust.note:
        said.append(f"The ceiling is not known: {trust.note}.")
    return tuple(said)
