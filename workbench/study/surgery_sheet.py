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
        _cost(groups, matrices, on),
        _differences(groups, matrices),
        _at_strength(groups, matrices, on),
        _probes(sweep),
    )
    return Sheet(title, _reading(groups, matrices, on), sections, _cautions(points, on), dict(settings))


def _reading(groups: Groups, matrices: Sequence[str], on: Bench) -> str:
    """What was done and what came out."""
    said = [
        f"Rows of {listed(matrices)} (of down and o, columns) were moved along a direction that tells questions about the forget "
        f"rows from others. At a cost of {on.budget:g} nats per token on {len(on.budget_rows)} retain rows, moving the rows most "
        "opposed to the probe's direction along it raised the forget answers' NLL by "
        f"{listed(_amount(matrix, mean_change(groups[matrix, RECIPE], 'forget_at_budget')) for matrix in matrices)}."
    ]
    for control in CONTROLS:
        more, costlier, less, same, absent = [], [], [], [], []
        for matrix in matrices:
            pair = groups[matrix, RECIPE], groups[matrix, control]
            found, cost = (advantage(*pair, what) for what in ("forget_at_budget", "retain_at_budget"))
            if found is None or cost is None:
                absent.append(matrix)
            elif found.low > 0:
                (costlier if cost.low > 0 else more).append(matrix)
            else:
                (less if found.high < 0 else same).append(matrix)
        parts = [
            f"{word} in {listed(those)}"
            for word, those in (
                ("more", more),
                ("more, but also at a larger cost on the reported retain rows,", costlier),
                ("less", less),
                ("neither", same),
                ("not measured", absent),
            )
            if those
        ]
        said.append(f"Against “{control}” it forgot {'; '.join(parts)}.")
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
        f"Every edit was made stronger or weaker until it cost the budget on {len(on.budget_rows)} retain rows. Each number is the "
        f"rise of the mean NLL of the answers to {len(on.forget)} forget questions that the probe was not fitted on.",
        tuple(dots),
        "rise of the forget answers' NLL, nats per token",
        ("matrix", *CASES),
        tuple(rows),
        "Means over rows and seeds with 95 % bootstrap intervals that draw rows and seeds. –: not measured at the budget.",
    )


def _cost(groups: Groups, matrices: Sequence[str], on: Bench) -> Section:
    """What the same edits cost on rows that did not set their strength."""
    rows = [(matrix, *(_cell(mean_change(groups[matrix, case], "retain_at_budget")) for case in CASES)) for matrix in matrices]
    return Section(
        "What it cost elsewhere",
        f"Rise of the mean NLL of {len(on.retain)} other retain rows, which did not set the strength, in nats per token. The "
        f"budget is {on.budget:g}; where a case costs more here, it bought its forgetting with more.",
        columns=("matrix", *CASES),
        rows=tuple(rows),
    )


def _differences(groups: Groups, matrices: Sequence[str]) -> Section:
    """The recipe against every control, row by row."""
    rows = [
        (matrix, *(_cell(advantage(groups[matrix, RECIPE], groups[matrix, name], "forget_at_budget")) for name in CONTROLS))
        for matrix in matrices
    ]
    return Section(
        "The recipe against its controls",
        "How much more the recipe, the probe's direction added to the rows most opposed to it, raised the forget answers' NLL than "
        "each control at the same budget, in nats per token; paired by row.",
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
    notes: dict[str, list[str]] = {}
    for point in points:
        if point.note:
            notes.setdefault(f"{point.matrix}: {point.case}", []).append(point.note)
    said = [
        f"One model, {len(on.forget)} forget rows, one split into rows that fit the probe and rows that judge it. Intervals draw "
        f"rows and the {len(seeds)} seeds anew; rows about one author are not independent, so they are too narrow, and they say "
        "nothing about other models or behaviors.",
        "This is not the published setting: that adds one un-normalized probe row of the last layer to gate rows alone, in every "
        "layer. Here each layer has its own direction of norm 1, and every matrix is tried.",
        "The probe's AUC is measured on questions about authors it was fitted on.",
        "A rise of the answers' NLL is not a refusal or a better answer: the edit takes something away, and puts nothing there.",
        "No correction is made for the number of comparisons; with many at the 5 % level some come out by chance.",
    ]
    if notes:
        said.append(f"Not measured at the budget: {listed(f'{where} ({those[0]})' for where, those in notes.items())}.")
    return tuple(said)
