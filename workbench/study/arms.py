"""Carry out one arm of a study: find the mask, unlearn or edit, and hand back the model that results."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workbench import __version__
from workbench.attribute import LocatedUnits, structured, unit_scores
from workbench.core.delta import Delta, applied
from workbench.core.mask import Mask
from workbench.core.records import Examples
from workbench.core.registry import attribution
from workbench.core.scores import Scores
from workbench.core.store import text_sha256
from workbench.load.models import Model, load
from workbench.study.config import Arm, MaskPlan
from workbench.study.locate import make_edit, read_edit
from workbench.unlearn.run import run as unlearn


@dataclass(frozen=True, eq=False)
class Outcome:
    """model with `delta` applied is what the arm is about. audit and layers say what was changed; notes what was found."""

    model: Model
    delta: Delta | None = None
    mask: Mask | None = None
    audit: dict[str, Any] | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def shown(self) -> Iterator[Model]:
        """The model as the arm leaves it; as before on exit."""
        if self.delta is None:
            yield self.model
        else:
            with applied(self.model, self.delta):
                yield self.model


def carry_out(arm: Arm, model: Model, data: dict[str, Examples], *, scores_folder: Path) -> Outcome:
    """What an arm does to `model`, which is left as it was.

    Args: scores_folder: where weight scores are kept between arms and runs.
    """
    if arm.kind == "model":
        return Outcome(load(arm.model, device=str(model.device), dtype=model.dtype))
    if arm.kind == "unlearn":
        return _unlearn(arm, model, data, scores_folder)
    if arm.kind == "edit":
        delta = make_edit(model, *read_edit(f"arm {arm.name}", arm.name, arm.edit), data["forget"], data["retain"])
        audit = {"moved": delta.moved(model), "stopped": ""}
        return Outcome(model, delta, audit=audit, layers=delta.by_layer(model), notes=dict(delta.provenance.notes))
    return Outcome(model)


def _unlearn(arm: Arm, model: Model, data: dict[str, Examples], scores_folder: Path) -> Outcome:
    mask, notes = None, {}
    if arm.mask is not None:
        scores = find_scores(arm.mask, model, data, scores_folder)
        mask, notes = find_mask(arm.mask, model, scores, seed=arm.seed), dict(scores.provenance.notes)
    found = unlearn(model, data["forget"], data["retain"], mask=mask, seed=arm.seed, **arm.unlearn)
    return Outcome(model, found.delta, mask, asdict(found.audit), found.layers, notes)


def find_scores(plan: MaskPlan, model: Model, data: dict[str, Examples], folder: Path) -> Scores:
    """The scores a mask is cut from: read if they were computed for this model and these rows, else computed and kept."""
    rows = [data["forget"].fingerprint(), data["retain"].fingerprint()]
    options = {**attribution[plan.attribute].options, **plan.options}
    about = [__version__, plan.attribute, {k: str(v) for k, v in options.items() if not callable(v)}]
    key = text_sha256([*about, model.fingerprint(), str(model.dtype), model.text_key(), rows])
    path = folder / f"{plan.attribute}-{key[:12]}.safetensors"
    if not path.exists():
        attribution[plan.attribute].function(model, data["forget"], data["retain"], **plan.options).save(path)
    return Scores.load(path)


def find_mask(plan: MaskPlan, model: Model, scores: Scores, *, seed: int) -> Mask:
    """The planned share of the highest scores, single weights or whole units, or its control."""
    if plan.unit and plan.control == "matched_random":
        ranking = unit_scores(model, scores, unit=plan.unit)
        return LocatedUnits(plan.attribute, model, ranking, plan.unit).random(plan.fraction or 1.0, seed=seed)
    if plan.unit:
        mask = structured(model, scores, unit=plan.unit, fraction=plan.fraction)
    else:
        mask = scores.mask(plan.fraction, scope=plan.scope)
    if plan.control == "matched_random":
        return mask.matched_random(seed=seed)
    return ~mask if plan.control == "inverted" else mask
