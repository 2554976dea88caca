"""A comparison as tables and pictures."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.core.statistics import Estimate
from workbench.report.dots import Dot
from workbench.report.sheet import Cell, Section, Sheet
from workbench.study.compare_grid import Bench
from workbench.study.compare_plan import RETRAINED, RETRAINED_B, UNTOUCHED
from workbench.study.compare_reading import cautions, reading
from workbench.study.compare_result import Result, Told
from workbench.study.compare_runs import MEANS, both_distances, cell, every_run, most_steps, trials
from workbench.study.compare_tests import Compared, Versus


def sheet(title: str, result: Result, compared: Compared, on: Bench, settings: Mapping[str, Any]) -> Sheet:
    """Everything a reader wants of the comparison."""
    sections = (
        _table(result, on),
        _driven(result),
        *([_masks(compared, len(on.settings.seeds))] if compared.tests or compared.left_out else []),
        _front(result),
        every_run(result),
        both_distances(result),
        trials(result, on),
    )
    return Sheet(title, reading(result, compared, on), sections, cautions(result, compared, on), dict(settings))


def _dots(result: Result, what: Callable[[Told], Estimate]) -> tuple[Dot, ...]:
    """A line a method, a color a mask."""
    order = list(dict.fromkeys(one.method for one in result.told))
    every = sorted(result.told, key=lambda one: order.index(one.method))
    dots = [Dot(one.method, one.mask, *what(one)[:3]) for one in every]
    return tuple(dot for dot in dots if math.isfinite(dot.value))


def _table(result: Result, on: Bench) -> Section:
    """Every method in every mask, at the budget."""
    rows: list[tuple[Cell, ...]] = []
    epoch = on.settings.training.epoch(len(on.forget))
    for one in (*(result.baselines[name] for name in (UNTOUCHED, RETRAINED, RETRAINED_B)), *result.told):
        tried = one.name not in result.baselines
        numbers = (one.recall, one.probability, one.distance, one.bands, one.nearer, one.utility, one.retain_rise)
        lr = one.arms[0].lr
        rest = (math.nan if lr is None else lr, one.steps / epoch, one.budget_spent) if tried else ("", "", "")
        rows.append((one.name, *(cell(each) for each in numbers), *rest))
    n = len(on.forget)
    return Section(
        "All methods at one budget",
        f"Each was carried on until the mean NLL of {len(on.parts.budget)} retain rows, neither trained on nor reported, had "
        f"risen by {on.settings.budget:g} nats per token, or for at most {most_steps(on, len(on.forget))} steps. D is the "
        f"Kolmogorov-Smirnov distance between the truth ratios of {n} forget rows under the arm and under a model retrained "
        "without them; a band is the D between two such models, so an arm at 1 band is as near as the second of them. The goal is "
        "the retrained model, not the lowest probability.",
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
            "epochs",
            "budget spent by",
        ),
        tuple(rows),
        f"{MEANS} ROUGE-L, probability, R (truth ratio, geometric): {n} forget rows; model utility: "
        f"{', '.join(f'{len(on.measured[s])} {s} rows' for s in on.measured if s != 'forget')}; rise of retain NLL: "
        f"{len(on.parts.report)} rows. lr: for all weights; inside a mask with a share s of them it is lr / sqrt(s). epochs: steps "
        f"over the {epoch} in which every forget row is met once, mean over seeds.",
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
        tuple((one.name, cell(one.forget_nll), cell(one.shift)) for one in every),
        MEANS,
        folded=True,
    )


def _masks(compared: Compared, seeds: int) -> Section:
    """Whether a mask does anything, and whether it is better than chance."""
    rows = tuple(_test_row(one) for one in compared.tests)
    dots = tuple(Dot(one.method, f"{one.mask} minus {one.against}", *one.forget.difference[:3]) for one in compared.tests)
    left = f" Left out, for a run failed and the seeds differ: {'; '.join(compared.left_out)}." if compared.left_out else ""
    return Section(
        "Does the mask matter?",
        "The same method inside a mask, seed by seed against no mask and against a random mask with as many weights in every "
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
        f"One number a seed, the mean over rows; means, 95 % intervals and two-sided p-values by Student's t over the {seeds} "
        f"seeds, rows being no repeats of the experiment. Adjusted: by Benjamini and Hochberg over all {2 * len(rows)} tests, some "
        f"of which share runs. The random mask is another one with each seed.{left}",
    )


def _test_row(one: Versus) -> tuple[Cell, ...]:
    forget, gap = (found.difference[:3] for found in (one.forget, one.gap))
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
            result.told[i].budget_spent,
            float(front.forget[i]),
            float(-front.retain[i]),
            _some(front.dominated_by[i]),
        )
        for i in order
    ]
    return Section(
        "Pareto front",
        "Arms that no other one beats on both axes: nearer to the retrained model, in bands, and a smaller rise of the NLL of the "
        "reported retain rows. There is no order among the arms of the front. An arm whose runs did not all spend the budget "
        "stands at a smaller cost than the others.",
        columns=(
            "method, mask",
            "on the front",
            "share of resamples on it",
            "budget spent by",
            "bands",
            "rise of retain NLL",
            "dominated by",
        ),
        rows=tuple(rows),
        remark="Means over seeds. Resamples draw forget rows and retain rows, the same ones for all arms; near 1/2 the rows do "
        "not decide.",
    )


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = len(names) - most
    return "; ".join(names[:most]) + (f"; and {rest} more" if rest > 0 else "")
