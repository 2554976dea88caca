"""A study file: which model, which rows, which arms. Read, checked in full before anything runs, and written back resolved.

name: quickstart                     # the run folder is OUT/quickstart
model: ../data/organism/full         # paths are relative to the study file; hub ids stay as they are
data: {root: ../data/tofu-mini, forget: "tofu:forget", retain: "tofu:retain", ...}
evaluate: {suite: tofu, retain_rows: 100, generate: 64}
seeds: [0]
arms:
  untouched: {role: untouched}
  retrained: {role: reference, model: ../data/organism/retain}
  npo:       {unlearn: {objective: npo, lr: 1e-3}}
  npo-wagle: {unlearn: {objective: npo, lr: 1e-3}, mask: {attribute: wagle, fraction: 0.1}}
  dampened:  {edit: {method: dampen, alpha: 3}}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from workbench.attribute.parts import UNITS
from workbench.core.errors import StudyError, unknown
from workbench.core.registry import Member, attribution, edit, objective
from workbench.core.scopes import pattern
from workbench.evaluate.suites import SUITES
from workbench.load.models import check_source
from workbench.study.file import check_head, check_name, known, mapping, parse_options, read_file, resolve, sources
from workbench.study.locate import read_edit
from workbench.unlearn.run import run as run_unlearn

ROLES = ("untouched", "reference", "band", "method")
CONTROLS = ("", "matched_random", "inverted")
SPLITS = ("forget", "retain", "real_authors", "world_facts")


@dataclass(frozen=True)
class MaskPlan:
    """Where an arm may write.

    fraction: share of the weights; None where the scope is N:M, which says it.
    unit: choose whole "neuron", "head" ... (`attribute/parts.py`) instead of single weights; fraction is a share of the units.
    control: "matched_random" or "inverted" takes that of the mask instead of the mask.
    """

    attribute: str
    fraction: float | None = None
    scope: str = "global"
    unit: str = ""
    control: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def words(self) -> str:
        """The plan in a few words, such as "matched_random wagle 0.1"."""
        much = self.scope if self.fraction is None else f"{self.fraction:g}"
        return " ".join(filter(None, [self.control, self.attribute, self.unit, much]))


@dataclass(frozen=True)
class Arm:
    """One line of the result: a model as it is, an unlearning run, or an edit; at most one of model, unlearn, edit."""

    name: str
    title: str = ""
    role: str = "method"
    model: str = ""
    unlearn: Mapping[str, Any] = field(default_factory=dict)
    edit: Mapping[str, Any] = field(default_factory=dict)
    mask: MaskPlan | None = None
    seed: int = 0

    @property
    def kind(self) -> str:
        """What happens in this arm: untouched, model, unlearn or edit."""
        return next((kind for kind in ("model", "unlearn", "edit") if getattr(self, kind)), "untouched")

    @property
    def method(self) -> str:
        """The method's registered name, or the kind."""
        named = {"unlearn": self.unlearn.get("objective", "npo"), "edit": self.edit.get("method")}
        return str(named.get(self.kind) or self.kind).replace("-", "_")


@dataclass(frozen=True)
class Evaluation:
    """What is measured. retain_rows: how many retain rows (the first ones); generate: new tokens an answer at most."""

    suite: str = "tofu"
    retain_rows: int = 100
    generate: int = 64
    samples: int = 4


@dataclass(frozen=True)
class Study:
    """A whole study, checked. data: a source for every split, and `root` where TOFU's files are."""

    name: str
    model: str
    data: Mapping[str, str]
    arms: tuple[Arm, ...]
    evaluate: Evaluation = Evaluation()
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    dtype: str = "auto"
    title: str = ""

    def reference(self) -> Arm | None:
        """The arm whose model never saw the forget rows, if the study has one."""
        return next((arm for arm in self.arms if arm.role == "reference"), None)


def read(path: str | Path, overrides: Iterable[str] = ()) -> Study:
    """A study file with overrides such as "arms.npo.unlearn.lr=1e-3", fully checked.

    Raises: StudyError for a file that is no study; UnknownNameError, with the nearest name, for an unknown key, method or
        option; InputError for a missing file.
    """
    given = list(overrides)
    arms = read_file(path).get("arms") or {}
    for key in parse_options(given):
        keys = key.split(".")
        if keys[0] == "arms" and len(keys) > 1 and keys[1] not in arms:
            raise unknown("arm", keys[1], arms)
    return _study(read_file(path, given), Path(path))


def _study(raw: Mapping[str, Any], path: Path) -> Study:
    known("key of a study", raw, [f.name for f in fields(Study)])
    check_head(raw, path, ("name", "model", "data", "arms"))
    for name in mapping("arms", raw["arms"]):
        check_name(name, path)
    data = sources(raw["data"], path, SPLITS)
    evaluate = _evaluation(raw.get("evaluate") or {})
    seeds = raw.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or len(set(seeds)) < len(seeds) or not all(type(s) is int for s in seeds):
        raise StudyError(f"{path}: seeds is {seeds!r}, expected a list of different whole numbers.")
    seeds = tuple(seeds)
    folder = path.parent
    bodies = {str(name): mapping(f"arm {name}", body or {}) for name, body in raw["arms"].items()}
    arms = [_arm(name, body, seed, seeds, folder) for name, body in bodies.items() for seed in _seeds(body, seeds)]
    if sum(arm.role == "reference" for arm in arms) > 1:
        raise StudyError(f"{path}: more than one arm has the role 'reference'.")
    rest = {key: raw[key] for key in ("device", "dtype", "title") if key in raw}
    model = resolve(str(raw["model"]), folder)
    for source in (model, *(arm.model for arm in arms if arm.model)):
        check_source(source)
    return Study(str(raw["name"]), model, data, tuple(arms), evaluate, seeds, **rest)


def _evaluation(raw: Any) -> Evaluation:
    known("key of evaluate", raw, [f.name for f in fields(Evaluation)])
    found = Evaluation(**raw)
    if found.suite not in SUITES:
        raise unknown("suite", str(found.suite), SUITES)
    for key in ("retain_rows", "generate", "samples"):
        if type(getattr(found, key)) is not int or getattr(found, key) < 1:
            raise StudyError(f"evaluate.{key} is {getattr(found, key)!r}, expected a whole number of at least 1.")
    return found


def _seeds(body: Mapping[str, Any], seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Only what draws random numbers is repeated: unlearning."""
    return seeds if "unlearn" in body else seeds[:1]


def _arm(name: str, body: Mapping[str, Any], seed: int, seeds: tuple[int, ...], folder: Path) -> Arm:
    known(f"key of arm {name}", body, [f.name for f in fields(Arm) if f.name not in ("name", "seed")])
    role = body.get("role", "method")
    if role not in ROLES:
        raise unknown("role", role, ROLES)
    kinds = [kind for kind in ("model", "unlearn", "edit") if body.get(kind)]
    if len(kinds) > 1 or (not kinds and role != "untouched"):
        raise StudyError(f"arm {name}: give one of model, unlearn, edit (only role: untouched has none); got {kinds or 'none'}.")
    if "unlearn" in kinds:
        _check_unlearn(name, mapping(f"arm {name}: unlearn", body["unlearn"]))
    if "edit" in kinds:
        given = mapping(f"arm {name}: edit", body["edit"])
        read_edit(f"arm {name}: edit", _method(name, given), given)
    if body.get("mask") and "unlearn" not in kinds:
        raise StudyError(f"arm {name}: only an unlearn arm takes a mask.")
    full = f"{name}@{seed}" if len(seeds) > 1 and "unlearn" in kinds else name
    return Arm(
        full,
        str(body.get("title") or name),
        role,
        resolve(str(body["model"]), folder) if body.get("model") else "",
        dict(body.get("unlearn") or {}),
        dict(body.get("edit") or {}),
        mask_plan(f"arm {name}", mapping(f"arm {name}: mask", body["mask"])) if body.get("mask") else None,
        seed,
    )


def _check_unlearn(name: str, body: Mapping[str, Any]) -> None:
    member = objective[str(body.get("objective") or "npo")]
    every = Member(f"arm {name}: unlearn", run_unlearn)
    every.check_options(dict(body))
    for key in ("mask", "seed", "show"):
        if key in body:
            raise StudyError(f"arm {name}: {key} is set by the study, not under unlearn.")
    member.check_options(dict(body.get("options") or {}))


def _method(name: str, body: Mapping[str, Any]) -> str:
    if not body.get("method"):
        raise StudyError(f"arm {name}: edit has no 'method'. Known: {', '.join(edit.names())}.")
    return str(body["method"])


def mask_plan(where: str, body: Mapping[str, Any]) -> MaskPlan:
    """The mapping `mask` of a study file, checked.

    Args: where: what has the mask, named in messages: "arm npo".
    """
    known(f"key of mask in {where}", body, [f.name for f in fields(MaskPlan)])
    for key in ("attribute", "fraction"):
        if key not in body and not (key == "fraction" and pattern(str(body.get("scope", "global")))):
            raise StudyError(f"{where}: mask has no {key!r}.")
    plan = MaskPlan(**body)
    attribution[plan.attribute].check_options(dict(plan.options))
    if pattern(plan.scope) and (plan.fraction is not None or plan.unit):
        raise StudyError(f"{where}: mask.scope {plan.scope} says how many single weights; give neither fraction nor unit.")
    if plan.unit and plan.unit not in UNITS:
        raise unknown("unit", plan.unit, UNITS)
    if plan.unit and plan.scope != "global":
        raise StudyError(f"{where}: mask.scope is {plan.scope!r}, but whole units are chosen globally; leave scope out.")
    if plan.control not in CONTROLS:
        raise unknown("control", plan.control, CONTROLS[1:])
    if plan.fraction is not None and not 0 < plan.fraction <= 1:
        raise StudyError(f"{where}: mask.fraction is {plan.fraction}, expected above 0 and at most 1.")
    return plan
