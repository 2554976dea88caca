"""Run a study: every arm into a folder of its own that is complete or absent, then one table and one page.

    runs/NAME/config.yaml           the study, resolved; running it again repeats the run
    runs/NAME/env.json              machine and versions
    runs/NAME/scores/*.safetensors  weight scores, shared by the arms that ask for the same ones
    runs/NAME/arms/ARM/             arm.json, measurements.parquet, samples.json, tokens/, delta.safetensors, mask.safetensors
    runs/NAME/measurements.parquet  all arms
    runs/NAME/report.html

A killed run goes on with the first arm whose folder is absent or was made from something else (another option, model, row).
"""

import importlib
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from workbench import __version__
from workbench.core.measurements import Measurements
from workbench.core.records import Examples, check_disjoint
from workbench.core.runtime import environment, progress_bar
from workbench.core.store import file_sha256, new_file, new_folder, read_json, text_sha256, write_json
from workbench.evaluate import TokenTable, tofu
from workbench.evaluate import read as read_tables
from workbench.evaluate.suites import check_data
from workbench.load.datasets import examples
from workbench.load.models import Model, load
from workbench.report import page
from workbench.study.arms import Outcome, carry_out
from workbench.study.config import SPLITS, Arm, Study
from workbench.study.config import read as read_study
from workbench.study.file import has, relative

KINDS = {
    "judge": "workbench.study.localization",
    "surgery": "workbench.study.surgery",
    "concepts": "workbench.study.concepts",
    "displacement": "workbench.study.displacement",
    "validate_data": "workbench.study.validate_data",
    "compare": "workbench.study.compare",
    "muse": "workbench.study.muse",
    "attacks": "workbench.study.attacks",
}
"""Kinds of study other than arms: the mapping a file has, and the module whose `run` carries it out."""


@dataclass(frozen=True, eq=False)
class _Setting:
    """What every arm shares. model is loaded and whole; data: rows by split."""

    study: Study
    folder: Path
    model: Model
    data: dict[str, Examples]

    @property
    def measured(self) -> dict[str, Examples]:
        """The rows that are measured: all but the retain rows beyond the first `retain_rows`."""
        return {**self.data, "retain": self.data["retain"][: self.study.evaluate.retain_rows]}

    def key(self, arm: Arm) -> str:
        """Hash of all that decides an arm's result."""
        rows = {split: rows.fingerprint() for split, rows in self.data.items()}
        reference = self.study.reference()
        gold = self.key(reference) if reference is not None and reference is not arm else None
        plain = {key: value for key, value in asdict(arm).items() if key not in ("title", "model")}
        own = _folder_key(arm.model) if arm.model else None
        about = [plain, own, asdict(self.study.evaluate), rows, gold]
        where = [__version__, str(self.model.device), str(self.model.dtype), self.model.text_key()]
        return text_sha256([*where, self.model.base_fingerprint(), *about])


def run(study: str | Path, *, out: str | Path = "runs", overrides: Iterable[str] = (), show: bool = True) -> Path:
    """Run a study file, or go on with it; returns the run's folder.

    Args:
        study: a study file; see `study.config`, or the modules in KINDS.
        out: the folder that holds runs.
        overrides: such as "arms.npo.unlearn.lr=1e-3".
        show: draw a progress bar with the time left on standard error.
    Raises: any InputError before the first file is written.
    """
    for key, module in KINDS.items():
        if has(study, key):
            return importlib.import_module(module).run(study, out=out, overrides=overrides, show=show)
    plan = read_study(study, overrides)
    data = {split: examples(plan.data[split], root=plan.data.get("root")) for split in SPLITS}
    check_disjoint(data["forget"], data["retain"])
    check_data({**data, "retain": data["retain"][: plan.evaluate.retain_rows]})
    model = load(plan.model, device=plan.device, dtype=plan.dtype)
    setting = _Setting(plan, Path(out) / plan.name, model, data)
    setting.folder.mkdir(parents=True, exist_ok=True)
    _write_config(setting)
    write_json(setting.folder / "env.json", environment())
    ordered = sorted(plan.arms, key=lambda arm: arm.role != "reference")  # its answers are what the others are compared with
    with progress_bar(show=show) as bar:
        task = bar.add_task("study", total=len(ordered))
        for arm in ordered:
            bar.update(task, description=arm.title)
            _arm(setting, arm)
            bar.advance(task)
    collect(setting.folder, [arm.name for arm in plan.arms])
    page(setting.folder)
    return setting.folder


def _folder_key(model: str) -> Any:
    """What is in a model folder, by content; a hub id stands for itself."""
    folder = Path(model)
    return {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file()} if folder.is_dir() else model


def collect(folder: Path, arms: list[str]) -> pd.DataFrame:
    """Join the arms' measurements into `measurements.parquet`, in the study's order."""
    frames = []
    for name in arms:
        about = read_json(folder / "arms" / name / "arm.json")
        frame = Measurements.load(folder / "arms" / name / "measurements.parquet").frame()
        fixed = {"run": folder.name, "arm": name} | {key: about[key] for key in ("method", "mask", "seed", "seconds")}
        frames.append(frame.assign(**fixed))
    first = ["run", "arm", "method", "mask", "seed", "metric", "split", "value", "low", "high", "n", "unit", "seconds"]
    every = pd.concat(frames, ignore_index=True)
    every = every.reindex(columns=first + [column for column in every if column not in first])
    with new_file(folder / "measurements.parquet") as aside:
        every.to_parquet(aside, index=False)
    return every


def _write_config(setting: _Setting) -> None:
    """The study with every default filled in, its paths relative to the run's folder."""
    plain: dict[str, Any] = asdict(setting.study)
    arms: dict[str, Any] = {}
    for arm in plain["arms"]:
        body = {key: value for key, value in arm.items() if key not in ("name", "seed") and value}
        if "model" in body:
            body["model"] = relative(body["model"], setting.folder)
        arms[arm["name"].split("@")[0]] = body  # npo@0 and npo@1 are one arm and two seeds
    plain |= {"arms": arms, "seeds": list(setting.study.seeds), "model": relative(plain["model"], setting.folder)}
    plain["data"] = {key: relative(value, setting.folder) for key, value in plain["data"].items()}
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    with new_file(setting.folder / "config.yaml") as aside:
        aside.write_text(text, encoding="utf-8")


def _arm(setting: _Setting, arm: Arm) -> None:
    """Carry out one arm, unless its folder is there and was made from the same things."""
    folder = setting.folder / "arms" / arm.name
    key = setting.key(arm)
    if (folder / "arm.json").exists() and read_json(folder / "arm.json")["key"] == key:
        return
    begin = time.perf_counter()
    outcome = carry_out(arm, setting.model, setting.data, scores_folder=setting.folder / "scores")
    with outcome.shown() as model:
        tables = read_tables(model, setting.measured, generate=setting.study.evaluate.generate)
    reference = _reference_tables(setting)
    measured = tofu(tables, reference if arm.role != "reference" else None, seed=arm.seed)
    with new_folder(folder) as aside:
        for split, table in tables.items():
            table.save(aside / "tokens" / f"{split}.parquet")
        measured.save(aside / "measurements.parquet")
        write_json(aside / "samples.json", _samples(setting, tables))
        if outcome.delta is not None:
            outcome.delta.save(aside / "delta.safetensors")
        if outcome.mask is not None:
            outcome.mask.save(aside / "mask.safetensors")
        write_json(aside / "arm.json", _about(setting, arm, outcome, key, time.perf_counter() - begin))


def _reference_tables(setting: _Setting) -> dict[str, TokenTable] | None:
    arm = setting.study.reference()
    if arm is None:
        return None
    folder = setting.folder / "arms" / arm.name / "tokens"
    return {split: TokenTable.load(folder / f"{split}.parquet") for split in SPLITS} if folder.exists() else None


def _samples(setting: _Setting, tables: dict[str, TokenTable]) -> list[dict[str, str]]:
    """Evenly spaced forget and retain rows with what the model answered."""
    chosen: list[dict[str, str]] = []
    for split in ("forget", "retain"):
        rows = setting.measured[split]
        answers = dict(zip(tables[split].ids, tables[split].generated, strict=True))
        step = max(1, len(rows) // setting.study.evaluate.samples)
        for row in rows[::step][: setting.study.evaluate.samples]:
            said = answers[row.id] or ""
            chosen.append({"id": row.id, "split": split, "prompt": row.prompt, "truth": row.response, "answer": said})
    return chosen


def _about(setting: _Setting, arm: Arm, outcome: Outcome, key: str, seconds: float) -> dict[str, Any]:
    mask = "" if arm.mask is None else arm.mask.words()
    return {
        "key": key,
        "arm": arm.name,
        "title": arm.title,
        "role": arm.role,
        "kind": arm.kind,
        "method": arm.method,
        "mask": mask,
        "seed": arm.seed,
        "options": dict(arm.unlearn or arm.edit),
        "order": [a.name for a in setting.study.arms].index(arm.name),
        "seconds": seconds,
        "audit": outcome.audit,
        "layers": outcome.layers,
        "notes": outcome.notes,
        "environment": environment(),
    }
