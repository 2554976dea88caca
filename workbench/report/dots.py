"""Values with intervals as one static chart: a line a row, a dot and a bar a value, a color a group, a rule at zero."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from workbench.core.svg import BLUE, GREEN, ORANGE, PURPLE, Scale, number, scale, shorten, tag, text_width

COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#7a7a7a", "#a08a00", "#c0392b", "#3f3fbf")
WIDTH, FONT, LINE = 640.0, 12.0, 13.0
LABEL = 34  # characters


class Dot(NamedTuple):
    """A value, its bounds (NaN where there is no interval), the row it stands in, and the group that colors it."""

    row: str
    group: str
    value: float
    low: float
    high: float


def groups(dots: Sequence[Dot]) -> dict[str, str]:
    """The color of every group, in the order in which the groups come."""
    return {name: COLORS[i % len(COLORS)] for i, name in enumerate(dict.fromkeys(dot.group for dot in dots))}


def legend(dots: Sequence[Dot]) -> Markup:
    """A colored dot and the name of every group; nothing where there is one group."""
    found = groups(dots)
    if len(found) < 2:
        return Markup()
    return Markup("&emsp;").join(
        Markup("{} {}").format(
            tag(
                "svg",
                tag("circle", cx=5.0, cy=5.0, r=4.0, fill=color),
                viewBox="0 0 10 10",
                style="width:0.65em;height:0.65em",
                aria_hidden="true",
            ),
            name,
        )
        for name, color in found.items()
    )


def chart(dots: Sequence[Dot], *, axis: str) -> Markup:
    """One <svg>; a value that is not finite is left out, and its row says so when all its values are.

    Args: axis: what the values are, and their unit.
    """
    if not dots:
        return Markup()
    colors = groups(dots)
    rows = list(dict.fromkeys(dot.row for dot in dots))
    seen = [v for dot in dots for v in (dot.value, dot.low, dot.high) if math.isfinite(v)]
    left = max(text_width(shorten(row, LABEL), FONT) for row in rows) + 10
    x = scale([0.0, *seen], left, WIDTH - 8)
    parts, y = [], 6.0
    for i, row in enumerate(rows):
        mine = [dot for dot in dots if dot.row == row]
        height = LINE * max(len(mine), 1)
        if i % 2:
            parts.append(tag("rect", x=0.0, y=y - 2, width=WIDTH, height=height + 4, fill="currentColor", fill_opacity=0.05))
        middle = y + height / 2 + 0.34 * FONT
        parts.append(tag("text", shorten(row, LABEL), x=left - 8, y=middle, text_anchor="end"))
        parts += [part for j, dot in enumerate(mine) for part in _dot(dot, x, y + LINE * (j + 0.5), colors[dot.group])]
        y += height + 4
    rules = [
        tag("path", d=f"M{x(v):.1f} 2V{y:.1f}", stroke="currentColor", stroke_opacity=0.5 if v == 0 else 0.12) for v in x.ticks(6)
    ]
    ticks = [tag("text", f"{v:g}", x=x(v), y=y + 14, text_anchor="middle", fill_opacity=0.7) for v in x.ticks(6)]
    name = tag("text", axis, x=(left + WIDTH) / 2, y=y + 31, text_anchor="middle", fill_opacity=0.75)
    return tag(
        "svg",
        *rules,
        *parts,
        *ticks,
        name,
        viewBox=f"0 0 {WIDTH:g} {y + 38:g}",
        role="img",
        aria_label=axis,
        font_size=FONT,
        font_family="Helvetica, Arial, sans-serif",
        fill="currentColor",
        style="width:100%;max-width:56rem;height:auto;display:block",
    )


def _dot(dot: Dot, x: Scale, y: float, color: str) -> list[Markup]:
    """The interval as a line with the value on it; both say their numbers when pointed at."""
    if not math.isfinite(dot.value):
        return [tag("text", "not measured", x=x.end, y=y + 4, text_anchor="end", fill_opacity=0.6)]
    bounds = f" [{number(dot.low)}, {number(dot.high)}]" if math.isfinite(dot.low) and math.isfinite(dot.high) else ""
    title = tag("title", f"{dot.row}, {dot.group}: {number(dot.value)}{bounds}")
    line = [tag("path", title, d=f"M{x(dot.low):.1f} {y:.1f}H{x(dot.high):.1f}", stroke=color, stroke_width=2)] if bounds else []
    return [*line, tag("circle", title, cx=x(dot.value), cy=y, r=3.6, fill=color)]
