"""The models a study of attacks compares: untouched, unlearned by each method at one budget, and retrained without the rows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.delta import Delta, applied
from workbench.core.records import Examples
from workbench.core.store import text_sha256
from workbench.edit.finish import noted
from workbench.evaluate.entity_spans import Entities
from workbench.load.models import Model
from workbench.study.attacks_plan import Settings
from workbench.study.folder import state
from workbench.study.intervene import Parts
from workbench.study.methods import Method, at_budget


@dataclass(frozen=True, eq=False)
class Bench:
    """What all arms share. parts: retain rows trained on, those the budget is measured on, and those reported.

    retrained: models that never saw the forget rows, by name.   marked: secret part of the answers, None for all of them.
    questions: another question for every forget row by id, or None.
    """

    folder: Path
    settings: Settings
    model: Model
    retrained: Mapping[str, Model]
    forget: Examples
    parts: Parts
    unrelated: Examples
    marked: Entities | None = None
    questions: Mapping[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Arm:
    """One model that is attacked: a model as it is, or with a change applied.

    about: of a method, what it came to: used, reached, moved, steps, part, rate; see `methods.Spent`.
    """

    name: str
    model: Model
    delta: Delta | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def shown(self) -> Iterator[Model]:
        """The model with its change applied."""
        if self.delta is None:
            yield self.model
            return
        with applied(self.model, self.delta):
            yield self.model

    @property
    def causes(self) -> list[Any]:
        """What decides all measurements of it, ready for JSON."""
        return [state(self.model), None if self.delta is None else self.delta.id]


def unlearned(on: Bench, method: Method) -> Arm:
    """A method carried out until the budget is spent, from its file where there is one."""
    settings = on.settings
    rate = settings.rate_of(method) if method.kind == "unlearn" else None
    plain = {key: value for key, value in asdict(method).items() if key != "name"}
    rows = [on.forget.fingerprint(), on.parts.train.fingerprint(), on.parts.budget.fingerprint()]
    causes = [state(on.model), *rows, plain, asdict(settings.training), rate, settings.seed]
    path = on.folder / "deltas" / f"{text_sha256(causes)}.safetensors"
    if not path.exists():
        found = at_budget(
            on.model,
            on.forget,
            on.parts.train,
            on.parts.budget,
            method,
            settings.training,
            lr=rate or settings.rate,
            seed=settings.seed,
        )
        about = {key: getattr(found, key) for key in ("used", "reached", "moved", "steps", "part")}
        noted(found.delta, {"spent": about | {"rate": rate}}).save(path)
    delta = Delta.load(path)
    return Arm(method.name, on.model, delta, delta.provenance.notes["spent"])
