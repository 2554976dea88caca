"""Judge located weights by intervention: inside the set, in a matched random set, and outside it, all at one budget.

A set of weights matters for a behavior if changing it takes more of the behavior away than changing as many weights chosen by
chance does, at the same cost elsewhere. The cost is fixed: every intervention goes on until the mean NLL on retain rows, which
are neither trained on nor reported, has risen by `budget`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd
import torch

from workbench.attribute.units import LocatedUnits
from workbench.core.components import Components
from workbench.core.errors import DataError, InputError, MismatchError
from workbench.core.mask import Mask
from workbench.core.numerics import permutation
from workbench.core.records import Examples, Provenance, check_disjoint
from workbench.core.registry import Member
from workbench.core.runtime import progress
from workbench.core.scores import Scores
from workbench.load.models import Model
from workbench.study.intervene import SIDES, Bench, Located, Parts, Point, Question, Settings, bench, check, measure
from workbench.study.verdict import Verdict


@dataclass(frozen=True, eq=False)
class Ranked:
    """The highest-scored weights, against as many in every tensor chosen uniformly.

    scope: what competes with what; see `Scores.mask`.
    """

    name: str
    scores: Scores
    scope: str = "global"

    def inside(self, size: float) -> Mask:
        """The share `size` of the weights with the highest scores."""
        return self.scores.mask(size, scope=self.scope)

    def random(self, size: float, *, seed: int) -> Mask:
        """As many weights in every tensor as `inside` has."""
        return self.inside(size).matched_random(seed=seed)


@dataclass(frozen=True, eq=False)
class Fixed:
    """One mask, such as a ticket or a published list of weights: it has one size, its own, and is judged at that alone."""

    name: str
    mask: Mask

    @property
    def size(self) -> float:
        """Share of the weights the mask speaks of that it chooses."""
        return self.mask.count / self.mask.n_weights

    def inside(self, size: float) -> Mask:
        """The mask.

        Raises: InputError for another size than its own.
        """
        if size != self.size:
            raise InputError(f"judge: {self.name} is one mask with a share of {self.size:g}, so there is none of size {size:g}.")
        return self.mask

    def random(self, size: float, *, seed: int) -> Mask:
        """As many weights in every tensor as the mask has."""
        return self.inside(size).matched_random(seed=seed)


def from_components(name: str, model: Model, components: Components) -> LocatedUnits:
    """Heads or neurons as a located set, those with the largest absolute value first, against as many of every layer.

    Args: components: a value for every head, or every neuron, of the model, such as `attribution_patching` finds.
    Raises: InputError for another kind, or if components are missing; MismatchError for another model.
    """
    if components.kind not in ("head", "neuron"):
        raise InputError(
            f"from_components: {name} is of kind {components.kind!r}, which has no weights of its own; take heads or neurons."
        )
    if components.provenance.model != model.fingerprint():
        raise MismatchError(
            f"from_components: {name} is of model {components.provenance.model[:12]}, this one is {model.fingerprint()[:12]}. "
            "Find the components on this model, or undo the edits applied since."
        )
    count = model.sites.n_heads if components.kind == "head" else model.d_mlp
    expected = {(layer, index) for layer in range(model.n_layers) for index in range(count)}
    if len(components) != len(expected) or set(components.places) != expected:
        raise InputError(
            f"from_components: {name} has {len(components)} {components.kind}s, but the model has {len(expected)}; every one needs "
            "a value to be ranked. Give what attribution_patching found, not its top."
        )
    return LocatedUnits(name, model, torch.from_numpy(components.values).abs(), components.kind)


def judge(
    model: Model,
    located: Sequence[Located],
    forget: Examples,
    retain: Examples,
    *,
    sizes: Sequence[float] = (0.01, 0.05, 0.2),
    seeds: Sequence[int] = (0, 1, 2),
    intervention: Literal["unlearn", "ablate"] = "unlearn",
    objective: str = "npo",
    options: Mapping[str, Any] | None = None,
    budget: float = 0.05,
    lr: float = 5e-4,
    max_steps: int = 40,
    batch_size: int = 8,
    budget_rows: int = 48,
    report_rows: int = 100,
    show: bool = False,
) -> Verdict:
    """Whether changing each located set forgets more, at one budget, than changing a matched random set does.

    Args:
        located: the sets: `Ranked(name, scores)` of weight scores, `LocatedUnits` of whole units, `from_components` of heads or
            neurons found by patching, `Fixed(name, mask)` of one mask. They must have been found without the budget and the
            report rows of `retain`, so with `split_retain(forget, retain).train`.
        sizes: shares of what a set ranks, above 0 and at most 1: of the weights with a score, or of the units. Outside are all
            other weights of the parameters its mask lists, which for units are all parameters of the model. A `Fixed` set has
            its own size instead.
        seeds: each draws a random set and an order of training; inside and random are compared seed by seed.
        intervention: "unlearn" trains with `objective` at a constant rate; "ablate" is w -> (1 - a) w.
        objective, options: see `unlearn.run`.
        budget: rise of the mean NLL on the budget rows at which every intervention stops, in nats per token.
        lr: rate for all weights; a set with a share s of them gets lr / sqrt(s), so that steps have about one norm.
        max_steps: of unlearning, rounded up to whole epochs; a set that has not spent the budget by then is left out.
        budget_rows, report_rows: retain rows set aside; see `split_retain`.
    Returns: the points, and from them one number a set; see `Verdict.areas`. The model is left as it was.
    Raises: InputError for an option that cannot be, for what is no located set, and for scores found on all of `retain`;
        DataError for rows that stand in two sets, or too few.
    """
    numbers = {"budget": budget, "lr": lr, "max_steps": max_steps, "batch_size": batch_size}
    asked_for = {"sizes": sizes, "seeds": seeds, "objective": objective, "options": options, **numbers}
    Member("judge", judge).check_options({**asked_for, "budget_rows": budget_rows, "report_rows": report_rows})
    settings = Settings(tuple(sizes), tuple(seeds), intervention, objective, dict(options or {}), **numbers)
    by_name = named(located)
    for one in by_name.values():
        _check_unseen(one, retain)
    parts = split_retain(forget, retain, budget_rows=budget_rows, report_rows=report_rows)
    on = bench(model, forget, parts, settings)
    check(on, by_name, sizes_of(by_name, settings))
    asked = questions(sizes_of(by_name, settings), settings)
    points = [measure(on, by_name[one.set], one) for one in progress(asked, label="judge", show=show)]
    return verdict(points, on)


def named(located: Sequence[Located]) -> dict[str, Located]:
    """The sets by name.

    Raises: InputError if there is none, one is no located set, or two have one name.
    """
    for one in located:
        if not isinstance(one, Located):
            raise InputError(
                f"judge: located has a {type(one).__name__}, expected located sets: write Ranked(name, scores) for scores, "
                "Fixed(name, mask) for a mask, from_components(name, model, components) for heads or neurons."
            )
    found = {one.name: one for one in located}
    if not found or len(found) < len(located):
        names = [one.name for one in located]
        raise InputError(f"judge: located is {names}, expected at least one set, each with a name of its own.")
    return found


def split_retain(forget: Examples, retain: Examples, *, budget_rows: int = 48, report_rows: int = 100) -> Parts:
    """Cut the retain rows into those trained on, those the budget is measured on, and those that are reported.

    The cut follows a permutation that depends on the number of rows alone, so that neighbors (one author's rows, in TOFU) fall
    into all parts. The budget part has `budget_rows`; the report part at most `report_rows` and at most half of the others.

    Raises: DataError if a row stands in both sets, or twice in `retain`, or if there are fewer than budget_rows + 2.
    """
    for name, value in (("budget_rows", budget_rows), ("report_rows", report_rows)):
        if value < 1:
            raise InputError(f"judge: {name} is {value}, expected at least 1.")
    check_disjoint(forget, retain)
    seen: dict[tuple[str, str], str] = {}
    for row in retain:
        if (row.prompt, row.response) in seen:
            raise DataError(
                f"judge: retain ({retain.name}) has one row twice, as {seen[row.prompt, row.response]!r} and {row.id!r}; its "
                "copies could be trained on and reported. Take one of them out."
            )
        seen[row.prompt, row.response] = row.id
    others = len(retain) - budget_rows
    if others < 2:
        raise DataError(
            f"judge: retain ({retain.name}) has {len(retain)} rows, but {budget_rows} are set aside to measure the budget and at "
            "least two more are needed, to train on and to report. Give more rows, or lower budget_rows."
        )
    order = permutation(len(retain), 0)
    reported = budget_rows + min(report_rows, others // 2)
    cuts = (order[reported:], order[:budget_rows], order[budget_rows:reported])
    return Parts(*(retain.take(sorted(cut)) for cut in cuts))


def sizes_of(sets: Mapping[str, Located], settings: Settings) -> dict[str, list[float]]:
    """The sizes every set is judged at, ascending: those asked for, or its own if it has one only."""
    asked = sorted(float(size) for size in settings.sizes)
    return {name: [one.size] if isinstance(one, Fixed) else asked for name, one in sets.items()}


def questions(sizes: Mapping[str, Sequence[float]], settings: Settings) -> list[Question]:
    """Every point of a verdict, set by set and size by size. An ablation draws nothing but its random set.

    Args: sizes: of every set by its name; see `sizes_of`.
    """
    drawn = {side: settings.intervention == "unlearn" or side == "random" for side in SIDES}
    return [
        Question(name, size, side, seed)
        for name, each in sizes.items()
        for size in each
        for side in SIDES
        for seed in (settings.seeds if drawn[side] else (None,))
    ]


def verdict(points: Sequence[Point], on: Bench) -> Verdict:
    """The points as a frame, with nullable whole numbers for the seeds, and what they were measured on."""
    frame = pd.DataFrame([point.as_dict() for point in points])
    absent = {name: "float64" for name in frame if frame[name].dtype == object and name not in ("set", "side", "note")}
    rows = {"forget": on.forget, "train": on.parts.train, "budget": on.parts.budget, "report": on.parts.report}
    about = Provenance(
        "judge",
        on.model.fingerprint(),
        {role: one.fingerprint() for role, one in rows.items()},
        asdict(on.settings),
        dtype=str(on.model.dtype),
        reduction="mean over rows, then over the logarithm of the size",
    )
    return Verdict(frame.astype(absent | {"seed": "Int64"}), on.settings, about)


def _check_unseen(one: Located, retain: Examples) -> None:
    """InputError if weights are judged on rows that they were chosen with, as far as the records of a set say so."""
    data: Mapping[str, Any] = {}
    if isinstance(one, Ranked):
        data = one.scores.provenance.data
    elif isinstance(one, Fixed):  # a mask of scores carries their provenance
        data = one.mask.provenance.options.get("scores", {}).get("data", {})
    if data.get("retain") == retain.fingerprint():
        raise InputError(
            f"judge: the scores of {one.name} were found on all {len(retain)} rows of retain ({retain.name}), also on those that "
            "the budget is measured on and that are reported. Find them on split_retain(forget, retain).train."
        )
