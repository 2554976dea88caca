"""The runs and trials of a comparison one by one, as tables."""

import math
from collections.abc import Mapping
from typing import Any

from workbench.core.statistics import Estimate
from workbench.report.sheet import Cell, Section
from workbench.study.compare_choice import Search
from workbench.study.compare_grid import Bench
from workbench.study.compare_result import Result, Told

MEANS = "Means over seeds; 95 % bootstrap intervals draw rows and seeds anew, of an edit, which has one run, rows alone."


def cell(found: Estimate) -> Cell:
    """An estimate as it is shown; what rounding leaves of a difference of equal means, 1e-17, is cut off."""
    return round(found.value, 12), round(found.low, 12), round(found.high, 12)


def most_steps(on: Bench, rows: int) -> int:
    """The most steps of a run on so many forget rows: max_steps, rounded up to whole epochs."""
    return on.settings.training.epochs(rows) * on.settings.training.epoch(rows)


def every_run(result: Result) -> Section:
    """Every run on a line."""
    rows: list[tuple[Cell, ...]] = []
    for one in result.told:
        for arm, said in zip(one.arms, one.said, strict=True):
            alone = Told(one.method, one.mask, (arm,), (said,), one.gold, one.second, one.start)
            spent = (alone.spent(what)[0] for what in ("used", "steps", "moved"))
            rise = float((said.retain_nll - one.start.retain_nll).mean())
            numbers = (cell(alone.distance), cell(alone.bands), float(said.nll.mean()), float(said.recall.mean()), rise, *spent)
            rows.append((arm.name, *numbers, "yes" if alone.reached else "no"))
    return Section(
        "Every run",
        "Seeds one by one; a seed changes the order of training, and the random mask.",
        columns=(
            "run",
            "D to retrained",
            "in bands",
            "NLL, forget",
            "ROUGE-L recall, forget",
            "rise of retain NLL",
            "budget used",
            "steps",
            "weights moved",
            "budget spent",
        ),
        rows=tuple(rows),
        remark="Intervals over rows.",
        folded=True,
    )


def both_distances(result: Result) -> Section:
    """The same distances to the other retrained model."""
    rows = [
        (one.name, cell(one.distance), cell(one.bands), cell(one.distance_second), cell(one.bands_second)) for one in result.told
    ]
    return Section(
        "Against both retrained models",
        "Which of the two retrained models is called the goal is arbitrary; the distances to the other, in the same unit.",
        columns=("method, mask", "D to retrained", "in bands", "D to retrained again", "in bands "),
        rows=tuple(rows),
        remark=MEANS,
        folded=True,
    )


def trials(result: Result, on: Bench) -> Section:
    """Every trial of a learning rate."""
    rows: list[tuple[Cell, ...]] = []
    epoch = on.settings.training.epoch(len(on.forget))
    for one in result.searches:
        for trial in one.trials:
            value = trial["validation_nll"]
            rows.append(
                (
                    f"{one.method}, {one.mask}",
                    trial["lr"],
                    math.nan if value is None else value,
                    _number(trial, "forget_nll"),
                    _number(trial, "used"),
                    _number(trial, "steps"),
                    _remark(one, trial, epoch),
                )
            )
    return Section(
        "How the learning rates were chosen",
        f"Every rate once, on the {len(on.fitting)} forget rows that are no validation rows, up to the budget or for at most "
        f"{most_steps(on, len(on.fitting))} steps. Chosen: of those that spent the budget in {epoch} steps, an epoch of a run, or "
        "more the one after which the validation rows have the highest mean NLL; if there is none, of those that spent it at all "
        "the one of the most steps; if none did, the highest mean NLL. No retrained model is looked at.",
        columns=("method, mask", "lr", "NLL, validation", "NLL, trained on", "budget used", "steps", ""),
        rows=tuple(rows),
        remark="–: the loss was not finite.",
        folded=True,
    )


def _remark(one: Search, trial: Mapping[str, Any], epoch: int) -> str:
    """What became of a trial, and what it lacks."""
    if trial["note"]:
        return "not finite"
    lacks = [] if trial["reached"] else ["budget not spent"]
    lacks += ["less than an epoch of a run"] if trial["steps"] < epoch else []
    return "; ".join([*(["chosen"] if trial["lr"] == one.lr else []), *lacks])


def _number(trial: Mapping[str, Any], key: str) -> float:
    value = trial.get(key)
    return math.nan if value is None else float(value)
