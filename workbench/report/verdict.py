"""One self-contained page about a study of localizations, and its table in the terminal. Computes nothing about models."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from workbench.core.errors import InputError
from workbench.core.store import existing, new_file, read_json
from workbench.core.svg import clean, number
from workbench.report.curves import FEW_STEPS, Row, budget_line, cell, legend, panels, records
from workbench.report.engine import engine
from workbench.report.words import listed

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

FILES = ("config.yaml", "env.json", "verdict.parquet", "areas.parquet")


@dataclass(frozen=True, eq=False)
class Judged:
    """A run folder of `workbench judge`: its settings, its points, and one row a set and comparison."""

    path: Path
    config: dict[str, Any]
    text: str
    env: dict[str, str]
    points: "pd.DataFrame"
    areas: "pd.DataFrame"

    @property
    def chosen(self) -> dict[str, Any]:
        """The options of the judge."""
        return self.config["judge"]

    def rows(self, against: str) -> list[Row]:
        """The areas of one comparison, the largest advantage first and what was not measured last."""
        rows = [row for row in records(self.areas) if row["against"] == against]
        return sorted(rows, key=lambda row: -row["area"] if row["area"] == row["area"] else float("inf"))


def is_verdict(run: str | Path) -> bool:
    """Whether a run folder is one of a study of localizations, finished or not: its config.yaml has a mapping `judge`."""
    path = Path(run) / "config.yaml"
    if (Path(run) / "verdict.parquet").exists() or not path.is_file():
        return (Path(run) / "verdict.parquet").exists()
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(config, dict) and isinstance(config.get("judge"), dict)


def read_judged(run: str | Path) -> Judged:
    """Read a run folder.

    Raises: InputError naming the file that is missing or broken.
    """
    import pandas as pd

    path = existing(run)
    if not (path / "verdict.parquet").exists():
        raise InputError(
            f"{path}: there is no verdict yet (no verdict.parquet): the run did not finish. Run it again with `workbench run "
            f"{path / 'config.yaml'} --out {path.parent}`; finished points are kept."
        )
    for name in FILES:
        if not (path / name).exists():
            raise InputError(f"{path}: has no {name}. Is it a folder written by `workbench judge`, and did that run finish?")
    text = (path / "config.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    if not isinstance(config, dict) or not isinstance(config.get("judge"), dict):
        raise InputError(f"{path / 'config.yaml'}: has no mapping 'judge'; expected the settings of a localization study.")
    env = {str(key): str(value) for key, value in read_json(path / "env.json").items()}
    return Judged(path, config, text, env, *(pd.read_parquet(path / f"{name}.parquet") for name in ("verdict", "areas")))


def page(run: str | Path, *, out: str | Path | None = None) -> Path:
    """Write the report of a run folder and return where it is; the same run gives the same bytes.

    Args: out: the file to write; report.html in the run folder by default.
    Raises: InputError naming what the folder lacks.
    """
    read = read_judged(run)
    out = read.path / "report.html" if out is None else Path(out)
    with new_file(out) as aside:
        aside.write_text(render(read), encoding="utf-8")
    return out


def render(run: Judged) -> str:
    """The page as a string."""
    templates = engine()
    outside = {row["set"]: row for row in run.rows("outside")}
    return templates.get_template("verdict.html.j2").render(
        style=Markup(templates.get_template("page.css").render()),
        run=run,
        reading=paragraph(run),
        panels=panels(run.points),
        legend=legend(),
        rows=[(row, cell(row), outside[row["set"]], cell(outside[row["set"]])) for row in run.rows("random")],
        options={name: _options(name, body) for name, body in run.chosen["scores"].items()},
        remarks=remarks(run),
        settings={key: value for key, value in run.chosen.items() if key != "scores"},
        points=[_shown(row) for row in records(run.points)],
        cautions=cautions(run),
    )


def paragraph(run: Judged) -> str:
    """What was done and what came out, in sentences."""
    rows = run.rows("random")
    many = f"{len(rows)} located sets of weights were" if len(rows) != 1 else "One located set of weights was"
    sentences = [f"{many} judged inside the set, in a matched random set, and outside it, each time by {budget_line(run.chosen)}."]
    for word, said in (
        ("beats random", "forgot more than the random set"),
        ("worse than random", "forgot less than the random set"),
        ("not told apart", "could not be told apart from the random set"),
        ("no interval", "have a difference from the random set but no interval, and so no verdict"),
        ("not measured", "could not be compared with the random set"),
    ):
        which = [row for row in rows if row["verdict"] == word]
        if which:
            sentences.append(f"{len(which)} of {len(rows)} {said}: {listed(_said(row) for row in which)}.")
    return " ".join(sentences)


def _said(row: Row) -> str:
    value, bounds = cell(row)
    return f"{row['set']} ({value} {bounds})".replace(" )", ")") if value != "–" else str(row["set"])


def _options(name: str, body: dict[str, Any]) -> dict[str, Any]:
    """How a set was found, without what its name says already."""
    return {key: value for key, value in body.items() if (key, value) != ("method", name)}


def cautions(run: Judged) -> list[str]:
    """What a reader must know before quoting a number."""
    n, sets = len(run.chosen["seeds"]), len(set(run.points["set"]))
    rows = int(run.chosen["budget_rows"])
    drawn = "random set and order of training" if run.chosen["intervention"] == "unlearn" else "the random set alone"
    said = [
        f"The budget is a rise of the mean NLL by {run.chosen['budget']:g} nats per token on {rows} retain rows that are neither "
        "trained on nor reported. At another budget, or with another measure of what must be kept, the order may change.",
        "An advantage is the difference in the rise of the forget rows' mean NLL, in nats per token, averaged over the logarithm "
        "of the size: above zero, changing the located weights forgets more than changing as many others at the same cost.",
    ]
    if n == 1:
        said.append("One seed: no interval can be given, and so no verdict word. Run at least three.")
    else:
        said.append(
            f"Brackets on advantages are 95 % Student-t intervals over {n} seeds ({drawn})"
            + (", so few that only a large difference is told apart" if n < 4 else "")
            + ". They say nothing about other forget rows or another model."
        )
    if sets > 1 and n > 1:
        said.append(f"{sets} sets are compared, each at the 5 % level; with many, some will beat random by chance.")
    points = records(run.points)
    missed = [row for row in points if not row["reached"]]
    if missed:
        said.append(
            f"The budget was not spent by {listed(_which(missed))}. Such a size is left out, unless this side forgot more than the "
            "other all the same: then the advantage is at least, or at most, what was found."
        )
    said += _near(points)
    if run.chosen["intervention"] == "unlearn":
        said += _short(points)
    else:
        said.append(
            "The share of the weights taken away is a crossing of the budget found by bisection; where the cost does not rise "
            "evenly with the share, there may be others."
        )
    spent = [float(row["retain_change"]) for row in points if row["reached"]]
    if spent:
        said.append(
            f"On the reported retain rows the NLL rose by {number(min(spent))} to {number(max(spent))} nats per token: the budget "
            "is equal on the rows it is measured on, and only about equal elsewhere."
        )
    return said


def _near(points: list[Row]) -> list[str]:
    """The points that crossed the budget and went back further than they should, because the search could not come closer."""
    far = [row for row in points if row["reached"] and row["note"]]
    return [f"The budget was crossed, but not met, by {listed(_which(far))}: compare their budget_used."] if far else []


def _short(points: list[Row]) -> list[str]:
    """Mean steps of inside and random by set, and the sides that ended before so many that a step is a small part of the way."""
    steps: dict[tuple[str, str], list[float]] = {}
    for row in points:
        if not _absent(row["steps"]):
            steps.setdefault((str(row["set"]), str(row["side"])), []).append(float(row["steps"]))
    means = {key: sum(found) / len(found) for key, found in steps.items()}
    shown = [
        f"{name} {means[name, 'inside']:.3g} and {means[name, 'random']:.3g}"
        for name in dict.fromkeys(name for name, _ in means)
        if (name, "inside") in means and (name, "random") in means
    ]
    said = [f"Mean steps inside and in the random set: {listed(shown)}. The last step is taken in part."] if shown else []
    few = sorted({f"{row['set']} at {row['size']:g} {row['side']}" for row in points if row["steps"] < FEW_STEPS})
    if few:
        said.append(
            f"Fewer than {FEW_STEPS} steps were enough for {listed(few)}: what such a run forgets rests on a few batches and "
            "on the optimizer's first steps. A lower rate makes more of them."
        )
    return said


def _which(missed: list[Row]) -> list[str]:
    """The points that did not spend the budget, the seeds of one set, size and side together, with the first one's reason."""
    groups: dict[str, list[Row]] = {}
    for row in missed:
        groups.setdefault(f"{row['set']} at {row['size']:g} {row['side']}", []).append(row)
    return [f"{where} ({len(rows)} run{'s' if len(rows) > 1 else ''}; {rows[0]['note']})" for where, rows in groups.items()]


def _absent(value: Any) -> bool:
    """None, NaN, or pandas' NA."""
    import pandas as pd

    return bool(pd.isna(value))


def remarks(run: Judged) -> list[str]:
    """What the areas' notes say, each once, with the sets it is about."""
    rows = [row for row in records(run.areas) if row["note"]]
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row["against"], row["note"]), []).append(str(row["set"]))
    return [f"{listed(sets)} against {against}: {note}" for (against, note), sets in groups.items()]


def _shown(row: Row) -> dict[str, str]:
    """A point as text."""
    effort = row["removed"] if _absent(row["steps"]) else row["steps"]
    changes: dict[str, str] = {}
    for name in ("forget", "retain", "forget_probability", "retain_probability"):
        value, low, high = (row[f"{name}_{part}"] for part in ("change", "low", "high"))
        bounds = "" if _absent(value) else f"[{number(low)}, {number(high)}]"
        changes |= {name: "–" if _absent(value) else number(value), f"{name}_bounds": bounds}
    used = "–" if _absent(row["budget_used"]) else number(row["budget_used"])
    return changes | {
        "set": str(row["set"]),
        "side": str(row["side"]),
        "size": f"{row['size']:g}",
        "weights": f"{row['weights']:,}",
        "seed": "–" if _absent(row["seed"]) else f"{int(row['seed'])}",
        "used": used + ("" if row["reached"] else " (not reached)"),
        "effort": "–" if _absent(effort) else number(effort),
        "seconds": f"{row['seconds']:.1f}",
    }


def print_table(run: str | Path, *, console: "Console | None" = None) -> None:
    """Print the areas with their intervals and verdicts in the terminal; all text is cleaned, and no markup is read."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    read = read_judged(run)
    table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 2, 0, 0))
    table.add_column("located set", overflow="fold")
    for name in ("advantage over random\nnats/token", "verdict", "advantage over outside\nnats/token", "verdict"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    table.add_column("sizes")
    outside = {row["set"]: row for row in read.rows("outside")}
    for row in read.rows("random"):
        other = outside[row["set"]]
        texts = [row["set"], "\n".join(cell(row)), row["verdict"], "\n".join(cell(other)), other["verdict"], row["sizes"] or "none"]
        table.add_row(*(Text(clean(str(text))) for text in texts))
    console = console or Console()
    console.print(table)
    for remark in remarks(read):
        console.print(Text(clean(remark)))
