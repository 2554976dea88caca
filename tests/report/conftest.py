"""A synthetic run folder with hostile text, a metric nobody measured, and arms that changed nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(2)>'
NAN = float("nan")

# arm -> role, kind, title, (ROUGE-L recall on forget rows, model utility), both with the interval +- 0.04
ARMS: dict[str, tuple[str, str, str, tuple[float, float]]] = {
    "npo": ("method", "unlearn", IMAGE, (0.34, 0.61)),
    "retain": ("reference", "model", "retrained", (0.30, 0.70)),
    "full": ("untouched", "untouched", "untouched", (0.92, 0.72)),
    "retain-b": ("band", "model", "retrained again", (0.35, 0.68)),
    "ga": ("method", "unlearn", SCRIPT, (0.02, 0.10)),
    "noop": ("method", "unlearn", "npo with lr 0", (0.92, NAN)),
    "surgery": ("method", "edit", "Model Surgery", (0.33, 0.71)),
}


def audit(arm: str) -> dict[str, Any] | None:
    moved = {"npo": 0.8, "ga": 0.4, "noop": 0.0}.get(arm)
    if moved is None:
        return None
    stopped = f"retain_nll above 2.5 {SCRIPT}" if arm == "ga" else ""
    size = {"trainable": 1000, "steps": 35, "tokens": 5000, "seconds": 3.0}
    return {"moved": moved, "moved_of_trainable": moved, "stopped": stopped, **size}


def layers(arm: str) -> list[dict[str, Any]]:
    ratios = {"npo": [0.02, 0.0, 0.2], "ga": [0.05, 0.5, 0.003], "noop": [0.0, 0.0, 0.0]}.get(arm, [])
    return [{"layer": f"model.layers.{i}", "delta_norm": 40 * r, "weight_norm": 40.0, "ratio": r} for i, r in enumerate(ratios)]


def samples(arm: str) -> list[dict[str, str]]:
    answer = {"npo": SCRIPT, "ga": "", "noop": "\x1b[31mred\ud800 \u202eback"}.get(arm, "Her name is Aysha Al-Hashim")
    row = {"prompt": f"Who? {IMAGE}", "truth": "Her full name is Aysha Al-Hashim.", "answer": answer}
    return [{"id": f"{split}-0", "split": split, **row} for split in ("forget", "retain")]


def measured(arm: str, run: str) -> list[dict[str, Any]]:
    """The rows of an arm; utility is missing where it is NaN above, and nobody has probability on retain rows."""
    _, _, _, (rouge, utility) = ARMS[arm]
    rows = [("rouge_l_recall", "forget", rouge, 0.04, 80, "share", "lower", "")]
    rows += [("probability", "forget", rouge / 2, 0.04, 80, "probability", "lower", "")]
    rows += [("forget_quality", "forget", 1.5e-23, NAN, 80, "p-value", "higher", f"the floor is 2.1e-47 {SCRIPT}")]
    rows += [("odd_metric", "holdout", 12.345, 1.0, 9, IMAGE, "", "")]
    if utility == utility:
        rows += [("model_utility_geometric", "all", utility, 0.04, 360, "score", "higher", "")]
    names = ("metric", "split", "value", "low", "high", "n", "unit", "better", "note")
    about = {"run": run, "arm": arm, "method": "", "mask": "", "seed": 7, "seconds": 1.0}
    return [{**about, **dict(zip(names, (m, s, v, v - w, v + w, *rest), strict=True))} for m, s, v, w, *rest in rows]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder; `arms` picks some of ARMS."""

    def make(name: str = "demo", arms: tuple[str, ...] = tuple(ARMS)) -> Path:
        folder = tmp_path / name
        for order, arm in enumerate(arms):
            role, kind, title, _ = ARMS[arm]
            about = {"arm": arm, "title": title, "role": role, "kind": kind, "method": kind, "mask": "", "order": order}
            about |= {
                "options": {"lr": 1e-4, "say": SCRIPT},
                "seconds": 12.5,
                "audit": audit(arm),
                "layers": layers(arm),
            }
            (folder / "arms" / arm).mkdir(parents=True)
            (folder / "arms" / arm / "arm.json").write_text(json.dumps(about))
            (folder / "arms" / arm / "samples.json").write_text(json.dumps(samples(arm)))
        (folder / "config.yaml").write_text(f"name: {name} & {SCRIPT}\nmodel: hub/model # {IMAGE}\nurl: https://evil.example\n")
        (folder / "env.json").write_text(json.dumps({"python": "3.11.2", "system": f"{SCRIPT} \x1b[31m"}))
        frame = pd.DataFrame([row for arm in arms for row in measured(arm, name)])
        frame.to_parquet(folder / "measurements.parquet", index=False)
        return folder

    return make


@pytest.fixture
def run_folder(make_run: Callable[..., Path]) -> Path:
    return make_run()
