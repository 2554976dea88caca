"""What is compared: every method in every mask, the learning rates that are tried, and what all of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from workbench.core.errors import StudyError, unknown
from workbench.load.models import check_source
from workbench.study.config import MaskPlan, mask_plan
from workbench.study.file import check_name, known, mapping, relative, resolve
from workbench.study.head import count, listing, positive
from workbench.study.methods import Method, Training, read_methods

NONE = "none"
"""The mask that is none: all weights may move."""
EDIT = "edit"
"""What stands in place of a mask where a method is an edit, which chooses its weights itself."""
OWN = ("masks", "mask", "rates")
"""What a method may say beside the options of `unlearn.run`."""
UNTOUCHED, RETRAINED, RETRAINED_B = "untouched", "retrained", "retrained-b"
BASELINES = (UNTOUCHED, RETRAINED, RETRAINED_B)
"""The models that all others are held against."""


@dataclass(frozen=True)
class Line:
    """A method, the masks it is tried in, and the rates that are tried for each of them; an edit has one line and no rate."""

    method: Method
    masks: Mapping[str, MaskPlan | None]
    rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Settings:
    """The mapping `compare`, checked; see `compare`.

    raw: unlearn, edits and masks as they were written.
    """

    lines: tuple[Line, ...]
    raw: Mapping[str, Any]
    retrained: str
    retrained_b: str
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    validation: int = 16
    budget: float = 0.05
    max_steps: int = 40
    batch_size: int = 8
    budget_rows: int = 24
    report_rows: int = 64
    suite_rows: int = 48
    generate: int = 64
    deltas: bool = True

    @property
    def training(self) -> Training:
        """What all trained methods share."""
        return Training(self.budget, self.max_steps, self.batch_size)

    def body(self, folder: Path) -> dict[str, Any]:
        """The mapping as it is written into the run folder."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("lines", "raw")}
        paths = {name: relative(getattr(self, name), folder) for name in ("retrained", "retrained_b")}
        lists = {name: list(getattr(self, name)) for name in ("seeds", "rates")}
        return {**self.raw, **plain, **paths, **lists}


def read_settings(body: Mapping[str, Any], path: str | Path) -> Settings:
    """The mapping `compare` of a study file, defaults filled in, paths made relative to the working directory.

    Raises: StudyError or UnknownNameError, with the nearest name, for a key, method, mask or option nobody knows, and for methods
        that would have unequal numbers of trials.
    """
    plain = {f.name: f.default for f in fields(Settings) if f.name not in ("lines", "raw", "retrained", "retrained_b")}
    known("key of compare", body, [*plain, "unlearn", "edits", "masks", "retrained", "retrained_b"])
    given = {**plain, **{key: value for key, value in body.items() if key in plain}}
    found: dict[str, Any] = {"seeds": listing("compare.seeds", given["seeds"], int), "rates": _rates("compare", given["rates"])}
    if min(found["seeds"]) < 0:
        raise StudyError(f"compare.seeds is {list(found['seeds'])}, expected whole numbers of at least 0.")
    found["budget"] = positive("compare.budget", given["budget"])
    least = {"validation": 2, "budget_rows": 2, "report_rows": 2}
    for key in ("validation", "max_steps", "batch_size", "budget_rows", "report_rows", "suite_rows", "generate"):
        found[key] = count(f"compare.{key}", given[key], least=least.get(key, 1))
    if not isinstance(given["deltas"], bool):
        raise StudyError(f"compare.deltas is {given['deltas']!r}, expected true or false.")
    for key in ("retrained", "retrained_b"):
        if not body.get(key):
            raise StudyError(
                f"{path}: compare has no {key!r}; distances are to models retrained without the forget rows, measured in the "
                "distance between two of them."
            )
        found[key] = resolve(str(body[key]), Path(path).parent)
        check_source(found[key])
    raw = {key: mapping(f"compare.{key}", body.get(key) or {}) for key in ("unlearn", "edits", "masks")}
    lines = read_lines(raw, found["rates"], path)
    return Settings(lines, raw, deltas=given["deltas"], **found)


def read_lines(raw: Mapping[str, Mapping[str, Any]], rates: tuple[float, ...], path: str | Path) -> tuple[Line, ...]:
    """Every method with its masks and rates.

    Args: raw: unlearn, edits, masks.   rates: for the methods that name none.   path: named in messages.
    """
    masks: dict[str, MaskPlan | None] = {NONE: None}
    for name, body in raw["masks"].items():
        check_name(name, path)
        given = mapping(f"compare.masks.{name}", body or {})
        if name == NONE and given:
            raise StudyError(f"compare.masks.{NONE} means all weights and takes no option, got {dict(given)}.")
        masks[str(name)] = mask_plan(f"compare.masks.{name}", given) if given else None
    shared = {str(name): masks[str(name)] for name in raw["masks"]} or {NONE: None}
    bodies = {str(name): mapping(f"compare.unlearn.{name}", body or {}) for name, body in raw["unlearn"].items()}
    trained = {name: {key: value for key, value in body.items() if key not in OWN} for name, body in bodies.items()}
    lines = [
        _line(method, bodies.get(method.name, {}), masks, shared, rates)
        for method in read_methods("compare", trained, raw["edits"])
    ]
    for line in lines:
        check_name(line.method.name, path)
        if line.method.name in BASELINES:
            raise StudyError(f"{path}: a method is called {line.method.name!r}, which is a model here; call it something else.")
    return tuple(lines)


def named(lines: Sequence[Line], only: Sequence[str]) -> tuple[Line, ...]:
    """The lines of these methods, all of them without a name; UnknownNameError for another."""
    names = [line.method.name for line in lines]
    for name in only:
        if name not in names:
            raise unknown("method of this comparison", name, names)
    return tuple(line for line in lines if not only or line.method.name in only)


def cells(lines: Sequence[Line]) -> list[tuple[Line, str]]:
    """Every method with each of its masks."""
    return [(line, mask) for line in lines for mask in line.masks]


def without(lines: Sequence[Line], line: Line, mask: str) -> tuple[str, str] | None:
    """Method and mask NONE to hold a mask against: the same method, or else one with the same options and rates; None if absent."""
    alike = [other for other in _alike(lines, line) if NONE in other.masks]
    return None if line.masks[mask] is None or not alike else (alike[0].method.name, NONE)


def twin(lines: Sequence[Line], line: Line, mask: str) -> tuple[str, str] | None:
    """Method and mask that is the matched random choice of a mask, of the same method or one with the same options and rates."""
    plan = line.masks[mask]
    if plan is None or plan.control:
        return None
    wanted = replace(plan, control="matched_random")
    found = ((other.method.name, name) for other in _alike(lines, line) for name, one in other.masks.items() if one == wanted)
    return next(found, None)


def _alike(lines: Sequence[Line], line: Line) -> list[Line]:
    """The line itself, and those of other names that do the same."""

    def does(one: Line) -> Any:
        return replace(one.method, name=""), one.rates

    return [line, *(other for other in lines if other is not line and line.method.kind == "unlearn" and does(other) == does(line))]


def plain(line: Line, mask: str) -> dict[str, Any]:
    """What of a line in one of its masks decides its results, ready for JSON; its name does not."""
    plan = line.masks[mask]
    about = {key: value for key, value in asdict(line.method).items() if key != "name"}
    return about | {"mask": None if plan is None else asdict(plan)}


def _line(
    method: Method,
    body: Mapping[str, Any],
    masks: Mapping[str, MaskPlan | None],
    shared: Mapping[str, MaskPlan | None],
    rates: tuple[float, ...],
) -> Line:
    """A method with its masks: its own, those of the study it names, or all of the study's."""
    where = f"compare.unlearn.{method.name}"
    if method.kind == "edit":
        return Line(method, {EDIT: None})
    chosen = dict(shared)
    if body.get("mask"):
        own = mask_plan(where, mapping(f"{where}.mask", body["mask"]))
        name = own.attribute + (f"-{own.control}" if own.control else "")
        if name in masks:
            raise StudyError(f"{where}: its own mask is called {name!r}, as one of compare.masks; give that one another name.")
        chosen = {name: own}
    if "masks" in body:
        wanted = listing(f"{where}.masks", body["masks"], str)
        absent = [name for name in wanted if name not in masks]
        if absent:
            raise unknown(f"mask of {where}", absent[0], masks)
        chosen = ({} if not body.get("mask") else chosen) | {name: masks[name] for name in wanted}
    if method.options.get("lora") and any(plan is not None for plan in chosen.values()):
        raise StudyError(f"{where}: LoRA adds weights of its own, so it takes no mask; write masks: [{NONE}].")
    own_rates = _rates(where, body["rates"]) if "rates" in body else rates
    if len(own_rates) != len(rates):
        raise StudyError(
            f"{where}.rates has {len(own_rates)}, but compare.rates has {len(rates)}: every method gets the same number of trials."
        )
    return Line(method, chosen, own_rates)


def _rates(where: str, given: Any) -> tuple[float, ...]:
    """Learning rates, ascending."""
    if not isinstance(given, list | tuple) or not given:
        raise StudyError(f"{where}.rates is {given!r}, expected a list of learning rates, at least one.")
    found = sorted(positive(f"{where}.rates", one) for one in given)
    if len(set(found)) < len(found):
        raise StudyError(f"{where}.rates is {list(given)}, which has a rate twice.")
    return tuple(found)
