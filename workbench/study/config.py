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

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from workbench.core.errors import InputError, StudyError, unknown
from workbench.core.registry import Member, attribution, edit, objective
from workbench.core.store import existing
from workbench.core.weights import SCOPES
from workbench.evaluate.suites import SUITES
from workbench.load.models import check_source
from workbench.unlearn.run import run as run_unlearn

ROLES = ("untouched", "reference", "band", "method")
CONTROLS = ("", "matched_random", "inverted")
SPLITS = ("forget", "retain", "real_authors", "world_facts")


@dataclass(frozen=True)
class MaskPlan:
    """Where an arm may write. control: "matched_random" or "inverted" takes that of the mask instead of the mask."""

    attribute: str
    fraction: float
    scope: str = "global"
    control: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


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


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as the number it is; YAML 1.1 calls it a text."""


def _no_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping; a key that stands twice is an error, where YAML would keep the last one without a word."""
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise StudyError(f"the key {key!r} stands twice in one mapping (line {node.start_mark.line + 1} and below).")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _no_repeats)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def parse_value(text: str) -> Any:
    """A value as it would be read in a study file."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise StudyError(f"the value {text!r} is not valid YAML: {_problem(error)}.") from error


def _problem(error: yaml.YAMLError) -> str:
    """PyYAML's many lines in one: what is wrong, and where."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).splitlines()[0]
    return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"


def parse_options(given: Iterable[str]) -> dict[str, Any]:
    """["lr=1e-3", "mask.fraction=0.1"] as {"lr": 0.001, "mask.fraction": 0.1}."""
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"option {text!r}: expected key=value.")
        options[key.strip()] = parse_value(value)
    return options


def read(path: str | Path, overrides: Iterable[str] = ()) -> Study:
    """A study file with overrides such as "arms.npo.unlearn.lr=1e-3", fully checked.

    Raises: StudyError for a file that is no study; UnknownNameError, with the nearest name, for an unknown key, method or
        option; InputError for a missing file.
    """
    path = existing(path)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise StudyError(f"{path}: not valid YAML: {_problem(error)}.") from error
    if not isinstance(raw, dict):
        raise StudyError(f"{path}: expected a mapping with name, model, data and arms.")
    for key, value in parse_options(overrides).items():
        keys = key.split(".")
        if keys[0] == "arms" and len(keys) > 1 and keys[1] not in (raw.get("arms") or {}):
            raise unknown("arm", keys[1], raw.get("arms") or {})
        _override(raw, keys, value)
    return _study(raw, path)


def _override(raw: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = raw.setdefault(key, {})
        if not isinstance(inner, dict):
            raise StudyError(f"override {'.'.join(keys)}: {key} is not a mapping.")
        raw = inner
    raw[keys[-1]] = value


def _study(raw: Mapping[str, Any], path: Path) -> Study:
    _known("key of a study", raw, [f.name for f in fields(Study)])
    for key in ("name", "model", "data", "arms"):
        if not raw.get(key):
            raise StudyError(f"{path}: there is no {key!r}.")
    for name in (raw["name"], *_mapping("arms", raw["arms"])):
        if not re.fullmatch(r"\w[\w.-]*", str(name)):
            raise StudyError(f"{path}: name {name!r} must be letters, digits, '.', '_' and '-': it names a folder.")
    _known("key of data", raw["data"], [*SPLITS, "root"])
    absent = [split for split in SPLITS if split not in raw["data"]]
    if absent:
        raise StudyError(f"{path}: data has no source for {', '.join(absent)}.")
    evaluate = _evaluation(raw.get("evaluate") or {})
    seeds = raw.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or len(set(seeds)) < len(seeds) or not all(type(s) is int for s in seeds):
        raise StudyError(f"{path}: seeds is {seeds!r}, expected a list of different whole numbers.")
    seeds = tuple(seeds)
    folder = path.parent
    bodies = {str(name): _mapping(f"arm {name}", body or {}) for name, body in raw["arms"].items()}
    arms = [_arm(name, body, seed, seeds, folder) for name, body in bodies.items() for seed in _seeds(body, seeds)]
    if sum(arm.role == "reference" for arm in arms) > 1:
        raise StudyError(f"{path}: more than one arm has the role 'reference'.")
    rest = {key: raw[key] for key in ("device", "dtype", "title") if key in raw}
    data = {key: _resolve(str(value), folder) for key, value in raw["data"].items()}
    model = _resolve(str(raw["model"]), folder)
    for source in (model, *(arm.model for arm in arms if arm.model)):
        check_source(source)
    return Study(str(raw["name"]), model, data, tuple(arms), evaluate, seeds, **rest)


def _evaluation(raw: Any) -> Evaluation:
    _known("key of evaluate", raw, [f.name for f in fields(Evaluation)])
    found = Evaluation(**raw)
    if found.suite not in SUITES:
        raise unknown("suite", str(found.suite), SUITES)
    for key in ("retain_rows", "generate", "samples"):
        if type(getattr(found, key)) is not int or getattr(found, key) < 1:
            raise StudyError(f"evaluate.{key} is {getattr(found, key)!r}, expected a whole number of at least 1.")
    return found


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise StudyError(f"{what}: expected a mapping, got {value!r}.")
    return value


def _seeds(body: Mapping[str, Any], seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Only what draws random numbers is repeated: unlearning."""
    return seeds if "unlearn" in body else seeds[:1]


def _arm(name: str, body: Mapping[str, Any], seed: int, seeds: tuple[int, ...], folder: Path) -> Arm:
    _known(f"key of arm {name}", body, [f.name for f in fields(Arm) if f.name not in ("name", "seed")])
    role = body.get("role", "method")
    if role not in ROLES:
        raise unknown("role", role, ROLES)
    kinds = [kind for kind in ("model", "unlearn", "edit") if body.get(kind)]
    if len(kinds) > 1 or (not kinds and role != "untouched"):
        raise StudyError(f"arm {name}: give one of model, unlearn, edit (only role: untouched has none); got {kinds or 'none'}.")
    if "unlearn" in kinds:
        _check_unlearn(name, _mapping(f"arm {name}: unlearn", body["unlearn"]))
    if "edit" in kinds:
        _mapping(f"arm {name}: edit", body["edit"])
        edit[_method(name, body["edit"])].check_options({k: v for k, v in body["edit"].items() if k != "method"})
    if body.get("mask") and "unlearn" not in kinds:
        raise StudyError(f"arm {name}: only an unlearn arm takes a mask.")
    full = f"{name}@{seed}" if len(seeds) > 1 and "unlearn" in kinds else name
    return Arm(
        full,
        str(body.get("title") or name),
        role,
        _resolve(str(body["model"]), folder) if body.get("model") else "",
        dict(body.get("unlearn") or {}),
        dict(body.get("edit") or {}),
        _mask(name, body["mask"]) if body.get("mask") else None,
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


def _mask(name: str, body: Mapping[str, Any]) -> MaskPlan:
    _known(f"key of mask in arm {name}", body, [f.name for f in fields(MaskPlan)])
    for key in ("attribute", "fraction"):
        if key not in body:
            raise StudyError(f"arm {name}: mask has no {key!r}.")
    plan = MaskPlan(**body)
    attribution[plan.attribute].check_options(dict(plan.options))
    if plan.scope not in SCOPES:
        raise unknown("scope", plan.scope, SCOPES)
    if plan.control not in CONTROLS:
        raise unknown("control", plan.control, CONTROLS[1:])
    if not 0 < plan.fraction <= 1:
        raise StudyError(f"arm {name}: mask.fraction is {plan.fraction}, expected above 0 and at most 1.")
    return plan


def _known(kind: str, given: Any, names: list[str]) -> None:
    if not isinstance(given, Mapping):
        raise StudyError(f"{kind}: expected a mapping, got {given!r}.")
    for key in given:
        if key not in names:
            raise unknown(kind, str(key), names)


def _resolve(value: str, folder: Path) -> str:
    """A path relative to the study file as one relative to the working directory; anything else as it stands."""
    there = folder / value
    return os.path.relpath(there) if there.exists() else value
