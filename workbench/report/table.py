"""The result table, arms by key metrics, each with its interval: as a frame, in the terminal, over several runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.errors import InputError
from workbench.core.measurements import Measurement
from workbench.core.svg import clean, label, number, percent
from workbench.report import sheet, verdict
from workbench.report.folder import Arm, Key, Run, read_run

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

FORGETTING: tuple[Key, ...] = (("rouge_l_recall", "forget"), ("probability", "forget"))
UTILITY: tuple[Key, ...] = (("model_utility_geometric", "all"), ("model_utility_arithmetic", "all"))
KEPT: tuple[Key, ...] = (("rouge_l_recall", "retain"), ("probability", "retain"))
KEYS = (*FORGETTING, ("ks_distance", "forget"), ("forget_quality", "forget"), *UTILITY, *KEPT)
"""What the short table shows, where it was measured; the page lists everything else below it."""
ARROWS = {"higher": "↑", "lower": "↓"}
ARM_WIDTH, METRIC_WIDTH = 26, 19
"""Columns of the terminal table, in characters."""


def key_metrics(run: Run) -> list[Key]:
    """Those of KEYS that the run measured; its first six metrics if it measured none of them."""
    return [key for key in KEYS if key in run.metrics] or list(run.metrics)[:6]


def missing_metrics(run: Run) -> list[Key]:
    """Those of KEYS that nobody measured, leaving out the second name of a utility that is there."""
    absent = [key for key in KEYS if key not in run.metrics]
    return [key for key in absent if key not in UTILITY] if any(key in run.metrics for key in UTILITY) else absent


def summary(run: Run | str | Path) -> "pd.DataFrame":
    """One row an arm, the untouched model first, then the retrained ones, then the methods in the study's order.

    Columns: title, role, method, mask; for each key metric "metric/split", "metric/split low" and "metric/split high"
    (NaN where the arm was not measured); moved, the share of all weights whose bits changed (NaN without a training
    loop); seconds.
    """
    return _summary(run, None)


def _summary(run: Run | str | Path, keys: list[Key] | None) -> "pd.DataFrame":
    import pandas as pd

    run = run if isinstance(run, Run) else read_run(run)
    rows = []
    for arm in run.arms:
        row: dict[str, object] = {"title": arm.title, "role": arm.role, "method": arm.method, "mask": arm.mask}
        for key in key_metrics(run) if keys is None else keys:
            name, low, high = "/".join(key), "/".join(key) + " low", "/".join(key) + " high"
            row |= dict.fromkeys((name, low, high), float("nan"))
            if key in arm.measurements:
                found = arm.measurements[key]
                row |= {name: found.value, low: found.low, high: found.high}
        row["moved"] = arm.audit["moved"] if arm.audit else float("nan")
        row["seconds"] = arm.seconds
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index([arm.name for arm in run.arms], name="arm"))


def compare(runs: Iterable[str | Path]) -> "pd.DataFrame":
    """The summaries of several runs, one below the other; the index is (run, arm), the run being its folder's name.

    A metric that is key in any of the runs is a column for all; NaN where a run did not measure it.
    Raises: InputError if there is no run, or if two folders have one name.
    """
    import pandas as pd

    read = [read_run(run) for run in runs]
    if not read:
        raise InputError("compare: no run was given; expected at least one folder written by `workbench run`.")
    names = [run.path.resolve().name for run in read]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"compare: two run folders are called {', '.join(twice)}; rename one, so that their rows can be told apart."
        )
    key = {key for run in read for key in key_metrics(run)}
    keys = [k for k in KEYS if k in key] + sorted(key - set(KEYS))
    return pd.concat([_summary(run, keys) for run in read], keys=names, names=["run", "arm"])


def print_table(run: Run | str | Path, *more: str | Path, console: "Console | None" = None) -> None:
    """Print the summary of a run in the terminal, or the comparison of several.

    Metrics that do not fit into the width go into further tables below, with the arms again; no number is cut.
    """
    from rich.console import Console

    console = console or Console()
    if not more and not isinstance(run, Run) and sheet.is_sheet(run):
        sheet.print_table(run, console=console)
        return
    if not more and not isinstance(run, Run) and verdict.is_verdict(run):
        verdict.print_table(run, console=console)
        return
    runs = [one if isinstance(one, Run) else read_run(one) for one in (run, *more)]
    keys = list(dict.fromkeys(key for one in runs for key in key_metrics(one)))
    names = [arm.title for one in runs for arm in one.arms] + [one.path.name for one in runs if more]
    beside = (min(max(map(len, names)), ARM_WIDTH) + 2) * (2 if more else 1)
    fit = max(1, (console.width - beside - 18) // METRIC_WIDTH)  # moved and seconds take 18
    for first in range(0, max(len(keys), 1), fit):
        if first:
            console.print()
        console.print(_table(runs, keys[first : first + fit], many=bool(more), cost=first + fit >= len(keys)))


def _table(runs: list[Run], keys: list[Key], *, many: bool, cost: bool) -> "Table":
    """One terminal table; `cost` adds the share moved and the seconds. All text is cleaned, and no markup is read."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 2, 0, 0))
    for name in ["run", "arm"] if many else ["arm"]:
        table.add_column(name, max_width=ARM_WIDTH, overflow="fold")
    for key in keys:
        about = next(one.metrics[key] for one in runs if key in one.metrics)
        table.add_column(Text(heading(about)), justify="right", width=METRIC_WIDTH - 2)
    for name in ["moved", "seconds"] if cost else []:
        table.add_column(name, justify="right", no_wrap=True)
    for one in runs:
        for arm in one.arms:
            first = [one.path.resolve().name] if many else []
            last = [moved(arm), seconds(arm)] if cost else []
            texts = [*first, arm.title, *("\n".join(cell(arm, key)) for key in keys), *last]
            table.add_row(*(Text(clean(text)) for text in texts))
    return table


def heading(about: Measurement) -> str:
    """A metric as the head of a column: its name, which way is better, and below them the split."""
    return f"{label(about.metric)} {ARROWS.get(about.better, '')}".rstrip() + f"\n{about.split}"


def cell(arm: Arm, key: Key) -> tuple[str, str]:
    """A value and its interval as text; "no interval" where none is defined, a dash where nothing was measured."""
    if key not in arm.measurements:
        return "–", ""
    found = arm.measurements[key]
    if found.value != found.value:
        return "NaN", ""
    bounds = f"[{number(found.low)}, {number(found.high)}]" if found.low == found.low else "no interval"
    return number(found.value), bounds


def moved(arm: Arm) -> str:
    """Share of all weights whose bits changed; a dash where no training loop counted them."""
    return percent(arm.audit["moved"]) if arm.audit else "–"


def seconds(arm: Arm) -> str:
    """How long the arm took."""
    return f"{arm.seconds:.1f}" if arm.seconds < 100 else f"{arm.seconds:,.0f}"
