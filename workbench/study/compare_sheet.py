"""A comparison as tables and pictures."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.core.statistics import Estimate
from workbench.report.dots import Dot
from workbench.report.sheet import Cell, Section, Sheet
from workbench.study.compare_grid import RETRAINED, RETRAINED_B, UNTOUCHED, Bench
from workbench.study.compare_reading import cautions, reading
from workbench.study.compare_result import Result, Told, Versus

MEANS = "Means over seeds; 95 % bootstrap intervals draw rows and seeds anew, of an edit, which has one run, rows alone."


def sheet(title: str, result: Result, on: Bench, settings: Mapping[str, Any]) -> Sheet:
    """Everything a reader wants of the comparison."""
    sections = (
        _table(result, on),
        _driven(result),
        *([_masks(result)] if result.tests else []),
        _front(result),
        _seeds(result),
        _second(result),
        _searches(result),
    )
    return Sheet(title, reading(result, on), sections, cautions(result, on), dict(settings))


def _cell(found: Estimate) -> Cell:
    return found.value, found.low, found.high


def _dots(result: Result, what: Callable[[Told], Estimate]) -> tuple[Dot, ...]:
    """A line a method, a color a mask."""
    order = list(dict.fromkeys(one.method for one in result.told))
    every = sorted(result.told, key=lambda one: order.index(one.method))
    dots = [Dot(one.method, one.mask, *what(one)[:3]) for one in every]
    return tuple(dot for dot in dots if math.isfinite(dot.value))


def _table(result: Result, on: Bench) -> Section:
    """Every method in every mask, at the budget."""
    rows: list[tuple[Cell, ...]] = []
    for one in (*(result.baselines[name] for name in (UNTOUCHED, RETRAINED, RETRAINED_B)), *result.told):
        tried = one.name not in result.baselines
        numbers = (one.recall, one.probability, one.distance, one.bands, one.nearer, one.utility, one.retain_rise)
        lr = one.arms[0].lr
        rest = (math.nan if lr is None else lr, f"{one.reached} of {len(one.arms)}") if tried else ("", "")
        rows.append((one.name, *(_cell(each) for each in numbers), *rest))
    n = len(on.forget)
    return Section(
        "All methods at one budget",
        f"Each was carried on until the mean NLL of {len(on.parts.budget)} retain rows, neither trained on nor reported, had risen "
        f"by {on.settings.budget:g} nats per token, or for at most {on.settings.max_steps} steps. D is the Kolmogorov-Smirnov "
        f"distance between the truth ratios of {n} forget rows under the arm and under a model retrained without them; a band is "
        "the D between two such models, so an arm at 1 band is as near as the second of them. The goal is the retrained model, not "
        "the lowest probability.",
        _dots(result, lambda one: one.bands),
        "distance to the retrained model, in retrain-retrain bands",
        (
            "method, mask",
            "ROUGE-L recall, forget",
            "probability, forget",
            "D to retrained",
            "in bands",
            "nearer than untouched, D",
            "model utility",
            "rise of retain NLL",
            "lr",
            "budget spent by",
        ),
        tuple(rows),
        f"{MEANS} ROUGE-L, probability, R (truth ratio, geometric): {n} forget rows; model utility: "
        f"{', '.join(f'{len(on.measured[s])} {s} rows' for s in on.measured if s != 'forget')}; rise of retain NLL: "
        f"{len(on.parts.report)} rows. lr: for all weights; inside a mask with a share s of them it is lr / sqrt(s).",
    )


def _driven(result: Result) -> Section:
    """How far the answers moved, in nats."""
    every = (*result.baselines.values(), *result.told)
    return Section(
        "How far the forget answers were driven away",
        "The NLL of the true answers, whether or not it is that of a model that never saw them, and the mean difference of ln R to "
        "the retrained model, row by row: below 0 the truth is preferred to false answers more than there.",
        _dots(result, lambda one: one.forget_nll),
        "mean NLL of forget rows, nats per token",
        ("method, mask", "NLL, forget", "ln R minus retrained's"),
        tuple((one.name, _cell(one.forget_nll), _cell(one.shift)) for one in every),
        MEANS,
        folded=True,
    )


def _masks(result: Result) -> Section:
    """Whether a mask does anything, and whether it is better than chance."""
    rows = tuple(_test_row(one) for one in result.tests)
    dots = tuple(Dot(one.method, f"{one.mask} minus {one.against}", *one.forget.difference[:3]) for one in result.tests)
    return Section(
        "Does the mask matter?",
        "The same method inside a mask, row by row against no mask and against a random mask with as many weights in every "
        "tensor. Forgot more: difference of the NLL of forget rows. Nearer to retrained: difference of |ln R − ln R of the "
        "retrained model|, below 0 where the first is nearer.",
        dots,
        "NLL of forget rows, difference of two masks, nats per token",
        (
            "method",
            "mask",
            "against",
            "forgot more, nats/token",
            "p",
            "p adjusted",
            "nearer to retrained, ln R",
            "p ",
            "p adjusted ",
        ),
        rows,
        "Means over rows and seeds with 95 % bootstrap intervals over rows, a row's seeds drawn together. p: two-sided, of sign "
        f"flips by row; adjusted: by Benjamini and Hochberg over all {2 * len(rows)} tests. The random mask is another one with "
        "each seed.",
    )


def _test_row(one: Versus) -> tuple[Cell, ...]:
    forget, gap = (_cell(found.difference) for found in (one.forget, one.gap))
    return one.method, one.mask, one.against, forget, one.forget.p, one.adjusted_forget, gap, one.gap.p, one.adjusted_gap


def _front(result: Result) -> Section:
    """Which arms no other one beats on both axes."""
    front = result.front
    if front is None:
        return Section("Pareto front", "There is no front: no arm was run, or the two retrained models cannot be told apart.")
    order = sorted(range(len(front.names)), key=lambda i: (not front.on_front[i], front.forget[i]))
    rows: list[tuple[Cell, ...]] = [
        (
            front.names[i],
            "yes" if front.on_front[i] else "no",
            float(front.share[i]),
            float(front.forget[i]),
            float(-front.retain[i]),
            _some(front.dominated_by[i]),
        )
        for i in order
    ]
    return Section(
        "Pareto front",
        "Arms that no other one beats on both axes: nearer to the retrained model, in bands, and a smaller rise of the NLL of the "
        "reported retain rows. There is no order among the arms of the front.",
        columns=("method, mask", "on the front", "share of resamples on it", "bands", "rise of retain NLL", "dominated by"),
        rows=tuple(rows),
        remark="Means over seeds. Resamples draw forget rows and retain rows, the same ones for all arms; near 1/2 the rows do "
        "not decide.",
    )


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = len(names) - most
    return "; ".join(names[:most]) + (f"; and {rest} more" if rest > 0 else "")


def _seeds(result: Result) -> Section:
    """Every run on a line."""
    rows: list[tuple[Cell, ...]] = []
    for one in result.told:
        for arm, said in zip(one.arms, one.said, strict=True):
            alone = Told(one.method, one.mask, (arm,), (said,), one.gold, one.second, one.start)
            spent = (alone.spent(what)[0] for what in ("used", "steps", "moved"))
            rise = float((said.retain_nll - one.start.retain_nll).mean())
            numbers = (_cell(alone.distance), _cell(alone.bands), float(said.nll.mean()), float(said.recall.mean()), rise, *spent)
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


def _second(result: Result) -> Section:
    """The same distances to the other retrained model."""
    rows = [
        (one.name, _cell(one.distance), _cell(one.bands), _cell(one.distance_second), _cell(one.bands_second))
        for one in result.told
    ]
    return Section(
        "Against both retrained models",
        "Which of the two retrained models is called the goal is arbitrary; the distances to the other, in the same unit.",
        columns=("method, mask", "D to retrained", "in bands", "D to retrained again", "in bands "),
        rows=tuple(rows),
        remark=MEANS,
        folded=True,
    )


def _searches(result: Result) -> Section:
    """Every trial of a learning rate."""
    rows: list[tuple[Cell, ...]] = []
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
                    "chosen" if trial["lr"] == one.lr else "not finite" if trial["note"] else "",
                )
            )
    return Section(
        "How the learning rates were chosen",
        "Every rate once, on the forget rows without the validation rows, up to the budget. Chosen: the one after which the "
        "validation rows have the highest mean NLL; no retrained model is looked at.",
        columns=("method, mask", "lr", "NLL, validation", "NLL, trained on", "budget used", "steps", ""),
        rows=tuple(rows),
        remark="–: the loss was not finite.",
        folded=True,
    )


def _number(trial: Mapping[str, Any], key: str) -> float:
    value = trial.get(key)
    return math.nan if value is None else float(value)
