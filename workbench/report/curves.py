"""Curves of a verdict: what each located set forgot, over its size, inside it, in a matched random set, and outside it."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from workbench.core.picture import table
from workbench.core.svg import BLUE, ORANGE, Scale, number, scale, shorten, tag

if TYPE_CHECKING:
    import pandas as pd

WIDTH, HEIGHT, FONT = 300.0, 196.0, 11.0
LEFT, RIGHT, TOP, BOTTOM = 36.0, 12.0, 10.0, 34.0
COLORS = {"inside": BLUE, "random": "#7d858e", "outside": ORANGE}
MEANINGS = {"inside": "inside the set", "random": "matched random set", "outside": "outside the set"}
APART = 3.5
"""Pixels between the points of two sides at one size."""

FEW_STEPS = 5
"""A run that ends before so many steps rests on a few batches."""

Row = dict[str, Any]
"""A row of a frame, by column."""


def records(frame: "pd.DataFrame") -> list[Row]:
    """The rows of a frame."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def panels(points: "pd.DataFrame") -> dict[str, Markup]:
    """An SVG a located set: forget change (nats per token) over the size of the set, all on one pair of axes.

    A line joins the means over seeds at the sizes where all of them spent the budget, and a bar spans the seeds' smallest and
    largest. A hollow point did not spend the budget; the other seeds of its side and size stand for themselves, in no mean.

    Args: points: columns set, size, side, seed, reached, forget_change, budget_used; a row an intervention.
    """
    rows = records(points)
    sizes = sorted({float(row["size"]) for row in rows})
    values = [0.0, *(float(row["forget_change"]) for row in rows if math.isfinite(row["forget_change"]))]
    logs = [math.log10(size) for size in sizes]
    space = 0.2 if len(sizes) == 1 else 0.12 * (logs[-1] - logs[0])
    x = Scale(logs[0] - space, logs[-1] + space, LEFT, WIDTH - RIGHT)
    y = scale(values, HEIGHT - BOTTOM, TOP)
    names = dict.fromkeys(str(row["set"]) for row in rows)
    return {name: _panel(name, [row for row in rows if row["set"] == name], sizes, x, y) for name in names}


def legend() -> Markup:
    """What the colors mean; a line of HTML that wraps."""
    return Markup(" ").join(tag("span", _dot_of(side), " ", said, style=_ENTRY) for side, said in MEANINGS.items())


_ENTRY = "white-space:nowrap;margin-right:1.4em"


def _dot_of(side: str) -> Markup:
    dot = tag("circle", cx=0, cy=0, r=4.5, fill=COLORS[side])
    return tag("svg", dot, viewBox="-6 -6 12 12", width=11, height=11, style="vertical-align:-1px", aria_hidden="true")


def spent_sizes(rows: Iterable[Row]) -> list[float]:
    """Sizes at which every one of these points spent the budget, ascending."""
    rows = list(rows)
    missed = {float(row["size"]) for row in rows if not row["reached"]}
    return sorted({float(row["size"]) for row in rows} - missed)


def budget_line(chosen: Mapping[str, Any]) -> str:
    """What was done, and at which budget, in a few words."""
    how = f"unlearning ({chosen['objective']})" if chosen["intervention"] == "unlearn" else "taking weights away"
    return f"{how}, until the mean NLL on retain rows had risen by {chosen['budget']:g} nats per token"


def drawn(points: "pd.DataFrame", areas: "pd.DataFrame", chosen: Mapping[str, Any]) -> Markup:
    """A verdict in a notebook: legend, panels and the table of areas, with styles inline.

    Args: chosen: the settings, with intervention, objective and budget.
    """
    each = [
        tag("figure", tag("figcaption", shorten(name, 40)), svg, style="margin:0;flex:1 1 240px;max-width:340px")
        for name, svg in panels(points).items()
    ]
    axis = tag("p", f"Forget NLL rise (nats per token) over the size of the set: {budget_line(chosen)}.", style="margin:4px 0")
    row = tag("div", *each, style="display:flex;flex-wrap:wrap;gap:16px")
    rows = [[r["set"], r["against"], *cell(r), r["verdict"], r["sizes"], _effort(r), r["note"]] for r in records(areas)]
    heads = ["set", "against", "advantage (nats/token)", "95 % interval", "verdict", "sizes", "steps: inside, other", "note"]
    return tag("div", tag("p", legend(), style="margin:4px 0"), axis, row, table(heads, rows))


def cell(area: Row) -> tuple[str, str]:
    """A number of `Verdict.areas` and its interval as text."""
    value, low, high = (float(area[key]) for key in ("area", "low", "high"))
    if value != value:
        return "–", ""
    bound = area.get("bound") or ""
    text = f"{bound} {number(value)}" if bound in ("at least", "at most") else number(value)
    return text, f"[{number(low)}, {number(high)}]" if low == low else "no interval"


def _effort(area: Row) -> str:
    """Mean steps of both sides; nothing for an ablation, which has no steps."""
    steps = [float(area[key]) for key in ("steps", "steps_against")]
    return ", ".join("–" if value != value else f"{value:.3g}" for value in steps) if any(v == v for v in steps) else ""


def _panel(name: str, rows: list[Row], sizes: list[float], x: Scale, y: Scale) -> Markup:
    return tag(
        "svg",
        *_axes(sizes, x, y),
        *(part for i, side in enumerate(COLORS) for part in _side(rows, side, APART * (i - 1), x, y)),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=f"forget change over size for {name}",
        font_size=FONT,
        fill="currentColor",
        style="width:100%;height:auto;display:block",
    )


def _axes(sizes: list[float], x: Scale, y: Scale) -> list[Markup]:
    parts = []
    for value in y.ticks(6):
        at, strength = y(value), 0.4 if value == 0 else 0.12
        parts.append(tag("path", d=f"M{LEFT:g} {at:.2f}H{WIDTH - RIGHT:g}", stroke="currentColor", stroke_opacity=strength))
        parts.append(tag("text", f"{value:g}", x=LEFT - 5, y=at + 0.34 * FONT, text_anchor="end", fill_opacity=0.7))
    for size in _spaced(sizes, x):
        at = x(math.log10(size))
        parts.append(tag("text", f"{100 * size:.3g} %", x=at, y=HEIGHT - BOTTOM + 15, text_anchor="middle", fill_opacity=0.7))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(tag("text", "size of the set", x=middle, y=HEIGHT - 4, text_anchor="middle", fill_opacity=0.7))
    return parts


def _spaced(sizes: list[float], x: Scale) -> list[float]:
    """The sizes whose labels do not touch the one before."""
    shown: list[float] = []
    for size in sizes:
        if not shown or x(math.log10(size)) - x(math.log10(shown[-1])) > 3.4 * FONT:
            shown.append(size)
    return shown


def _side(rows: list[Row], side: str, shift: float, x: Scale, y: Scale) -> list[Markup]:
    """The line through the means, a bar a size over the seeds, a dot a mean; single dots where a seed did not spend the budget."""
    color, parts, line = COLORS[side], [], []
    mine = [row for row in rows if row["side"] == side and math.isfinite(row["forget_change"])]
    even = spent_sizes(mine)
    for size in sorted({float(row["size"]) for row in mine}):
        at = x(math.log10(size)) + shift
        here = [row for row in mine if row["size"] == size]
        if size in even:
            spent = [float(row["forget_change"]) for row in here]
            mean = sum(spent) / len(spent)
            line.append(f"{at:.2f} {y(mean):.2f}")
            says = tag("title", f"{side}, {size:g}: {number(mean)} (n = {len(spent)})")
            parts.append(tag("path", d=f"M{at:.2f} {y(min(spent)):.2f}V{y(max(spent)):.2f}", stroke=color, stroke_width=1.5))
            parts.append(tag("circle", says, cx=at, cy=y(mean), r=3.2, fill=color))
        for row in here if size not in even else ():
            used = f"{number(row['budget_used'])} of the budget spent"
            says = (
                f"{number(row['forget_change'])}, in no mean: another seed did not spend it" if row["reached"] else f"only {used}"
            )
            look = {"r": 2.0, "fill": color} if row["reached"] else {"r": 3.0, "fill": "none", "stroke": color}
            title = tag("title", f"{side}, {size:g}: {says}")
            parts.append(tag("circle", title, cx=at, cy=y(row["forget_change"]), **look))
    path = tag("path", d="M" + "L".join(line), stroke=color, stroke_width=1.6, fill="none") if len(line) > 1 else Markup()
    return [path, *parts]
