"""The forget-utility plane of a run: what stands on the axes, which arms are drawn, and a sentence where one is not."""

from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from workbench.core.svg import label
from workbench.report.folder import Arm, Key, Run
from workbench.report.plane import legend, plane
from workbench.report.table import FORGETTING, KEPT, UTILITY
from workbench.report.words import capital, listed, named, titles

if TYPE_CHECKING:
    import pandas as pd


class Figure(NamedTuple):
    """The plane drawn wide and narrow (both None if it cannot be), its legend, and sentences about what is missing."""

    wide: Markup | None
    narrow: Markup | None
    legend: Markup
    remarks: list[str]


def axes(run: Run) -> tuple[Key | None, Key | None]:
    """The metrics for forgetting (x) and utility (y): the first measured of FORGETTING, and of UTILITY, then KEPT."""
    x = next((key for key in FORGETTING if key in run.metrics), None)
    y = next((key for key in (*UTILITY, *KEPT) if key in run.metrics), None)
    return x, y


def mark(arm: Arm) -> str:
    """How an arm is drawn: by its role, a method by its kind."""
    return arm.role if arm.role != "method" else arm.kind if arm.kind in ("unlearn", "edit") else "model"


def points(run: Run, x: Key, y: Key) -> "pd.DataFrame":
    """One row an arm that was measured on both: title, mark, x, x_low, x_high, y, y_low, y_high."""
    import pandas as pd

    rows = []
    for arm in run.arms:
        if all(key in arm.measurements and arm.measurements[key].value == arm.measurements[key].value for key in (x, y)):
            ends = {}
            for axis, row in (("x", arm.measurements[x]), ("y", arm.measurements[y])):
                ends |= {axis: row.value, f"{axis}_low": row.low, f"{axis}_high": row.high}
            rows.append({"arm": arm.name, "title": arm.title, "mark": mark(arm), **ends})
    return pd.DataFrame(rows)


def figure(run: Run) -> Figure:
    """Draw the plane, or say why not."""
    x, y = axes(run)
    if x is None or y is None:
        wanted = [keys for axis, keys in ((x, FORGETTING), (y, (*UTILITY, *KEPT))) if axis is None]
        lacks = " and ".join(" or ".join("/".join(key) for key in keys) for keys in wanted)
        return Figure(None, None, Markup(), [f"The plane is not drawn: this run did not measure {lacks}."])
    frame = points(run, x, y)
    remarks = [] if y in UTILITY else [f"Model utility was not measured; the vertical axis shows {named(y)} instead."]
    drawn = set() if frame.empty else set(frame["arm"])
    absent = [arm for arm in run.arms if arm.name not in drawn]
    if absent:
        remarks.append(f"Not in the plane, because {named(x)} or {named(y)} was not measured: {titles(absent)}.")
    if frame.empty:
        return Figure(None, None, Markup(), remarks)
    bare = frame[frame[["x_low", "x_high", "y_low", "y_high"]].isna().any(axis=1)]
    if len(bare):
        remarks.append(f"Without an interval on both axes: {listed(bare['title'])}.")
    labels = {"x_label": _axis(run, x), "y_label": _axis(run, y), "x_band": run.band(x), "y_band": run.band(y)}
    wide = plane(frame, **labels)
    narrow = plane(frame, **labels, width=380, height=430, font=12)
    return Figure(wide, narrow, legend(frame), remarks)


def _axis(run: Run, key: Key) -> str:
    text = label(key[0]) if key[1] == "all" else f"{label(key[0])}, {key[1].replace('_', ' ')} rows"
    unit = run.metrics[key].unit
    return capital(text) + (f" ({unit})" if unit else "")
