"""A study of attacks as tables and pictures."""

import math
from collections.abc import Sequence

import numpy as np

from workbench.core.statistics import Estimate, mean_estimate
from workbench.evaluate.best_layer import best_layer
from workbench.report.dots import Dot
from workbench.report.sheet import Cell, Section, Sheet
from workbench.report.words import listed
from workbench.study.attacks_grid import OUTPUT
from workbench.study.attacks_plan import RETRAINED, RETRAINED_B, UNTOUCHED
from workbench.study.attacks_result import READ, Line, Result

NONE: Cell = (math.nan, math.nan, math.nan)
ROWS = "Means over rows with 95 % bootstrap intervals that draw rows."
TEXTS = {
    "head_projection": "The candidates are the tokens most likely at any layer, read by the logit lens at the position that "
    "predicts the token, after the true beginning of the answer. Before: as many candidates from the output alone. ",
    "probability_delta": "The candidates are the tokens whose probability rises or falls most from one layer to the next. Before: "
    "as many candidates from the output alone. ",
    "prompts": "Before: the question as it stands. After: the best of {n} ways of asking, for each row, which grows with n also "
    "where nothing is known; so the retrained models are asked in as many. ",
    "relearning_forget_subset": "Trained on one half of the forget rows, measured on the other. ",
    "relearning_retain_only": "Trained on retain rows, drawn anew with each seed, measured on the same held-out forget rows. ",
    "relearning_unrelated": "Trained on rows about something else, drawn likewise, measured on the same held-out forget rows. ",
    "quantization": "All linear weights but the output head are rounded to the nearest of 2^bits - 1 evenly spaced values of each "
    "output. ",
}


def sheet(title: str, result: Result) -> Sheet:
    """Everything a reader wants of the study."""
    sections = [_methods(result), *(_line(result, line) for line in result.lines)]
    if "probe" in result.found:
        sections.append(_probe(result))
    if "extraction" in result.found:
        sections.append(_budgets(result))
    if "prompts" in result.found:
        sections.append(_asked(result))
    if "relearning" in result.found:
        sections.append(_curves(result))
    return Sheet(title, reading(result), tuple(sections), _cautions(result), {})


def reading(result: Result) -> str:
    """What was done and came out, in sentences."""
    said = [
        f"{listed(result.methods)} were each given {result.settings.budget:g} nats per token of retain NLL to forget "
        f"{len(result.forget)} rows, and then attacked, beside two models that never saw these rows."
    ]
    for line in result.lines:
        found = {name: line.beyond(name).difference for name in result.methods}
        above = [name for name, one in found.items() if one.low > 0]
        if not above:
            said.append(f"{line.heading}: no method is left with more than the retrained model, with its interval above 0.")
        else:
            most = max(above, key=lambda name: found[name].value)
            said.append(
                f"{line.heading}: {len(above)} of {len(found)} methods are left with more than the retrained model with their "
                f"interval above 0, {most} with the most ({found[most].value:.3f} more)."
            )
    return " ".join(said)


def _cell(found: Estimate) -> Cell:
    return found.value, found.low, found.high


def _methods(result: Result) -> Section:
    """What each method came to before it was attacked."""
    rows: list[tuple[Cell, ...]] = []
    for arm in result.arms:
        if arm.delta is None:
            continue
        about = arm.about
        rate, steps, part = (about[key] if about[key] is not None else math.nan for key in ("rate", "steps", "part"))
        spent = "yes" if about["reached"] else "no"
        rows.append((arm.name, about["used"], spent, steps, part, rate, about["moved"]))
    return Section(
        "The methods",
        f"All stop where the mean NLL on {result.settings.budget_rows} retain rows, neither trained on nor reported, has risen by "
        f"{result.settings.budget:g} nats per token, or after {result.settings.most_steps(len(result.forget))} steps.",
        columns=("method", "budget used, nats", "spent", "steps", "part of the edit", "learning rate", "share of weights moved"),
        rows=tuple(rows),
    )


def _line(result: Result, line: Line) -> Section:
    """One attack: before and after, what came back, and how much more than in the retrained model."""
    seeds = result.settings.relearn_seeds
    dots: list[Dot] = []
    rows: list[tuple[Cell, ...]] = []
    for name in result.names:
        before, after = mean_estimate(line.before[name]), mean_estimate(line.after[name])
        dots.append(Dot(name, "before", *before[:3]))
        by_seed = line.by_seed.get(name)
        if by_seed is None:
            dots.append(Dot(name, "after", *after[:3]))
        else:
            each = zip(seeds, by_seed, strict=True)
            dots += [Dot(name, f"after, seed {seed}", *mean_estimate(values)[:3]) for seed, values in each]
        beyond = line.beyond(name)
        control = name == RETRAINED
        rows.append(
            (
                name,
                _cell(before),
                _cell(after),
                *(_cell(mean_estimate(values[name])) for values in line.also.values()),
                NONE if name == UNTOUCHED else _cell(line.recovered(name)),
                NONE if control else _cell(beyond.difference),
                math.nan if control else beyond.p,
            )
        )
    text = next(text for key, text in TEXTS.items() if line.key.startswith(key))
    if line.key.startswith("prompts"):
        text = text.format(n=len(result.found["prompts"][UNTOUCHED]["prompts"]))
    if line.by_seed:
        text += f"{result.settings.relearn_steps} steps at {result.settings.relearn_lr:g}; after: means over {len(seeds)} seeds. "
    if line.key in READ:
        chance = max(result.settings.budgets) / result.d_vocab
        text += f"Chance: {chance:.3f}. "
    return Section(
        line.heading,
        text + "Recovered: (after - before) / (untouched before - before).",
        tuple(dots),
        line.measure,
        ("model", "before", "after", *line.also, "recovered", "after, less retrained", "p"),
        tuple(rows),
        f"{ROWS} Differences are paired by rows; p is two-sided, of sign flips. –: nothing was forgotten that could come back, or "
        "the model itself.",
    )


def _probe(result: Result) -> Section:
    """AUC of held-out questions at the best layer."""
    dots: list[Dot] = []
    rows: list[tuple[Cell, ...]] = []
    for name in result.names:
        point = result.found["probe"][name]
        auc, shuffled = np.array(point["auc"]), np.array(point["shuffled"])
        best, chance = best_layer(auc), best_layer(shuffled.mean(0))
        dots += [Dot(name, "right labels", *best[:3]), Dot(name, "shuffled labels", *chance[:3])]
        rows.append((name, _cell(best), _cell(chance)))
    return Section(
        "A linear probe of the hidden states",
        "Logistic regression on the states of right (paraphrased) and false answers, judged on questions it was not fitted on: "
        "AUC at the layer where it is highest. A probe is fitted on forget rows, so it can also find what tells right from false "
        "answers without knowing them: the retrained models' values are the floor.",
        tuple(dots),
        "AUC of right against false answers, best layer",
        ("model", "AUC", "AUC with shuffled labels"),
        tuple(rows),
        f"{ROWS} The layer is chosen anew in every resample; probes are not refitted.",
    )


def _budgets(result: Result) -> Section:
    """Every size of the candidate set."""
    budgets, labels = (
        result.settings.budgets,
        {OUTPUT: "output", **{name: name.replace("_", " ") for name in READ}, "random": "random"},
    )
    ordered = sorted(set(budgets))
    rows: list[tuple[Cell, ...]] = []
    for name in result.names:
        shares = result.found["extraction"][name]["shares"]
        rows += [
            (f"{name}: {said}", *(_cell(mean_estimate(np.array(shares[way][i], dtype=np.float64))) for i in range(len(ordered))))
            for way, said in labels.items()
        ]
    return Section(
        "Extraction by size of the candidate set",
        f"Share of the secret tokens among B candidates; by chance B / {result.d_vocab:,}.",
        columns=("model and candidates", *(f"B = {b}" for b in ordered)),
        rows=tuple(rows),
        remark=ROWS,
        folded=True,
    )


def _asked(result: Result) -> Section:
    """Every way of asking by itself."""
    points = result.found["prompts"]
    rows: list[tuple[Cell, ...]] = []
    for i, prompt in enumerate(points[UNTOUCHED]["prompts"]):
        rows.append(
            (prompt, *(_cell(mean_estimate(np.array(points[name]["recall"][i], dtype=np.float64))) for name in result.names))
        )
    return Section(
        "Every way of asking",
        f"ROUGE-L recall of greedy answers of at most {result.settings.generate} tokens.",
        columns=("prompt", *result.names),
        rows=tuple(rows),
        remark=ROWS,
        folded=True,
    )


def _curves(result: Result) -> Section:
    """The held-out probability at every measured step."""
    points = result.found["relearning"]
    steps: Sequence[int] = points[UNTOUCHED]["steps"]
    rows: list[tuple[Cell, ...]] = []
    for kind in points[UNTOUCHED]["nll"]:
        for name in result.names:
            likely = np.exp(-np.array(points[name]["nll"][kind])).mean(0)
            rows.append((f"{name}: {kind.replace('_', ' ')}", *(_cell(mean_estimate(row)) for row in likely)))
    return Section(
        "Relearning step by step",
        "Probability of the held-out true answers, mean over seeds.",
        columns=("model and rows trained on", *(f"step {step}" for step in steps)),
        rows=tuple(rows),
        remark=ROWS,
        folded=True,
    )


def _cautions(result: Result) -> tuple[str, ...]:
    """What a reader must know before quoting a number."""
    said = [
        f"One model of {result.arms[0].model.hf.num_parameters():,} weights, {len(result.forget)} forget rows, and one run of "
        "each method: intervals draw rows, not runs of unlearning, and say nothing of other models.",
        "Learning rates were set by hand and not searched; a method that looks weak here may have needed another. See the "
        "comparison at equal budget for a search.",
        "An attack that finds more in a method than in the retrained model shows that something is left. One that does not shows "
        "only that this attack, with these settings, did not find it.",
        f"{RETRAINED} and {RETRAINED_B} differ in nothing but the seed of their training: a difference as large as theirs is none.",
        "p-values are of single comparisons; with many at the 5 % level some come out by chance.",
    ]
    if "extraction" in result.found:
        said.append(
            "Extraction is given the true beginning of each answer, which an attacker does not have, and from which models that "
            "never saw the answer guess well too."
        )
    if "relearning" in result.found:
        said.append(
            "Held-out forget rows may share subjects with those trained on, so part of what comes back can be inferred from "
            "these; the retrained model under the same attack says how much."
        )
    unspent = [arm.name for arm in result.arms if arm.delta is not None and not arm.about["reached"]]
    if unspent:
        said.append(
            f"{listed(unspent)} did not spend the budget, so {'they are' if len(unspent) > 1 else 'it is'} attacked at less than "
            "it."
        )
    return tuple(said)
