"""The runs of a study of displacement as tables and pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.core.statistics import Estimate
from workbench.report.dots import Dot
from workbench.report.sheet import Cell, Section, Sheet
from workbench.report.words import listed
from workbench.study.displacement_grid import RANDOM, SCORES
from workbench.study.displacement_reading import CONTROLS, objective_name, reading
from workbench.study.displacement_result import FREE, Effect, Result

NONE: Cell = (math.nan, math.nan, math.nan)
MEANS = "Means over pairs and seeds with 95 % bootstrap intervals that draw prompts and seeds."


def sheet(title: str, results: Sequence[Result], objectives: Sequence[str], dropped: str, settings: Mapping[str, Any]) -> Sheet:
    """Everything a reader wants of the study.

    Args: objectives: those that were trained on all pairs.   dropped: the objective of the runs that left pairs out.
    """
    first = dropped if dropped in objectives else objectives[0]
    order = [first, *(name for name in objectives if name != first)]
    share = float(settings["drop"])
    sections = (
        _happened(results, order),
        *(_foretold(results, name, folded=name != first) for name in order),
        _against_controls(results, first),
        _per_token(results, first),
        *(_without(result, dropped, share) for result in results),
    )
    return Sheet(title, reading(results, first, dropped, share), sections, _cautions(results), dict(settings))


def _cell(found: Estimate) -> Cell:
    return found.value, found.low, found.high


def _happened(results: Sequence[Result], order: Sequence[str]) -> Section:
    """Whether there is anything to foretell."""
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        for name in order:
            rows.append((f"{result.on.about.name}: {objective_name(name)}", *(_cell(found) for found in result.moved(name))))
    return Section(
        "What tuning did",
        "Change of ln p of whole answers, in nats, and shares of the pairs. A margin is ln p(chosen) minus ln p(rejected).",
        columns=(
            "set and objective",
            "change of ln p(chosen)",
            "change of ln p(rejected)",
            "chosen displaced, share",
            "margin grew, share",
            "margin positive before, share",
            "margin positive after, share",
            "held out: change of ln p(chosen)",
            "held out: chosen displaced, share",
        ),
        rows=tuple(rows),
        remark=f"{MEANS} A share of 0 or 1 in all resamples has its Wilson interval (Wilson 1927), with one observation a prompt.",
    )


def _foretold(results: Sequence[Result], objective: str, *, folded: bool) -> Section:
    """Every score's rank correlation with displacement."""
    found = {result.on.about.name: result.correlations(objective) for result in results}
    estimates = {(name, score): found[name][score].estimate() for name in found for score in SCORES}
    dots = [Dot(score, name, *estimates[name, score][:3]) for score in SCORES for name in found]
    return Section(
        f"What foretold displacement by {objective_name(objective)}",
        "Spearman's rank correlation, over the pairs trained on, of a score taken before tuning with displacement in nats. "
        "Positive: a higher score went with a larger fall of ln p(chosen). ln p(chosen) before is the control for regression to "
        "the mean: what is likely has further to fall.",
        () if folded else tuple(dot for dot in dots if math.isfinite(dot.value)),
        "" if folded else "rank correlation with displacement",
        ("score", *found),
        tuple((score, *(_cell(estimates[name, score]) for name in found)) for score in SCORES),
        f"{MEANS} –: the score is the same for all pairs.",
        folded=folded,
    )


def _against_controls(results: Sequence[Result], objective: str) -> Section:
    """Length-normalized CHES minus each control, and with the control held constant."""
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        for control in CONTROLS:
            apart, partial = result.versus(objective, control).estimate(), result.given(objective, control).estimate()
            rows.append((f"{result.on.about.name}: {control}", _cell(apart), _cell(partial)))
    return Section(
        f"Length-normalized CHES against its controls, {objective_name(objective)}",
        f"Its rank correlation with displacement minus the control's, and its partial one with the control held constant. "
        f"{listed(FREE)} claim no direction, so they are taken in the one in which their correlation on the set is positive.",
        columns=("set and control", "difference of the correlations", "partial correlation"),
        rows=tuple(rows),
        remark=f"{MEANS} Differences are taken on the same resamples. –: the control is the same for all pairs.",
        folded=True,
    )


def _per_token(results: Sequence[Result], objective: str) -> Section:
    """The same correlations with displacement per token, which long answers do not lead."""
    found = {result.on.about.name: result.correlations(objective, per_token=True) for result in results}
    return Section(
        f"Displacement per token, {objective_name(objective)}",
        "The same rank correlations with displacement divided by the number of tokens of the chosen answer.",
        columns=("score", *found),
        rows=tuple((score, *(_cell(found[name][score].estimate()) for name in found)) for score in SCORES),
        remark=MEANS,
        folded=True,
    )


def _without(result: Result, objective: str, share: float) -> Section:
    """What leaving pairs out did to ln p of preferred answers, on one set."""
    effects: dict[str, Effect] = {arm: result.effect(objective, arm) for arm in result.arms}
    everything = result.moved(objective)
    n = len(result.on.train)
    dots = [
        Dot(result.arms[arm], group, *found[:3])
        for arm, effect in effects.items()
        if arm != RANDOM
        for group, found in (("held-out pairs", effect.held_out_more), ("pairs kept by both", effect.both_more))
        if math.isfinite(found.value)
    ]
    rows: list[tuple[Cell, ...]] = [("nothing", _cell(everything.held_chosen), NONE, _cell(everything.chosen), NONE)]
    for arm, effect in effects.items():
        more = (NONE, NONE) if arm == RANDOM else (_cell(effect.held_out_more), _cell(effect.both_more))
        rows.append((result.arms[arm], _cell(effect.held_out), more[0], _cell(effect.kept), more[1]))
    return Section(
        f"Leaving pairs out: {result.on.about.name}",
        f"Change of ln p(chosen), in nats, after {objective_name(objective)} on {n - round(share * n)} of {n} pairs, without those "
        f"with the highest score, and how much more it is than without as many by chance. The {len(result.on.held_out)} held-out "
        f"pairs, of other prompts{' and answers' if result.on.answers_apart else ''}, are in no arm. “Kept by both” are the "
        "pairs that the arm and, with the same seed, the random one were trained on.",
        tuple(dots),
        "change of ln p(chosen), more than without random pairs, nats",
        (
            "left out",
            "held out",
            "held out, more than random",
            "kept",
            "kept by both, more than random",
        ),
        tuple(rows),
        f"{MEANS} “=”: scores that leave out the same pairs, run once. Arms of a score that is the same for all pairs are not run.",
    )


def _cautions(results: Sequence[Result]) -> tuple[str, ...]:
    """What a reader must know before quoting a number."""
    seeds = len(results[0].seeds)
    shared = [
        f"{result.on.about.name} ({len(result.on.train)} pairs of {len({pair.prompt for pair in result.on.train})} prompts)"
        for result in results
        if len({pair.prompt for pair in result.on.train}) < len(result.on.train)
    ]
    sizes = listed(f"{len(r.on.train)} pairs and {r.on.model.hf.num_parameters():,} weights ({r.on.about.name})" for r in results)
    said = [
        f"Small models and few pairs: {sizes}. Nothing here says what happens in models of billions of weights, for which CHES was "
        "proposed.",
        f"Intervals draw prompts and the {seeds} seeds anew; a seed changes only the order of the pairs, and which are left out by "
        "chance. With so few seeds the intervals are too narrow.",
        "Displacement of a whole answer adds up over its tokens, so long answers can fall further; see displacement per token.",
        "A score that foretells displacement of the pairs trained on need not be a good filter, and a filter can help for other "
        "reasons. Arms are compared with as many pairs left out by chance, which take the same number of steps; “nothing” left out "
        "takes more steps, so it is not comparable with them.",
        "Leaving pairs out by a score can change what the pairs are about, such as how long answers are or which answer is "
        "preferred; a difference to chance can come from that.",
        "“Kept” means are over other pairs in every arm; only “held out” and “kept by both” compare the same pairs.",
        "No correction is made for the number of comparisons; with many at the 5 % level some come out by chance.",
    ]
    if shared:
        said.append(f"Pairs that share a prompt are drawn together: {listed(shared)}.")
    both = [
        result.on.about.name
        for result in results
        if {pair.chosen for pair in result.on.train} & {pair.rejected for pair in result.on.train}
    ]
    if both:
        said.append(
            f"On {listed(both)} some answers are chosen in one training pair and rejected in another; the intervals take "
            "such pairs of different prompts for independent."
        )
    mixed = [result.on.about.name for result in results if not result.on.answers_apart]
    if mixed:
        said.append(
            f"On {listed(mixed)} held-out pairs share no prompt with those trained on, but they share answers: all pairs are "
            "linked by their answers, so a held-out answer can be chosen or rejected in training."
        )
    constant = {
        result.on.about.name: [name for name, values in result.on.scores.items() if bool((values == values[0]).all())]
        for result in results
    }
    absent = [f"{listed(names)} on {where}" for where, names in constant.items() if names]
    if absent:
        said.append(f"The same for all pairs, so without a correlation or an arm: {'; '.join(absent)}.")
    return tuple(said)
