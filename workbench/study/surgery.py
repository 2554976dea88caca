"""Model Surgery's table of ablations on one's own model: which part of the recipe does the work?

name: surgery                        # the run folder is OUT/surgery
model: ../data/organism/full         # paths are relative to the study file; hub ids stay as they are
data: {root: ../data/tofu-mini, forget: "tofu:forget", retain: "tofu:retain"}
surgery:
  matrices: [gate, up, down, q, k, v, o]
  fraction: 0.05                     # of a matrix' rows, over all layers; the published edit takes 4.65 %
  strength: 0.5                      # row += strength * ||row|| * direction
  budget: 0.05                       # nats per token on retain rows, for the comparison at equal cost
  seeds: [0, 1, 2]

The behavior is answering about the forget rows. One half of them, against retain rows, goes to the probe, which keeps three tenths
of it to be judged on; the edit is judged on the other half and on retain rows nobody looked at. The strength that costs the budget
is found on retain rows of its own. See `surgery_grid` for the cases.

    runs/NAME/points/KEY.json     one edit     runs/NAME/points.parquet     all of them     runs/NAME/sheet.json, report.html
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.core.direction import Direction, save_directions
from workbench.core.errors import DataError, StudyError, unknown
from workbench.core.numerics import permutation
from workbench.core.records import Examples
from workbench.core.registry import probe
from workbench.core.runtime import progress
from workbench.core.store import new_file
from workbench.load.batches import encode_all
from workbench.load.datasets import examples
from workbench.load.models import Model, check_source, load
from workbench.probe import ProbeSweep, fit
from workbench.report import page
from workbench.study.file import check_head, known, mapping, read_file, relative, resolve, sources
from workbench.study.folder import begin, kept, state
from workbench.study.intervene import row_nll
from workbench.study.judge import split_retain
from workbench.study.surgery_grid import SITES, Bench, Point, halves, measure, questions
from workbench.study.surgery_sheet import sheet
from workbench.unlearn.pairs import set_nll

KEYS = ("name", "title", "model", "data", "surgery", "device", "dtype")


@dataclass(frozen=True)
class Settings:
    """What all points share. method: a registered probe.   probe_rows: retain rows the probe is fitted on at most."""

    matrices: tuple[str, ...] = ("gate", "up", "down", "q", "k", "v", "o")
    fraction: float = 0.05
    strength: float = 0.5
    budget: float = 0.05
    method: str = "mean_difference"
    probe_rows: int = 200
    budget_rows: int = 120
    report_rows: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Plan:
    """A study of surgery, checked."""

    name: str
    model: str
    data: Mapping[str, str]
    settings: Settings
    device: str = "auto"
    dtype: str = "auto"
    title: str = ""


def read(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """A study file with overrides such as "surgery.strength=1", fully checked.

    Raises: StudyError for a file that is no such study; UnknownNameError, with the nearest name, for an unknown key or matrix;
        InputError for a missing file.
    """
    path, raw = Path(path), read_file(path, overrides)
    known("key of a surgery study", raw, KEYS)
    check_head(raw, path, ("name", "model", "data", "surgery"))
    body = mapping("surgery", raw["surgery"])
    settings = _settings(body)
    model = resolve(str(raw["model"]), path.parent)
    check_source(model)
    rest = {key: str(raw[key]) for key in ("device", "dtype", "title") if key in raw}
    return Plan(str(raw["name"]), model, sources(raw["data"], path, ("forget", "retain")), settings, **rest)


def _settings(body: Mapping[str, Any]) -> Settings:
    """The settings of a study file, defaults filled in.

    Raises: StudyError naming the first value that cannot be; UnknownNameError for a matrix or a probe nobody knows.
    """
    known("key of surgery", body, [f.name for f in fields(Settings)])
    full = {**asdict(Settings()), **body}
    for name, kind in (("matrices", str), ("seeds", int)):
        given = full[name]
        listed = isinstance(given, list | tuple) and len(given) > 0
        if not listed or len(set(map(str, given))) < len(given) or not all(type(one) is kind for one in given):
            raise StudyError(f"surgery.{name} is {given!r}, expected a list, at least one, none twice, each a {kind.__name__}.")
        full[name] = tuple(given)
    for name in ("fraction", "strength", "budget"):
        value = full[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise StudyError(f"surgery.{name} is {value!r}, expected a positive number.")
    for name in ("probe_rows", "budget_rows", "report_rows"):
        if type(full[name]) is not int or full[name] < 1:
            raise StudyError(f"surgery.{name} is {full[name]!r}, expected a whole number of at least 1.")
    if full["fraction"] > 1:
        raise StudyError(f"surgery.fraction is {full['fraction']:g}, expected a share of the rows, at most 1.")
    for matrix in full["matrices"]:
        if matrix not in SITES:
            raise unknown("matrix of surgery", matrix, SITES)
    return Settings(**{**full, "method": probe[str(full["method"])].name})


def run(study: str | Path, *, out: str | Path = "runs", overrides: Iterable[str] = (), show: bool = True) -> Path:
    """Run a study of surgery, or go on with it; returns the run's folder.

    Raises: any InputError before the first file is written.
    """
    plan = read(study, overrides)
    rows = {split: examples(plan.data[split], root=plan.data.get("root")) for split in ("forget", "retain")}
    model = load(plan.model, device=plan.device, dtype=plan.dtype)
    folder = Path(out) / plan.name
    sweep, on = prepare(model, rows["forget"], rows["retain"], plan.settings)
    asked = questions(plan.settings.matrices, plan.settings.seeds)
    begin(folder, _config(plan, folder), ("points.parquet", "sheet.json", "report.html"))
    save_directions([d for site in on.directions.values() for d in site], folder / "directions.safetensors")
    causes = [state(model), *(part.fingerprint() for part in rows.values()), _decisive(plan.settings)]
    points = [
        Point(**kept(folder, [*causes, asdict(one)], lambda one=one: measure(on, one).as_dict()))
        for one in progress(asked, label="surgery", show=show)
    ]
    with new_file(folder / "points.parquet") as aside:
        pd.DataFrame([point.as_dict() for point in points]).to_parquet(aside, index=False)
    sheet(plan.title or plan.name, points, sweep, on, _decisive(plan.settings)).save(folder)
    page(folder)
    return folder


def prepare(model: Model, forget: Examples, retain: Examples, settings: Settings) -> tuple[ProbeSweep, Bench]:
    """Fit the directions on one part of the rows, and measure the model on the others before anything is done to it.

    Raises: DataError if there are too few rows for both.
    """
    if len(forget) < 8:
        raise DataError(
            f"surgery: forget ({forget.name}) has {len(forget)} rows; at least 8 are needed, half of them to fit a probe."
        )
    fitted, reported = halves(forget)
    parts = split_retain(forget, retain, budget_rows=settings.budget_rows, report_rows=settings.report_rows)
    others = parts.train.take(sorted(permutation(len(parts.train), 0)[: settings.probe_rows]))
    texts = [row.prompt for row in (*fitted, *others)]
    labels = [1] * len(fitted) + [0] * len(others)
    places = tuple(dict.fromkeys(SITES[matrix] for matrix in settings.matrices))
    chat = model.tokenizer.chat_template is not None
    sweep = fit(model, texts, labels, sites=places, method=settings.method, chat=chat)
    directions: dict[str, list[Direction]] = {site: sweep.directions(site=site) for site in places}
    before = {"forget": row_nll(model, reported), "retain": row_nll(model, parts.report)}
    start = set_nll(model, encode_all(model, parts.budget))
    chosen = (settings.fraction, settings.strength, settings.budget)
    return sweep, Bench(model, reported, parts.report, parts.budget, directions, before, start, *chosen)


def _decisive(settings: Settings) -> dict[str, Any]:
    """The settings that decide a point."""
    return {key: value for key, value in asdict(settings).items() if key not in ("matrices", "seeds")}


def _config(plan: Plan, folder: Path) -> dict[str, Any]:
    """The study with every default filled in, its paths relative to the run's folder."""
    chosen = asdict(plan.settings) | {key: list(getattr(plan.settings, key)) for key in ("matrices", "seeds")}
    return {
        "name": plan.name,
        "title": plan.title,
        "model": relative(plan.model, folder),
        "data": {key: relative(value, folder) for key, value in plan.data.items()},
        "device": plan.device,
        "dtype": plan.dtype,
        "surgery": chosen,
    }
