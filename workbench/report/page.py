"""One self-contained page about a run: no script, no network reference, every text escaped by the template engine."""

from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from workbench.core.store import new_file
from workbench.core.svg import label
from workbench.report import sheet, verdict
from workbench.report.engine import engine
from workbench.report.figure import axes, figure, mark
from workbench.report.folder import Arm, Run, read_run
from workbench.report.layers import panels
from workbench.report.located import located
from workbench.report.plane import symbol
from workbench.report.reading import cautions, paragraph
from workbench.report.table import ARROWS, cell, key_metrics, missing_metrics, moved, seconds
from workbench.report.words import capital, named, titles, underlined

SHOWN_SAMPLES = 3
"""Rows of a split that stand open on the page; the others are folded away."""


def page(run: str | Path, *, out: str | Path | None = None) -> Path:
    """Write the report of a run folder and return where it is.

    The page depends on the folder's contents only: the same run gives the same bytes.

    Args:
        run: a folder written by `workbench run` or `workbench judge`.
        out: the file to write; report.html in the run folder by default.
    Raises: InputError naming what the folder lacks.
    """
    if sheet.is_sheet(run):
        return sheet.page(run, out=out)
    if verdict.is_verdict(run):
        return verdict.page(run, out=out)
    read = read_run(run)
    out = read.path / "report.html" if out is None else Path(out)
    with new_file(out) as aside:
        aside.write_text(render(read), encoding="utf-8")
    return out


def render(run: Run) -> str:
    """The page as a string."""
    templates = _templates()
    x, y = axes(run)
    return templates.get_template("page.html.j2").render(
        style=Markup(templates.get_template("page.css").render()),
        run=run,
        reading=paragraph(run, x, y),
        figure=figure(run),
        keys=key_metrics(run),
        missing=[named(key) for key in missing_metrics(run)],
        located=located(run),
        layers=_layers(run),
        unmoved=titles(arm for arm in run.arms if not arm.layers),
        samples=_samples(run),
        unsampled=titles(arm for arm in run.arms if not arm.samples),
        cautions=cautions(run),
    )


def _templates() -> Environment:
    """The engine with what this page's template asks for."""
    made = engine()
    made.filters |= {"named": named, "label": label, "capital": capital, "underlined": underlined}
    made.globals |= {
        "cell": cell,
        "moved": moved,
        "seconds": seconds,
        "symbol": lambda arm: symbol(mark(arm)),
        "arrows": ARROWS,
        "shown": SHOWN_SAMPLES,
    }
    return made


def _layers(run: Run) -> list[tuple[Arm, Markup]]:
    """The arms that changed layers, each with its panel."""
    import pandas as pd

    rows = [
        {"arm": arm.name, "layer": row["layer"], "ratio": row["ratio"]}
        for arm in run.arms
        for row in arm.layers
        if row["ratio"] is not None
    ]
    drawn = panels(pd.DataFrame(rows)) if rows else {}
    return [(arm, drawn[arm.name]) for arm in run.arms if arm.name in drawn]


def _samples(run: Run) -> dict[str, list[dict[str, Any]]]:
    """For each split its rows as the first arm that has them orders them: prompt, truth, and (arm, answer) of each."""
    splits: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in run.arms:
        for sample in arm.samples or []:
            about = {"prompt": sample["prompt"], "truth": sample["truth"], "answers": []}
            row = splits.setdefault(sample["split"], {}).setdefault(sample["id"], about)
            row["answers"].append((arm, sample["answer"]))
    return {split: list(rows.values()) for split, rows in splits.items()}
