"""The arms of a study of concepts as sentences, tables and pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.core.statistics import mean_estimate
from workbench.report.dots import Dot
from workbench.report.sheet import Cell, Section, Sheet
from workbench.report.words import listed
from workbench.study.concept_arms import Arm, Bench, Point

NEAR = 0.95
"""Mean cosine from which vectors are called nearly untouched."""


def sheet(title: str, arms: Sequence[Arm], points: Sequence[Point], on: Bench, settings: Mapping[str, Any]) -> Sheet:
    """Everything a reader wants of the study, with the settings that decided it."""
    sections = (_vectors(points, on), _behavior(points), _found(on), _samples(points))
    return Sheet(title, _reading(arms, points, on), sections, _cautions(arms, on), dict(settings))


def _cell(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its interval; no interval of a single value."""
    if len(values) < 2:
        return float(values[0]), math.nan, math.nan
    return mean_estimate(np.array(values))[:3]


def _reading(arms: Sequence[Arm], points: Sequence[Point], on: Bench) -> str:
    """What was done and what came out."""
    kinds = {arm.name: "unlearn" if arm.unlearn else "ablate" if arm.ablate else "model" if arm.model else "" for arm in arms}
    above = sum(int(one.beats_control[0]) for one in on.found)
    said = [
        f"{len(on.places)} value vectors were found for {len(on.concepts)} concepts. For {above} of them, when the best vector is "
        "taken out, the concept's answers lose more than unrelated ones do, and more so than for a random vector of its norm."
    ]
    for kind, what in (("unlearn", "Unlearning"), ("ablate", "Ablation"), ("model", "Another model")):
        mine = [point for point in points if kinds[point.arm] == kind]
        if mine:
            said.append(f"{what}: {listed(_line(point) for point in mine)}.")
    return " ".join(said)


def _line(point: Point) -> str:
    cosine, other = (np.mean(each["cosine"]) for each in (point.vectors, point.others))
    about, rest = (np.mean(point.rouge_l_f[split]) for split in ("qa", "unrelated_qa"))
    near = "nearly untouched, " if cosine >= NEAR else ""
    return (
        f"{point.arm} ({near}cosine {cosine:.3f}, other vectors {other:.3f}; answers agree with the untouched model's by "
        f"{about:.2f} on the concepts and {rest:.2f} elsewhere)"
    )


def _vectors(points: Sequence[Point], on: Bench) -> Section:
    """How far the vectors have moved."""
    dots = [
        Dot(point.arm, name, *_cell(each["relative_l2"]))
        for point in points
        for name, each in (("concept vectors", point.vectors), ("other vectors", point.others))
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            point.arm,
            _cell(point.vectors["cosine"]),
            _cell(point.others["cosine"]),
            _cell(point.vectors["relative_l2"]),
            _cell(point.others["relative_l2"]),
            _cell(point.vectors["jaccard"]),
            _cell(point.others["jaccard"]),
        )
        for point in points
    ]
    return Section(
        "Are the vectors touched?",
        f"{len(on.places)} value vectors of the concepts, and as many others of the same layers, before and after: cosine, "
        "distance relative to the vector's norm, and the share of the 200 tokens they write most that stays the same.",
        tuple(dots),
        "distance moved, relative to the vector's norm",
        ("arm", "cosine", "others", "relative L2", "others", "Jaccard of top tokens", "others"),
        tuple(rows),
        "Means over vectors with 95 % bootstrap intervals over vectors. A vector set to zero has cosine and Jaccard 0 "
        "by definition.",
    )


def _behavior(points: Sequence[Point]) -> Section:
    """What became of the answers."""
    dots = [
        Dot(point.arm, name, *_cell(point.rouge_l_f[split]))
        for point in points
        for name, split in (("questions about the concepts", "qa"), ("unrelated questions", "unrelated_qa"))
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            point.arm,
            *(_cell(each[split]) for split in ("qa", "unrelated_qa") for each in (point.rouge_l_f, point.bleu)),
            *(_cell(point.nll[name]) for name in ("concept", "unrelated")),
        )
        for point in points
    ]
    columns = ("ROUGE-L, concepts", "BLEU, concepts", "ROUGE-L, unrelated", "BLEU, unrelated")
    return Section(
        "Has behavior changed?",
        "Greedy answers against the untouched model's own: ROUGE-L F and BLEU. And the rise of the mean NLL of the true answers, "
        "in nats per token. Unlearned well: low on the concepts, high on unrelated questions.",
        tuple(dots),
        "agreement with the untouched model's answers, ROUGE-L F",
        ("arm", *columns, "NLL rise, concepts", "NLL rise, unrelated"),
        tuple(rows),
        "Means over questions with 95 % bootstrap intervals; concept questions are those that did not choose the vectors, though "
        "unlearning has trained on them.",
    )


def _found(on: Bench) -> Section:
    """The vectors, and how much the answers miss each."""
    rows: list[tuple[Cell, ...]] = []
    for concept, found in zip(on.concepts, on.found, strict=True):
        for i, (layer, neuron) in enumerate(found.places[:5]):
            v = {name: float(found[name][i]) for name in ("gap", "gap_low", "gap_high", "control", "control_low", "control_high")}
            gap, control = ((v[name], v[f"{name}_low"], v[f"{name}_high"]) for name in ("gap", "control"))
            tokens = " ".join(repr(token)[1:-1] for token in found.tokens[i][:6])
            rows.append((f"{concept.name}: {layer}/{neuron}", gap, control, "yes" if found.beats_control[i] else "no", tokens))
    return Section(
        "The vectors that were found",
        "The five best of each concept. Gap: how much more log-probability per token the concept's answers lose than unrelated "
        "ones when the vector is taken out, on rows that did not choose it.",
        columns=("concept: layer/neuron", "gap, nats per token", "random vector of its norm", "above it", "writes"),
        rows=tuple(rows),
        folded=True,
    )


def _samples(points: Sequence[Point]) -> Section:
    """What the models say."""
    rows = [(point.arm, one["question"], one["before"], one["after"]) for point in points for one in point.samples]
    return Section("Answers", columns=("arm", "question", "before", "after"), rows=tuple(rows), folded=True)


def _cautions(arms: Sequence[Arm], on: Bench) -> tuple[str, ...]:
    """What a reader must know before quoting a number."""
    said = [
        f"One model with {len(on.held_out)} concept and {len(on.unrelated)} unrelated questions, one seed, one setting of each "
        "unlearning method: a worked example, not a ranking of methods.",
        "A vector far from where it was is not proof of erasure, and one that stayed is not proof of memory: a later layer may "
        "have learned not to use it. The ablations ask the causal question.",
    ]
    if any(arm.model for arm in arms):
        said.append(
            "Retrained models start from the same or another random state and see other batches; how far their vectors are apart "
            "says what distance means between two models that are both innocent of an edit."
        )
    elsewhere = [arm.name for arm in arms if arm.ablate.get("control") == "place"]
    if elsewhere:
        said.append(
            f"{listed(elsewhere)}: one random draw of other vectors each; the intervals are over questions or vectors only, not "
            "over draws."
        )
    return tuple(said)
