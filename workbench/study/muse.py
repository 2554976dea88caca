"""MUSE on a model that fits a laptop: passages and questions are learned, then unlearned, and all six of its criteria are measured.

name: muse                             # the run folder is OUT/muse
model: ../data/organism/full           # is fine-tuned to all documents; paths are relative to the study file
data:
  forget_text: ../data/muse-mini/forget_text.jsonl
  retain_text: ../data/muse-mini/retain_text.jsonl
  holdout_text: ../data/muse-mini/holdout_text.jsonl
  forget_qa: "tofu:forget"
  retain_qa: "tofu:retain"
  root: ../data/tofu-mini
muse:
  retrained: [../data/organism/retain, ../data/organism/retain-b]   # fine-tuned to the retain documents; the first is PrivLeak's
  sizes: {passages: 40, questions: 80, asked: 40, max_tokens: 128}  # see `muse_models.Sizes`
  fine_tuning: {epochs: 14, lr: 2e-3, batch_size: 8}
  unlearn: {npo: {lr: 1e-4}, ...}      # options of unlearn.run, and the rate
  edits: {}                            # see `methods.read_methods`
  seeds: [0, 1]
  budget: 0.05                         # rise of the mean NLL of retain documents, in nats per token, that every method may cost
  max_steps: 40
  batch_size: 8
  budget_rows: 16
  report_rows: 40
  growing: [0.25, 0.5, 1]              # scalability: shares of the documents to forget, each from the fine-tuned model
  folds: 4                             # sustainability: requests one after another
  requested: [npo]                     # methods of these two; all of `unlearn` and `edits` without

    runs/NAME/models/*.safetensors     the fine-tuned models, as Deltas      runs/NAME/points/KEY.json   one measurement
    runs/NAME/measurements.parquet, requests.parquet, sheet.json, report.html

A document is a passage or a solved question. `model` has seen the forget questions before and `retrained` has not, and they are
fine-tuned so, which makes the retrained ones a gold standard for all documents.

Reference: Shi et al. 2025 (MUSE), arXiv:2407.06460. It stops at the first epoch whose utility is below the retrained model's; here
all methods stop at one rise of the retain documents' NLL, so that what they forgot is compared at one price.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.core.errors import unknown
from workbench.core.records import Examples
from workbench.core.runtime import progress
from workbench.core.store import new_file
from workbench.evaluate.suites.muse import QUESTIONS, TEXTS
from workbench.load.models import Model, check_source
from workbench.load.passages import passages
from workbench.report import page
from workbench.study.file import known, mapping, relative, resolve
from workbench.study.folder import begin
from workbench.study.head import Head, count, listing, positive, read_head, share
from workbench.study.judge import split_retain
from workbench.study.methods import Training, read_methods
from workbench.study.muse_grid import Arm, Bench, Kind, Planned, as_it_is, folds, frame, method_arm, portions, privacy, requests
from workbench.study.muse_models import FineTuning, Sizes, documents, learned, plain
from workbench.study.muse_sheet import sheet

RESULTS = ("measurements.parquet", "requests.parquet", "sheet.json", "report.html")
LR = 1e-4
KINDS: tuple[Kind, ...] = ("growing", "in sequence")


@dataclass(frozen=True)
class Settings:
    """The mapping `muse`, checked; see the module."""

    retrained: tuple[str, ...]
    methods: tuple[Planned, ...]
    sizes: Sizes = field(default_factory=Sizes)
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    seeds: tuple[int, ...] = (0,)
    training: Training = field(default_factory=Training)
    budget_rows: int = 16
    report_rows: int = 40
    growing: tuple[float, ...] = (0.25, 0.5, 1.0)
    folds: int = 4
    requested: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A study of MUSE, checked."""

    head: Head
    settings: Settings


KEYS = (
    *("retrained", "sizes", "fine_tuning", "unlearn", "edits", "seeds", "budget", "max_steps", "batch_size"),
    *("budget_rows", "report_rows", "growing", "folds", "requested"),
)


def read(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """A study file with overrides such as "muse.budget=0.1", fully checked.

    Raises: as `read_head`, also for values of `muse`; UnknownNameError for a method or an option nobody knows.
    """
    head, given = read_head(path, overrides, "muse", splits=(*TEXTS, *QUESTIONS))
    known("key of muse", given, KEYS)
    retrained = tuple(resolve(one, Path(path).parent) for one in listing("muse.retrained", given.get("retrained"), str))
    for one in retrained:
        check_source(one)
    methods = _methods(given)
    requested = listing("muse.requested", given.get("requested", [one.method.name for one in methods]), str)
    for name in requested:
        if name not in {one.method.name for one in methods}:
            raise unknown("method of muse.requested", name, [one.method.name for one in methods])
    wholes = {key: count(f"muse.{key}", given.get(key, getattr(Settings, key))) for key in ("budget_rows", "report_rows", "folds")}
    settings = Settings(
        retrained,
        methods,
        _record("sizes", Sizes, given),
        _record("fine_tuning", FineTuning, given),
        listing("muse.seeds", given.get("seeds", [0]), int),
        _training(given),
        growing=_shares(given.get("growing", Settings.growing)),
        requested=requested,
        **wholes,
    )
    return Plan(head, settings)


def run(study: str | Path, *, out: str | Path = "runs", overrides: Iterable[str] = (), show: bool = True) -> Path:
    """Run a study of MUSE, or go on with it; returns the run's folder.

    Raises: any InputError before the first file is written.
    """
    plan = read(study, overrides)
    head, settings = plan.head, plan.settings
    folder = Path(out) / head.name
    on, rest, sets = _bench(plan, folder, show=show)
    arms = [as_it_is(on, on.target, "fine-tuned"), *(as_it_is(on, model, model.name) for model in rest)]
    for one, seed in progress([(m, s) for m in settings.methods for s in settings.seeds], label="methods", show=show):
        arms.append(method_arm(on, one, seed))
    every: list[tuple[Planned, Kind, int]] = [
        (one, kind, seed)
        for one in settings.methods
        if one.method.name in settings.requested
        for kind in KINDS
        for seed in settings.seeds[:1]
    ]
    found = [requests(on, one, kind, sets[kind], seed) for one, kind, seed in progress(every, label="requests", show=show)]
    _write(folder, arms, pd.concat(found, ignore_index=True))
    sheet(head.title or head.name, arms, found, settings.training, _plain(plan, folder)).save(folder)
    page(folder)
    return folder


def _bench(plan: Plan, folder: Path, *, show: bool) -> tuple[Bench, list[Model], dict[Kind, list[Examples]]]:
    """What all measurements share, the retrained models, and the requests; everything is checked before the folder is made."""
    head, settings = plan.head, plan.settings
    base = plain(head.load(), "fine-tuned")
    rows = {split: passages(head.data[split]) if split in TEXTS else head.rows(split) for split in (*TEXTS, *QUESTIONS)}
    docs = documents(base, rows, settings.sizes)
    parts = split_retain(docs.forget, docs.retain, budget_rows=settings.budget_rows, report_rows=settings.report_rows)
    mixed = docs.mixed()
    sets: dict[Kind, list[Examples]] = {"growing": portions(mixed, settings.growing), "in sequence": folds(mixed, settings.folds)}
    begin(folder, head.config(folder, "muse", _plain(plan, folder)), RESULTS)
    how = settings.fine_tuning
    gold = [
        learned(
            folder, f"retrained-{seed}", plain(head.load(name), f"retrained {seed + 1}"), docs.retain, how, seed=seed, show=show
        )
        for seed, name in enumerate(settings.retrained)
    ]
    target = learned(folder, "fine-tuned", base, docs.all, how, seed=0, show=show)
    reference = privacy(gold[0], docs, settings.sizes)
    return Bench(folder, target, docs, parts, reference, settings.sizes, settings.training), gold, sets


def _methods(given: Mapping[str, Any]) -> tuple[Planned, ...]:
    """The methods, each with its rate."""
    bodies = mapping("muse.unlearn", given.get("unlearn") or {})
    trained = {str(name): dict(mapping(f"muse.unlearn.{name}", body or {})) for name, body in bodies.items()}
    rates = {name: positive(f"muse.unlearn.{name}: lr", body.pop("lr", LR)) for name, body in trained.items()}
    found = read_methods("muse", trained, given.get("edits") or {})
    return tuple(Planned(one, rates.get(one.name, LR)) for one in found)


def _shares(value: Any) -> tuple[float, ...]:
    """`muse.growing` as shares; StudyError unless it is a list of them, none twice."""
    listed = value if isinstance(value, list | tuple) else [value]
    shares = tuple(share("muse.growing", one) for one in listed)
    return listing("muse.growing", shares if listed is value else value, float)


def _training(given: Mapping[str, Any]) -> Training:
    usual = Training()
    return Training(
        positive("muse.budget", given.get("budget", usual.budget)),
        count("muse.max_steps", given.get("max_steps", usual.max_steps)),
        count("muse.batch_size", given.get("batch_size", usual.batch_size)),
    )


def _record(key: str, kind: Any, given: Mapping[str, Any]) -> Any:
    """The mapping `key` as a record of whole numbers, and a rate."""
    values = mapping(f"muse.{key}", given.get(key, {}))
    known(f"key of muse.{key}", values, [f.name for f in fields(kind)])
    for name, value in values.items():
        positive(f"muse.{key}.{name}", value) if name == "lr" else count(f"muse.{key}.{name}", value)
    return kind(**values)


def _write(folder: Path, arms: list[Arm], found: pd.DataFrame) -> None:
    for name, table in (("measurements", frame(folder.name, arms)), ("requests", found)):
        with new_file(folder / f"{name}.parquet") as aside:
            table.to_parquet(aside, index=False)


def _plain(plan: Plan, folder: Path) -> dict[str, Any]:
    """The mapping as it is written into a run folder: every default filled in, paths relative to it."""
    settings = plan.settings
    return {
        "retrained": [relative(one, folder) for one in settings.retrained],
        "sizes": asdict(settings.sizes),
        "fine_tuning": asdict(settings.fine_tuning),
        "unlearn": {
            one.method.name: {**one.method.options, "lr": one.lr} for one in settings.methods if one.method.kind == "unlearn"
        },
        "edits": {
            one.method.name: {**one.method.options, "method": one.method.called}
            for one in settings.methods
            if one.method.kind == "edit"
        },
        "seeds": list(settings.seeds),
        **asdict(settings.training),
        "budget_rows": settings.budget_rows,
        "report_rows": settings.report_rows,
        "growing": list(settings.growing),
        "folds": settings.folds,
        "requested": list(settings.requested),
    }
