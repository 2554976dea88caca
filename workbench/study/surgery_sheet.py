"""The points of a surgery study as sentences, tables and pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.core.statistics import Estimate
from workbench.probe import ProbeSweep
from workbench.report.dots import Dot
from workbench.report.sheet import Cell, Section, Sheet
from workbench.report.words import listed
from workbench.study.surgery_grid import CASES, Bench, Point, advantage, mean_change

RECIPE = "probe, chosen rows"
CONTROLS = ("random, chosen rows", "probe, random rows", "random, random rows", "probe subtracted, aligned rows")
NONE = (math.nan, math.nan, math.nan)
Groups = Mapping[tuple[str, str], Sequence[Point]]


def sheet(title: str, points: Sequence[Point], sweep: ProbeSweep, on: Bench, settings: Mapping[str, Any]) -> Sheet:
    """Everything a reader wants of the study, with the settings that decided it."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.matrix, point.case), []).append(point)
    matrices = list(dict.fromkeys(point.matrix for point in points))
    sections = (
        _at_budget(groups, matrices, on),
        _differences(groups, matrices),
        _at_strength(groups, matrices, on),
        _probes(sweep),
    )
    return Sheet(title, _reading(groups, matrices, on), sections, _cautions(points, on), dict(settings))


def _reading(groups: Groups, matrices: Sequence[str], on: Bench) -> str:
    """What was done and what came out."""
    said = [
        f"Rows of {listed(matrices)} were moved along a direction that tells questions about the forget rows from others. At a "
        f"cost of {on.budget:g} nats per token on retain rows, the published recipe raised the forget answers' NLL by "
        f"{listed(_amount(matrix, mean_change(groups[matrix, RECIPE], 'forget_at_budget')) for matrix in matrices)}."
    ]
    for control in CONTROLS:
        better, worse = [], []
        for matrix in matrices:
            found = advantage(groups[matrix, RECIPE], groups[matrix, control], "forget_at_budget")
            if found is not None and found.low > 0:
                better.append(matrix)
            if found is not None and found.high < 0:
                worse.append(matrix)
        rest = len(matrices) - len(better) - len(worse)
        said.append(
            f"Against “{control}” it forgot more in {listed(better)}, less in {listed(worse)}, and {rest} could not be told apart."
        )
    return " ".join(said)


def _amount(matrix: str, found: Estimate | None) -> str:
    if found is None:
        return f"{matrix} (the budget was not spent)"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}] ({matrix})"


def _cell(found: Estimate | None) -> Cell:
    return NONE if found is None else (found.value, found.low, found.high)


def _at_budget(groups: Groups, matrices: Sequence[str], on: Bench) -> Section:
    """Forget change of every case at equal cost."""
    found = {key: mean_change(group, "forget_at_budget") for key, group in groups.items()}
    dots = [Dot(matrix, case, *(found[matrix, case] or NONE)[:3]) for matrix in matrices for case in CASES]
    rows = [(matrix, *(_cell(found[matrix, case]) for case in CASES)) for matrix in matrices]
    return Section(
        "What was forgotten at one cost",
        "Every edit was made stronger or weaker until it cost the budget on retain rows that are not reported. Each number is the "
        f"rise of the mean NLL of the answers to {len(on.forget)} forget questions that the probe was not fitted on.",
        tuple(dots),
        "rise of the forget answers' NLL, nats per token",
        ("matrix", *CASES),
        tuple(rows),
        "Means over rows with 95 % bootstrap intervals over rows; what is drawn is averaged over seeds first. –: the budget was "
        "not spent at 64 times the strength.",
    )


def _differences(groups: Groups, matrices: Sequence[str]) -> Section:
    """The recipe against every control, row by row."""
    rows = [
        (matrix, *(_cell(advantage(groups[matrix, RECIPE], groups[matrix, name], "forget_at_budget")) for name in CONTROLS))
        for matrix in matrices
    ]
    return Section(
        "The recipe against its controls",
        "How much more the published recipe raised the forget answers' NLL than each control at the same cost, in nats per token; "
        "paired by row.",
        columns=("matrix", *(f"over {name}" for name in CONTROLS)),
        rows=tuple(rows),
    )


def _at_strength(groups: Groups, matrices: Sequence[str], on: Bench) -> Section:
    """Every case as the published table has it: one strength, whatever it costs."""
    rows: list[tuple[Cell, ...]] = []
    for matrix in matrices:
        for case in CASES:
            group = groups[matrix, case]
            forget, retain = mean_change(group, "forget"), mean_change(group, "retain")
            worse = NONE if retain is None else (_exp(retain.value), _exp(retain.low), _exp(retain.high))
            factors = [point.factor for point in group if point.factor is not None]
            allowed = sum(factors) / len(factors) * on.strength if len(factors) == len(group) else math.nan
            size = f"{group[0].parameters:,}"
            rows.append((f"{matrix}: {case}", _cell(forget), _cell(retain), worse, size, group[0].ratio, allowed))
    return Section(
        "At one strength",
        f"The same edits at strength {on.strength:g}, whatever they cost: rows are moved by that many times their own norm.",
        columns=(
            "edit",
            "forget NLL, rise",
            "retain NLL, rise",
            "retain perplexity, times",
            "weights",
            "||Delta|| / ||W||",
            "strength at the budget",
        ),
        rows=tuple(rows),
        folded=True,
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _probes(sweep: ProbeSweep) -> Section:
    """The probes the directions are from, by their first metric."""
    name = sweep.metrics[0]
    rows = [
        (
            f"{place.site}, layer {place.layer}",
            (float(sweep.value[i, 0]), float(sweep.low[i, 0]), float(sweep.high[i, 0])),
            float(sweep.shuffled[i, 0].mean()),
            (float(sweep.words[0, 0]), float(sweep.words[0, 1]), float(sweep.words[0, 2])),
            (float(sweep.gain[i, 0, 0]), float(sweep.gain[i, 0, 1]), float(sweep.gain[i, 0, 2])),
        )
        for i, place in enumerate(sweep.places)
    ]
    return Section(
        "The probes",
        f"How well each direction tells the {sweep.n} questions apart that it was not fitted on.",
        columns=("place", name, "with shuffled labels", "bag of words", "probe minus bag of words"),
        rows=tuple(rows),
        folded=True,
    )


def _cautions(points: Sequence[Point], on: Bench) -> tuple[str, ...]:
    """What a reader must know before quoting a number."""
    seeds = sorted({point.seed for point in points if point.seed is not None})
    missed = sorted({f"{point.matrix}: {point.case}" for point in points if point.factor is None})
    said = [
        f"One model, {len(on.forget)} forget rows, one split into rows that fit the probe and rows that judge it. Intervals are "
        f"over rows, after averaging {len(seeds)} seeds; they say nothing about other models or behaviors.",
        "A rise of the answers' NLL is not a refusal or a better answer: the edit takes something away, and puts nothing there.",
        "No correction is made for the number of comparisons; with many at the 5 % level some come out by chance.",
    ]
    if missed:
        said.append(f"The budget was not spent at 64 times the strength by {listed(missed)}.")
    return tuple(said)
