"""Likelihood displacement: which pairs make their preferred answer less likely, can it be told, does leaving them out help?

name: displacement                   # the run folder is OUT/displacement
displacement:
  sets:                              # paths are relative to the study file
    - {name: tofu, model: ../data/organism/full, pairs: "tofu:retain", root: ../data/tofu-mini, rows: 80, held_out: 40, lr: 6e-4}
    - {name: persona, model: ../data/organism/full, pairs: ../data/preferences/persona.jsonl}
  objectives: [dpo, ipo, dpo_sft]
  seeds: [0, 1, 2]
  drop: 0.5                          # share of the pairs that the arms without the highest of a score leave out: 1 to all but 1
  drop_objective: dpo
  epochs: 1
  batch_size: 8

Every model is tuned to its pairs with each objective and seed, in another order with each seed. See `displacement_grid` for the
arms, `displacement_numbers` for the intervals.

    runs/NAME/points/KEY.json   one run     runs/NAME/pairs.parquet   every pair of every run     runs/NAME/sheet.json, report.html
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.core.errors import StudyError
from workbench.core.records import PreferencePairs
from workbench.core.registry import preference
from workbench.core.runtime import progress
from workbench.core.store import new_file
from workbench.load.datasets import examples, pairs
from workbench.load.models import check_source
from workbench.report import page
from workbench.study.displacement_grid import ALL, PairSet, Point, Training, measure, prepare, questions
from workbench.study.displacement_pairs import perturbed_pairs
from workbench.study.displacement_result import Result
from workbench.study.displacement_sheet import sheet
from workbench.study.file import check_name, known, mapping, relative, resolve
from workbench.study.folder import begin, kept, state
from workbench.study.head import Head, count, listing, positive, read_head, share

PATHS = ("model", "pairs", "root")


@dataclass(frozen=True)
class Settings:
    """The mapping `displacement`, checked. drop_objective: of the runs that leave pairs out."""

    sets: tuple[PairSet, ...]
    objectives: tuple[str, ...] = ("dpo", "ipo", "dpo_sft")
    seeds: tuple[int, ...] = (0, 1, 2)
    drop: float = 0.5
    drop_objective: str = "dpo"
    epochs: int = 1
    batch_size: int = 8

    @property
    def training(self) -> Training:
        """What all runs share."""
        return Training(self.epochs, self.batch_size, self.drop)


@dataclass(frozen=True)
class Plan:
    """A study of displacement, checked."""

    head: Head
    settings: Settings


def read(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """A study file with overrides such as "displacement.drop=0.2", fully checked.

    Raises: as `read_head`, also for values of `displacement`; UnknownNameError for an objective nobody knows.
    """
    head, given = read_head(path, overrides, "displacement", model=False)
    known("key of displacement", given, [f.name for f in fields(Settings)])
    rest = {key: value for key, value in given.items() if key != "sets"}
    for key, kind in (("objectives", str), ("seeds", int)):
        if key in rest:
            rest[key] = listing(f"displacement.{key}", rest[key], kind)
    for key in ("epochs", "batch_size"):
        if key in rest:
            count(f"displacement.{key}", rest[key])
    share("displacement.drop", rest.get("drop", 0.5))
    settings = Settings(_sets(given.get("sets"), Path(path).parent), **rest)
    for one in settings.sets:
        left_out = round(settings.drop * one.rows)
        if not 1 <= left_out < one.rows:
            raise StudyError(
                f"displacement.drop is {settings.drop}: that leaves out {left_out} of the {one.rows} pairs of set {one.name!r}, "
                f"expected from 1 to {one.rows - 1}."
            )
    for name in (*settings.objectives, str(settings.drop_objective)):
        preference[name]
    return Plan(head, settings)


def _sets(given: Any, folder: Path) -> tuple[PairSet, ...]:
    """The list `sets`, paths made relative to the working directory."""
    if not isinstance(given, list | tuple) or not given:
        raise StudyError(f"displacement.sets is {given!r}, expected a list, at least one, of mappings with name, model and pairs.")
    made = tuple(_set(mapping("an entry of displacement.sets", one), folder) for one in given)
    names = [one.name for one in made]
    if len(set(names)) < len(names):
        raise StudyError(f"displacement.sets has names {names}; each must have one of its own.")
    return made


def _set(given: Mapping[str, Any], folder: Path) -> PairSet:
    known("key of a set of displacement", given, [f.name for f in fields(PairSet)])
    for name in (f.name for f in fields(PairSet) if f.default is MISSING):
        if not isinstance(given.get(name), str):
            raise StudyError(f"a set of displacement has {name} {given.get(name)!r}, expected a text.")
    what = f"set {given['name']!r} of displacement"
    check_name(given["name"], what)
    defaults = {f.name: f.default for f in fields(PairSet) if f.default is not MISSING}
    full: dict[str, Any] = {**defaults, **given}
    full |= {key: resolve(str(full[key]), folder) for key in PATHS if full[key] is not None}
    check_source(full["model"])
    count(f"{what}: rows", full["rows"], least=8)
    count(f"{what}: held_out", full["held_out"])
    if not isinstance(full["end"], bool):
        raise StudyError(f"{what}: end is {full['end']!r}, expected true or false.")
    return PairSet(**{**full, "lr": positive(f"{what}: lr", full["lr"])})


def run(study: str | Path, *, out: str | Path = "runs", overrides: Iterable[str] = (), show: bool = True) -> Path:
    """Run a study of displacement, or go on with it; returns the run's folder.

    Raises: any InputError before the first file is written.
    """
    plan = read(study, overrides)
    head, settings = plan.head, plan.settings
    folder = Path(out) / head.name
    models = {one.model: head.load(one.model) for one in settings.sets}
    benches = [prepare(one, models[one.model], _pairs(one)) for one in settings.sets]
    begin(folder, head.config(folder, "displacement", _plain(settings, folder)), ("pairs.parquet", "sheet.json", "report.html"))
    asked = [
        (on, one)
        for on in benches
        for one in questions(on, settings.objectives, settings.seeds, settings.drop_objective, settings.drop)
    ]
    points: dict[str, list[Point]] = {on.about.name: [] for on in benches}
    for on, one in progress(asked, label="displacement", show=show):
        causes = [state(on.model), on.train.fingerprint(), on.held_out.fingerprint(), on.about.end, on.about.lr]
        causes += [settings.epochs, settings.batch_size, asdict(one)]
        causes += [] if one.without == ALL else [settings.drop]
        made = kept(folder, causes, lambda on=on, one=one: measure(on, one, settings.training).as_dict())
        points[on.about.name].append(Point(**{**made, "set": on.about.name}))
    results = [Result(on, tuple(points[on.about.name]), settings.drop) for on in benches]
    with new_file(folder / "pairs.parquet") as aside:
        frame(results).to_parquet(aside, index=False)
    sheet(head.title or head.name, results, settings.objectives, settings.drop_objective, _plain(settings, folder)).save(folder)
    page(folder)
    return folder


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """Every pair of every run on a line: what was said of it before, and how ln p of its answers changed, in nats."""
    lines: list[dict[str, Any]] = []
    for result in results:
        for point in result.points:
            about = {"set": point.set, "objective": point.objective, "seed": point.seed, "without": point.without}
            scored = {name: values.tolist() for name, values in result.on.scores.items()}
            lines += [
                {**about, "id": result.on.train[i].id, "held_out": False, "chosen": a, "rejected": b}
                | {name: values[i] for name, values in scored.items()}
                for i, a, b in zip(point.trained, point.chosen, point.rejected, strict=True)
            ]
            lines += [
                {**about, "id": pair.id, "held_out": True, "chosen": a, "rejected": b}
                for pair, a, b in zip(result.on.held_out, point.held_chosen, point.held_rejected, strict=True)
            ]
    return pd.DataFrame(lines)


def _pairs(one: PairSet) -> PreferencePairs:
    return perturbed_pairs(examples(one.pairs, root=one.root)) if one.pairs.startswith("tofu:") else pairs(one.pairs)


def _plain(settings: Settings, folder: Path) -> dict[str, Any]:
    """The settings as they are written into a run folder."""
    sets = [
        {k: relative(v, folder) if k in PATHS and v is not None else v for k, v in asdict(one).items()} for one in settings.sets
    ]
    return {**asdict(settings), "sets": sets, "objectives": list(settings.objectives), "seeds": list(settings.seeds)}
