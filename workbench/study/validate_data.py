"""Does an attribution of data tell what retraining would do? Methods held against a bank of retrains, on one's own rows.

name: validate-data                  # the run folder is OUT/validate-data
data: {train: ../data/capitals/train.jsonl, query: ../data/capitals/query.jsonl}   # paths are relative to the study file
validate_data:
  start: small                       # an untrained Llama of 0.1 million weights for these texts; or a model folder or hub id
  subsets: 60                        # models of the bank, each trained on `share` of the rows
  share: 0.5
  seeds: [0, 1]                      # of the order of training; every subset is trained with each
  recipe: {epochs: 20, lr: 2e-3}     # how: see `bank.Recipe`
  remove: 0.05                       # of the rows: those a method ranks highest are left out, and the model is trained again
  random_drops: 3                    # as many rows by chance, so often
  methods: {EK-FAC: {influence: ekfac}, ...}   # see `validate_data_methods`

Two questions. `lds`: do a method's sums over a subset order the bank's models by their losses on the queries? And: do the queries
suffer more when the rows it ranks highest are left out than when as many random rows are?

    runs/NAME/points/KEY.json   losses of one retrain     runs/NAME/influence/KEY.safetensors   one method on one model
    runs/NAME/bank.safetensors, methods.parquet, sheet.json, report.html
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from workbench.core.errors import StudyError
from workbench.core.numerics import permutation
from workbench.core.records import Examples
from workbench.core.registry import Member
from workbench.core.runtime import pick_device, progress
from workbench.core.store import new_file
from workbench.load.models import Model, check_source
from workbench.report import page
from workbench.study.bank import Bank, Bench, Recipe, draw_subsets, fill, small_start
from workbench.study.file import known, mapping, relative, resolve
from workbench.study.folder import begin
from workbench.study.head import Head, count, listing, positive, read_head, share
from workbench.study.lds import lds
from workbench.study.validate_data_methods import DEFAULTS, Full, Labels, Method, computed, mean_values, method, read_labels
from workbench.study.validate_data_rehearsal import rehearse
from workbench.study.validate_data_result import Outcome, Result, mean_rise, removal
from workbench.study.validate_data_sheet import sheet

SMALL = "small"
SPLITS = ("train", "query")
RESULTS = ("bank.safetensors", "methods.parquet", "sheet.json", "report.html")


@dataclass(frozen=True)
class Settings:
    """The mapping `validate_data`, checked; see the module."""

    start: str = SMALL
    subsets: int = 60
    share: float = 0.5
    seeds: tuple[int, ...] = (0, 1)
    recipe: Recipe = field(default_factory=Recipe)
    remove: float = 0.05
    random_drops: int = 3
    methods: tuple[Method, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A study, checked."""

    head: Head
    settings: Settings


def read(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """A study file with overrides such as "validate_data.subsets=20", fully checked.

    Raises: as `read_head`, also for values of `validate_data`; UnknownNameError for a method or an option nobody knows.
    """
    head, body = read_head(path, overrides, "validate_data", splits=SPLITS, model=False)
    return Plan(head, _settings(body, Path(path).parent))


def _settings(body: Mapping[str, Any], folder: Path) -> Settings:
    """The settings of a study file, defaults filled in."""
    known("key of validate_data", body, [f.name for f in fields(Settings)])
    start = str(body.get("start", SMALL))
    if start != SMALL:
        start = resolve(start, folder)
        check_source(start)
    raw = mapping("validate_data.recipe", body.get("recipe", {}))
    plain = Settings()
    found = Settings(
        start=start,
        subsets=count("validate_data.subsets", body.get("subsets", plain.subsets), least=3),
        share=share("validate_data.share", body.get("share", plain.share)),
        seeds=listing("validate_data.seeds", body.get("seeds", plain.seeds), int),
        recipe=Recipe(**Member("recipe", Recipe).check_options(dict(raw))),
        remove=share("validate_data.remove", body.get("remove", plain.remove)),
        random_drops=count("validate_data.random_drops", body.get("random_drops", plain.random_drops), least=2),
        methods=tuple(method(str(name), given) for name, given in mapping("methods", body.get("methods", DEFAULTS)).items()),
    )
    for name in ("epochs", "batch_size", "lr"):
        positive(f"validate_data.recipe.{name}", getattr(found.recipe, name))
    if found.share == 1 or found.remove == 1:
        raise StudyError(
            "validate_data.share and validate_data.remove must be below 1: a model without rows, or with all, says nothing."
        )
    if not found.methods:
        raise StudyError(
            "validate_data.methods is empty, expected at least one method; without the key, the usual ones are compared."
        )
    return found


def run(study: str | Path, *, out: str | Path = "runs", overrides: Iterable[str] = (), show: bool = True) -> Path:
    """Run a study of data attribution, or go on with it; returns the run's folder.

    Raises: any InputError before the first file is written: recipe and methods are tried on a few rows first (`rehearse`).
    """
    plan = read(study, overrides)
    settings = plan.settings
    rows = {split: plan.head.rows(split) for split in SPLITS}
    labels = read_labels(settings.methods, plan.head.data, rows["train"], rows["query"])
    folder = Path(out) / plan.head.name
    model = _start(plan, rows["train"], rows["query"])
    on = Bench(folder, model, rows["train"], rows["query"], settings.recipe)
    full = Full(on, folder)
    subsets = draw_subsets(len(on.train), settings.subsets, share=settings.share)
    rehearse(full, settings.methods, settings.seeds, labels)
    begin(folder, plan.head.config(folder, "validate_data", _body(settings, folder)), RESULTS)
    bank = fill(on, subsets, settings.seeds, show=show)
    bank.save(folder / "bank.safetensors")
    result = compare(full, bank, settings, labels, show=show)
    with new_file(folder / "methods.parquet") as aside:
        pd.DataFrame([one.as_dict() for one in result.outcomes]).to_parquet(aside, index=False)
    sheet(plan.head.title or plan.head.name, result).save(folder)
    page(folder)
    return folder


def _start(plan: Plan, train: Examples, query: Examples) -> Model:
    """The model that every retrain begins with."""
    if plan.settings.start != SMALL:
        return plan.head.load(plan.settings.start)
    model = small_start(train, query)
    if plan.head.device not in ("auto", "cpu"):
        torch.nn.Module.to(model.hf, pick_device(plan.head.device))
    return model


def compare(full: Full, bank: Bank, settings: Settings, labels: Labels | None, *, show: bool = True) -> Result:
    """Every method against the bank, and against the removal of rows."""
    on = full.on
    all_rows = np.ones(len(on.train), dtype=np.bool_)
    size = max(1, round(settings.remove * len(on.train)))
    start = np.stack([on.losses(all_rows, seed) for seed in settings.seeds])
    drops = [permutation(len(on.train), 7_000_003 + k)[:size] for k in range(settings.random_drops)]
    random = np.stack([_without(on, rows, settings.seeds) - start for rows in progress(drops, label="random drops", show=show)])
    outcomes = []
    for one in progress(settings.methods, label="methods", show=show):
        found = [computed(full, one, seed, labels) for seed in settings.seeds]
        values = mean_values(found)
        top = np.argsort(-values.mean(axis=0), kind="stable")[:size].tolist()
        rise = _without(on, top, settings.seeds) - start
        seconds = float(np.mean([each.provenance.notes["seconds"] for each in found]))
        dropped = tuple(on.train.ids[i] for i in top)
        outcomes.append(Outcome(one, lds(values, bank.subsets, bank.losses), removal(rise, random), dropped, seconds))
    return Result(bank, tuple(outcomes), mean_rise(random), len(random), size, start)


def _without(on: Bench, rows: Sequence[int], seeds: Sequence[int]) -> Float[np.ndarray, "seed query"]:
    """Losses of the queries after training on all but these rows."""
    used: Bool[np.ndarray, "train"] = np.ones(len(on.train), dtype=np.bool_)
    used[list(rows)] = False
    return np.stack([on.losses(used, seed) for seed in seeds])


def _body(settings: Settings, folder: Path) -> dict[str, Any]:
    """The mapping as it is written into the run folder."""
    plain = {f.name: getattr(settings, f.name) for f in fields(Settings)}
    methods = {one.name: one.plain for one in settings.methods}
    start = settings.start if settings.start == SMALL else relative(settings.start, folder)
    return {**plain, "start": start, "seeds": list(settings.seeds), "recipe": asdict(settings.recipe), "methods": methods}
