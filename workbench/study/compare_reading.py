"""A comparison in sentences, right whichever way it came out, and what to know before quoting a number of it."""

import math
from collections.abc import Mapping, Sequence

from workbench.report.words import listed
from workbench.study.compare_grid import Bench
from workbench.study.compare_plan import RETRAINED, RETRAINED_B, UNTOUCHED
from workbench.study.compare_result import Result, Told
from workbench.study.compare_tests import LEVEL, Compared, Versus, by_kind, untwinned


def reading(result: Result, compared: Compared, on: Bench) -> str:
    """What was done and what came out, in a few sentences; the rest is in the tables."""
    said = _done(result, on)
    if not result.told:
        return " ".join([*said, "No arm has been run yet."])
    nll = {one.name: one.forget_nll.value for one in result.told}
    far = _far(nll, result.baselines[RETRAINED].forget_nll.value)
    return " ".join([*said, *_near(result), far, *_front(result), *_masks(compared)])


def _done(result: Result, on: Bench) -> list[str]:
    """How much was compared, and where the models that all are held against stand."""
    methods = len({one.method for one in result.told})
    seeds = len(on.settings.seeds)
    said = [
        f"{methods} method{'s' if methods != 1 else ''} in {len(result.told)} combinations with masks "
        f"{'were' if len(result.told) != 1 else 'was'} carried on to one budget, {on.settings.budget:g} nats per token on retain "
        f"rows, with {seeds} seed{'s' if seeds != 1 else ''} each, and held against two models retrained without the forget rows.",
        f"The D between these is {_value(result.baselines[RETRAINED_B])} (one band); the untouched model lies at "
        f"{result.baselines[UNTOUCHED].bands.value:.1f} bands.",
    ]
    if result.missing:
        said.insert(0, f"Not finished: {len(result.missing)} combinations of methods and masks have not been run yet.")
    return said


def _value(one: Told) -> str:
    found = one.distance
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _near(result: Result) -> list[str]:
    """Which arms cannot be told from a retrained model, and which are nearer than the untouched one."""
    within = [one for one in result.told if one.bands.high <= 1]
    unclear = [one for one in result.told if one.bands.low <= 1 < one.bands.high]
    nowhere = [one.name for one in result.told if math.isnan(one.bands.low)]
    nearer, farther = ([one for one in result.told if (one.nearer.low > 0 if up else one.nearer.high < 0)] for up in (True, False))
    spent = [one for one in result.told if one.reached == len(one.arms)]
    said = [
        f"Within a band of the retrained model, with the whole interval, {_are(within, result.told)}; not to be told from lying "
        f"within it or beyond {_are(unclear, result.told)}.",
        f"Clearly nearer to it than the untouched model {_are(nearer, result.told)}, clearly farther {_are(farther, result.told)}.",
    ]
    if nowhere:
        said.append(f"No distance in bands, for it or its interval has no value: {listed(nowhere)}.")
    if len(spent) < len(result.told):
        said.append(
            f"Not all runs of {len(result.told) - len(spent)} combinations spent the budget; those stand at a smaller cost."
        )
    return said


def _far(nll: Mapping[str, float], gold: float) -> str:
    """Which arms drove the true answers farthest away, and where a model is that never saw them."""
    most = sorted(nll, key=lambda name: -nll[name])[:3]
    named = listed(f"{name} ({nll[name]:.2f})" for name in most)
    return f"The forget answers were driven farthest by {named}, in nats per token; in the retrained model they are at {gold:.2f}."


def _are(some: Sequence[Told], every: Sequence[Told]) -> str:
    if not some:
        return "is none"
    verb = "are" if len(some) > 1 else "is"
    if len(some) == len(every):
        return f"{verb} {'all ' if len(some) > 1 else ''}{len(some)}"
    return f"{verb} {len(some)} of {len(every)}" + (f": {listed(one.name for one in some)}" if len(some) <= 8 else "")


def _front(result: Result) -> list[str]:
    if result.front is None:
        return []
    names = [name for name, there in zip(result.front.names, result.front.on_front, strict=True) if there]
    sure = [name for name, share in zip(result.front.names, result.front.share, strict=True) if share >= 0.95]
    cheap = [one.name for one in result.told if one.name in names and one.reached < len(one.arms)]
    tail = f"; in at least 95 % of resamples {listed(sure)}" if sure else "; none of them in 95 % of resamples"
    if cheap:
        tail += f". At a smaller cost, for the budget was not spent by all runs: {listed(cheap)}"
    return [f"On the Pareto front of nearness and retain rows kept {'are' if len(names) > 1 else 'is'} {listed(names)}{tail}."]


def _masks(compared: Compared) -> list[str]:
    """In how many methods a mask beats none and its random twin, after the correction; masks that never do share a sentence."""
    said, quiet = [], []
    for (mask, random), tests in by_kind(compared.tests).items():
        more, less = (_clear(tests, sign) for sign in (1, -1))
        what = "a random one with as many weights in every tensor" if random else "no mask"
        if more or less:
            said.append(
                f"Inside the mask {mask!r} {len(more)} of {len(tests)} methods forgot clearly more than with {what}"
                f"{_who(more)}, {len(less)} clearly less{_who(less)}."
            )
        else:
            quiet.append(f"{mask!r} and {'a random one' if random else 'no mask'} ({len(tests)})")
    if quiet:
        said.append(f"No method forgot clearly more in one than in the other, of masks (and how many methods): {listed(quiet)}.")
    return said


def _clear(tests: Sequence[Versus], sign: int) -> list[str]:
    return [one.method for one in tests if one.adjusted_forget <= LEVEL and sign * one.forget.difference.value > 0]


def _who(names: Sequence[str]) -> str:
    return f" ({listed(names)})" if 0 < len(names) <= 6 else ""


def cautions(result: Result, compared: Compared, on: Bench) -> tuple[str, ...]:
    """What a reader must know before quoting a number."""
    chosen, training = on.settings, on.settings.training
    n, seeds = len(on.forget), len(chosen.seeds)
    weights = sum(p.numel() for p in on.model.hf.parameters())
    said = [
        f"One model of {weights:,} weights and one forget set of {n} rows: nothing here says what happens in larger models, or "
        "with other rows.",
        "One pair of retrained models gives one band, not a distribution of bands; its interval covers the choice of rows, not "
        "that of the models.",
        f"The budget is the NLL of {len(on.parts.budget)} retain rows. At another budget, or with another measure of what must be "
        "kept, the order may change.",
        f"Learning rates come from a grid of {len(chosen.rates)} values, tried once with one seed and chosen on "
        f"{len(on.validation)} validation rows by how much these are forgotten; a finer search, or another rule, may choose "
        "others. All other options are the study's, mostly each method's defaults, which were published for larger models.",
        "Validation rows are of the same authors, or other subjects, as the rows trained on in the trials, and are among the "
        "reported rows: the choice rewards what spills over between a subject's rows, and is made on part of what is reported.",
        f"Intervals draw rows and the {seeds} seeds anew; with so few seeds they are too narrow. Rows about one author are not "
        "independent.",
        f"D of {n} rows against {n} is a multiple of 1/{n}. Resampling ties values and widens a small D a little, so bands lean "
        "downward.",
        "Forgetting is read from answers; whether it can be undone by an attack is another question" + _kept(result, on),
    ]
    if compared.tests:
        said.append(
            f"Masks are compared over {seeds} seeds, the number of independent repeats: with so few only large and steady "
            "differences can be told from none."
        )
    alone = untwinned(result.lines)
    if alone:
        said.append(
            f"Without a matched random twin: {listed(alone)}. What these masks do beyond moving as few weights is not measured."
        )
    n_epoch = training.epoch(n)
    short = [one for one in result.told if min(one.spent("steps")) < n_epoch]
    if short:
        few = listed(f"{one.name} ({one.steps / n_epoch:.2g})" for one in short)
        said.append(
            f"Less than one epoch in some run, in mean epochs: {few}. Forget rows that were not met changed by spill-over alone."
        )
    late = [one for one in result.told if one.reached < len(one.arms)]
    if late:
        said.append(
            f"The budget was not spent by all runs of {listed(f'{one.name} ({one.reached} of {len(one.arms)})' for one in late)}: "
            f"after {training.epochs(n) * n_epoch} steps, or as a whole edit, they cost less. They are not at equal cost with the "
            "others."
        )
    if result.failed:
        said.append(f"Without a result: {listed(f'{name} ({why})' for name, why in result.failed)}.")
    if result.missing:
        said.append(f"Not run yet: {listed(result.missing)}.")
    return tuple(said)


def _kept(result: Result, on: Bench) -> str:
    """For how many runs the change of the weights is there to be attacked."""
    every = [arm for one in result.told for arm in one.arms]
    there = sum(arm.delta(on.folder) is not None for arm in every)
    return f", for which the Deltas of {there} of {len(every)} runs are kept." if there else "."
