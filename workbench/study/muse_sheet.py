"""A study of MUSE as tables and pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.report.dots import Dot
from workbench.report.sheet import Cell, Section, Sheet
from workbench.report.words import listed
from workbench.study.methods import Training
from workbench.study.muse_grid import Arm

FOUR = {
    ("rouge_l_f", "forget_text"): "VerbMem, forget passages",
    ("rouge_l_f", "forget_qa"): "KnowMem, forget questions",
    ("privleak", "forget_whole"): "PrivLeak, %",
    ("rouge_l_f", "retain_qa"): "utility, retain questions",
    ("rouge_l_f", "retain_text"): "VerbMem, retain passages",
}
"""MUSE's first four criteria by the suite's numbers, and how much of the retain passages is still known."""
DRAWN = ("VerbMem, forget passages", "KnowMem, forget questions", "utility, retain questions", "VerbMem, retain passages")


def sheet(title: str, arms: Sequence[Arm], found: Sequence[pd.DataFrame], training: Training, settings: Mapping[str, Any]) -> Sheet:
    """Everything a reader wants of the study.

    Args: arms: the models as they are, then every method and seed.   found: a frame of `requests` for each method and kind.
    """
    sections = [_criteria(arms), _more(arms)]
    sections += [_requests(kind, [one for one in found if one["kind"].iloc[0] == kind]) for kind in ("growing", "in sequence")]
    return Sheet(title, _reading(arms, training), tuple(sections), _cautions(arms, settings), dict(settings))


def _title(arm: Arm) -> str:
    return arm.name if arm.seed is None else f"{arm.name}, seed {arm.seed}"


def _cell(arm: Arm, key: tuple[str, str]) -> Cell:
    if key not in arm.numbers:
        return "–"
    row = arm.numbers[key]
    return row.value, row.low, row.high


def _criteria(arms: Sequence[Arm]) -> Section:
    """The four numbers of every arm."""
    dots = [
        Dot(_title(arm), name, arm.numbers[key].value, arm.numbers[key].low, arm.numbers[key].high)
        for arm in arms
        for key, name in FOUR.items()
        if name in DRAWN and key in arm.numbers
    ]
    return Section(
        "Memorization, knowledge, privacy, utility",
        "ROUGE-L F from 0 to 1, of greedy continuations of passages and of answers. Forgotten well, a model is like the retrained "
        "ones, not at 0. PrivLeak is 0 for the first retrained model, about -100 where the passages are still known, above 0 where "
        "they are avoided.",
        tuple(dots),
        "ROUGE-L F",
        ("model", *FOUR.values(), "budget used, nats per token", "steps"),
        tuple((_title(arm), *(_cell(arm, key) for key in FOUR), arm.used, arm.steps) for arm in arms),
        "95 % bootstrap intervals over passages or questions; every seed stands for itself.",
    )


def _more(arms: Sequence[Arm]) -> Section:
    """What else the suite says."""
    rest = [key for key in ((row.metric, row.split) for row in arms[-1].numbers) if key not in FOUR]
    return Section(
        "Other numbers of the suite",
        columns=("model", *(f"{metric}, {split}" for metric, split in rest)),
        rows=tuple((_title(arm), *(_cell(arm, key) for key in rest)) for arm in arms),
        folded=True,
    )


def _requests(kind: str, frames: Sequence[pd.DataFrame]) -> Section:
    """Scalability or sustainability."""
    growing = kind == "growing"
    rows: list[tuple[Cell, ...]] = []
    dots: list[Dot] = []
    for line in (line for one in frames for line in one.to_dict("records")):
        name = f"{line['method']}: {line['set']}"
        measured = {what: (line[what], line[f"{what}_low"], line[f"{what}_high"]) for what in ("nll", "earlier_nll", "retain_nll")}
        dots += [
            Dot(name, group, *measured[what])
            for what, group in (("nll", "asked to forget"), ("earlier_nll", "asked before"), ("retain_nll", "retain documents"))
            if math.isfinite(measured[what][0])
        ]
        earlier = () if growing else (measured["earlier_nll"],)
        spent = () if growing else (line["spent"],)
        rows.append((name, line["rows"], line["before"], measured["nll"], *earlier, measured["retain_nll"], line["used"], *spent))
    more = () if growing else ("NLL of earlier requests",)
    return Section(
        "Scalability: larger and larger requests" if growing else "Sustainability: one request after another",
        (
            "Every size from the fine-tuned model, at one budget."
            if growing
            else "Every fold on top of those before it, each at one budget; `spent` is what all of them cost together."
        )
        + " Mean NLL in nats per token: of the documents to forget, where more is more forgotten, and of retain documents that "
        "were neither trained on nor looked at, where less is better.",
        tuple(dots),
        "mean NLL, nats per token",
        (
            "request",
            "documents",
            "NLL before",
            "NLL after",
            *more,
            "NLL of retain documents",
            "budget used",
            *(() if growing else ("spent",)),
        ),
        tuple(rows),
        "95 % bootstrap intervals over documents; one seed.",
    )


def _reading(arms: Sequence[Arm], training: Training) -> str:
    """What was done and what came out, in a few sentences."""
    by_name = {arm.name: arm for arm in arms if arm.seed is None}
    verb, know, utility = ("rouge_l_f", "forget_text"), ("rouge_l_f", "forget_qa"), ("rouge_l_f", "retain_qa")
    target = by_name["fine-tuned"].numbers
    gold = [arm.numbers for name, arm in by_name.items() if name != "fine-tuned"]
    said = [
        f"The fine-tuned model goes on with {target[verb].value:.2f} of the forget passages (ROUGE-L F) and answers "
        f"{target[know].value:.2f} of the forget questions; the retrained ones, which never saw them, "
        f"{listed(f'{one[verb].value:.2f} and {one[know].value:.2f}' for one in gold)}.",
        f"Every method stopped when the mean NLL of retain documents had risen by {training.budget:g} nats per token, or at its "
        "end.",
    ]
    for name in dict.fromkeys(arm.name for arm in arms if arm.seed is not None):
        runs = [arm.numbers for arm in arms if arm.name == name and arm.seed is not None]
        values = (listed(f"{one[key].value:.2f}" for one in runs) for key in (verb, know, utility))
        left, knows, kept = values
        said.append(f"After {name}: VerbMem {left}, KnowMem {knows}, utility {kept}.")
    return " ".join(said)


def _cautions(arms: Sequence[Arm], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader must know before quoting a number."""
    sizes = settings["sizes"]
    short = [_title(arm) for arm in arms if arm.seed is not None and not arm.reached]
    said = [
        f"One small model, {sizes['passages']} passages of at most {sizes['max_tokens']} tokens and {sizes['questions']} questions "
        "of each side; nothing here says what happens to models of billions of weights.",
        "Passages and questions are about different things (an encyclopedia, invented authors); in MUSE the questions are about "
        "the passages.",
        "Retain documents are trained on by methods with a retain term; utility is measured on questions among them, as in MUSE.",
        "Rates were given, not searched for: a method that does badly may do better at another.",
        "PrivLeak depends on the holdout passages: its interval draws them, but not other ones.",
    ]
    if short:
        said.append(f"Did not spend the budget before their last step, so what they forgot was cheaper: {listed(short)}.")
    return tuple(said)
