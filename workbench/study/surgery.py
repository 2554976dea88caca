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

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.core.direction import Direction, save_directions
from workbench.core.errors import DataError, unknown
from workbench.core.numerics import permutation
from workbench.core.records import Examples
from workbench.core.registry import probe
from workbench.core.runtime import progress
from workbench.core.store import new_file
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.probe import ProbeSweep, fit
from workbench.report import page
from workbench.study.file import known
from workbench.study.folder import begin, kept, state
from workbench.study.head import Head, count, listing, positive, read_head, share
from workbench.study.intervene import row_nll
from workbench.study.judge import split_retain
from workbench.study.surgery_grid import SITES, Bench, Point, halves, measure, questions
from workbench.study.surgery_sheet import sheet
from workbench.unlearn.pairs import set_nll


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

    head: Head
    settings: Settings


def read(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """A study file with overrides such as "surgery.strength=1", fully checked.

    Raises: as `read_head`, also for values of `surgery`; UnknownNameError for a matrix or a probe nobody knows.
    """
    head, body = read_head(path, overrides, "surgery", splits=("forget", "retain"))
    return Plan(head, _settings(body))


def _settings(body: Mapping[str, Any]) -> Settings:
    """The settings of a study file, defaults filled in.

    Raises: StudyError naming the first value that cannot be; UnknownNameError for a matrix or a probe nobody knows.
    """
    known("key of surgery", body, [f.name for f in fields(Settings)])
    full = {**asdict(Settings()), **body}
    full |= {name: listing(f"surgery.{name}", full[name], kind) for name, kind in (("matrices", str), ("seeds", int))}
    full |= {name: positive(f"surgery.{name}", full[name]) for name in ("strength", "budget")}
    full["fraction"] = share("surgery.fraction", full["fraction"])
    for name in ("probe_rows", "budget_rows", "report_rows"):
        count(f"surgery.{name}", full[name])
    for matrix in full["matrices"]:
        if matrix not in SITES:
            raise unknown("matrix of surgery", matrix, SITES)
    return Settings(**{**full, "method": probe[str(full["method"])].name})


def run(study: str | Path, *, out: str | Path = "runs", overrides: Iterable[str] = (), show: bool = True) -> Path:
    """Run a study of surgery, or go on with it; returns the run's folder.

    Raises: any InputError before the first file is written.
    """
    plan = read(study, overrides)
    rows = {split: plan.head.rows(split) for split in ("forget", "retain")}
    model = plan.head.load()
    folder = Path(out) / plan.head.name
    sweep, on = prepare(model, rows["forget"], rows["retain"], plan.settings)
    asked = questions(plan.settings.matrices, plan.settings.seeds)
    begin(folder, plan.head.config(folder, "surgery", _body(plan.settings)), ("points.parquet", "sheet.json", "report.html"))
    save_directions([d for site in on.directions.values() for d in site], folder / "directions.safetensors")
    causes = [state(model), *(part.fingerprint() for part in rows.values()), _decisive(plan.settings)]
    points = [
        Point(**kept(folder, [*causes, asdict(one)], lambda one=one: measure(on, one).as_dict()))
        for one in progress(asked, label="surgery", show=show)
    ]
    with new_file(folder / "points.parquet") as aside:
        pd.DataFrame([point.as_dict() for point in points]).to_parquet(aside, index=False)
    sheet(plan.head.title or plan.head.name, points, sweep, on, _decisive(plan.settings)).save(folder)
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


def _body(settings: Settings) -> dict[str, Any]:
    """The settings as a study file has them."""
    return asdict(settings) | {key: list(getattr(settings, key)) for key in ("matrices", "seeds")}
