"""What a study of attacks is made of: methods, retrained models, attacks and their settings, read from a file and checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from workbench.core.errors import StudyError, unknown
from workbench.core.store import existing
from workbench.edit.quantize import BITS
from workbench.load.models import check_source
from workbench.study.file import check_name, known, mapping, relative, resolve
from workbench.study.head import Head, count, listing, positive, read_head
from workbench.study.methods import Method, Training, read_methods

UNTOUCHED, RETRAINED, RETRAINED_B = "untouched", "retrained", "retrained b"
NAMES = (UNTOUCHED, RETRAINED, RETRAINED_B)
ATTACKS = ("extraction", "prompts", "relearning", "quantization", "probe")
SPLITS = ("forget", "retain", "unrelated")
COUNTS = {
    "seed": 0,
    "max_steps": 1,
    "batch_size": 1,
    "budget_rows": 2,
    "report_rows": 2,
    "generate": 1,
    "shots": 1,
    "relearn_steps": 1,
    "relearn_every": 1,
}
POSITIVE = ("rate", "budget", "relearn_lr", "held_out")
LISTS = {"attacks": str, "budgets": int, "relearn_seeds": int, "bits": int}
MODELS = ("retrained", "retrained_b")
FILES = ("entities", "questions")


@dataclass(frozen=True)
class Settings:
    """The mapping `attacks`, checked.

    raw: unlearn and edits as they were written.   rate, rates: of training, and of single methods; constant, for all weights.
    seed: of unlearning.   budget_rows, report_rows: retain rows set aside, see `judge.split_retain`.
    budgets: candidate set sizes of the extraction; the largest is compared.   entities: file with the secret part of every answer,
    see `entity_spans.entities`; None for whole answers.
    questions: file with another question for forget rows, {"id": ..., "question": ...}; None for none.
    generate: most new tokens of an answer.   shots: retain rows shown before a question.
    relearn_steps, relearn_every, relearn_lr, relearn_seeds, held_out: see `attacks.relearning`.   bits: of quantized weights.
    """

    methods: tuple[Method, ...]
    raw: Mapping[str, Mapping[str, Any]]
    retrained: str
    retrained_b: str
    attacks: tuple[str, ...] = ATTACKS
    rate: float = 5e-4
    rates: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    budget: float = 0.05
    max_steps: int = 40
    batch_size: int = 8
    budget_rows: int = 48
    report_rows: int = 60
    budgets: tuple[int, ...] = (1, 5, 20)
    entities: str | None = None
    questions: str | None = None
    generate: int = 40
    shots: int = 2
    relearn_steps: int = 12
    relearn_every: int = 4
    relearn_lr: float = 3e-4
    relearn_seeds: tuple[int, ...] = (0, 1, 2)
    held_out: float = 0.5
    bits: tuple[int, ...] = (8, 4)

    @property
    def training(self) -> Training:
        """What all trained methods share."""
        return Training(self.budget, self.max_steps, self.batch_size)

    def most_steps(self, rows: int) -> int:
        """The most steps of a run on so many forget rows: max_steps, rounded up to whole epochs."""
        return self.training.epochs(rows) * self.training.epoch(rows)

    def rate_of(self, method: Method) -> float:
        """The learning rate of a method."""
        return self.rates.get(method.name, self.rate)

    def body(self, folder: Path) -> dict[str, Any]:
        """The mapping as it is written into the run folder."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("methods", "raw")}
        paths = {key: relative(plain[key], folder) for key in (*MODELS, *FILES) if plain[key] is not None}
        raw = {key: dict(value) for key, value in self.raw.items()}
        return {**raw, **plain, **paths, **{key: list(plain[key]) for key in LISTS}, "rates": dict(self.rates)}


def read(path: str | Path, overrides: Iterable[str] = ()) -> tuple[Head, Settings]:
    """A study file with overrides such as "attacks.budget=0.1", fully checked.

    Raises: as `read_head`, also for values of `attacks`; UnknownNameError, with the nearest name, for a method, option or attack
        nobody knows.
    """
    head, body = read_head(path, overrides, "attacks", splits=SPLITS)
    plain = Settings((), {}, "", "")
    keys = [f.name for f in fields(Settings) if f.name not in ("methods", "raw")]
    known("key of attacks", body, [*keys, "unlearn", "edits"])
    given = {key: body.get(key, getattr(plain, key)) for key in keys}
    found: dict[str, Any] = {key: count(f"attacks.{key}", given[key], least=least) for key, least in COUNTS.items()}
    found |= {key: positive(f"attacks.{key}", given[key]) for key in POSITIVE}
    found |= {key: listing(f"attacks.{key}", given[key], kind) for key, kind in LISTS.items()}
    _ranges(found)
    for name in found["attacks"]:
        if name not in ATTACKS:
            raise unknown("attack", name, ATTACKS)
    folder = Path(path).parent
    for key in MODELS:
        if not body.get(key):
            raise StudyError(
                f"{path}: attacks has no {key!r}, a model that never saw the forget rows, whose numbers are the floor."
            )
        found[key] = resolve(str(body[key]), folder)
        check_source(found[key])
    found |= {key: None if given[key] is None else str(existing(resolve(str(given[key]), folder))) for key in FILES}
    raw = {key: mapping(f"attacks.{key}", body.get(key) or {}) for key in ("unlearn", "edits")}
    methods = _methods(raw, path)
    trained = [method.name for method in methods if method.kind == "unlearn"]
    known("method of attacks.rates", given["rates"], trained)
    found["rates"] = {name: positive(f"attacks.rates.{name}", value) for name, value in given["rates"].items()}
    return head, Settings(methods, raw, **found)


def _ranges(found: Mapping[str, Any]) -> None:
    """Refuse numbers that no model or rows can have."""
    if not found["held_out"] < 1:
        raise StudyError(f"attacks.held_out is {found['held_out']}, expected a share above 0 and below 1.")
    if min(found["relearn_seeds"]) < 0:
        raise StudyError(f"attacks.relearn_seeds is {list(found['relearn_seeds'])}, expected whole numbers of at least 0.")
    if min(found["budgets"]) < 1:
        raise StudyError(f"attacks.budgets is {list(found['budgets'])}, expected sizes of candidate sets, at least 1.")
    if not BITS[0] <= min(found["bits"]) <= max(found["bits"]) <= BITS[1]:
        raise StudyError(f"attacks.bits is {list(found['bits'])}, expected {BITS[0]} to {BITS[1]}.")


def _methods(raw: Mapping[str, Mapping[str, Any]], path: str | Path) -> tuple[Method, ...]:
    """The methods, none of which is called like a model that is attacked too."""
    methods = tuple(read_methods("attacks", raw["unlearn"], raw["edits"]))
    for method in methods:
        check_name(method.name, path)
        if method.name in NAMES:
            raise StudyError(f"{path}: a method is called {method.name!r}, which is a model here; call it something else.")
    return methods
