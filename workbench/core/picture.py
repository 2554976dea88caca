"""Small static pictures of records: a heat map, bars, a table. SVG and HTML strings without script, URL or identifier.

They are drawn on 460 units and fill the width they get, up to 690 pixels: one unit is then 0.87 to 1.5 pixels, and text
of 11 units can be read on a telephone. Text and lines take `currentColor`, so a picture reads on light and on dark. Zero
is a faint gray and strength is opacity, which works on both.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from workbench.core.errors import ShapeError
from workbench.core.svg import BLUE, ORANGE, Scale, clean, number, tag, text_width

WIDTH, FONT = 460.0, 11.0
LABELS = 30  # characters of a row's label at most; the whole of it is in the tooltip
HEAVY = 10.0  # colors are logarithmic where the largest size is more than so many times the median one
SPAN = 1e4  # largest over smallest size that a logarithmic scale tells apart
FAINT, GRAY = 0.15, (128, 128, 128)
STYLE = "width:100%;max-width:690px;height:auto;display:block"


class Tint(NamedTuple):
    """A color scale: `strength` 0 is faint gray, 1 full orange, and -1 full blue.

    Linear: value / limit if `signed`, else (value - low) / (limit - low). Logarithmic: log(size / low) / log(limit / low)
    with the value's sign, and 0 for every size below `low`.
    """

    low: float
    limit: float
    signed: bool
    log: bool

    def strength(self, value: float) -> float:
        """-1 to 1 on a signed scale, else 0 to 1."""
        if self.log:
            size = max(abs(value), self.low)
            return math.copysign(math.log(size / self.low) / math.log(self.limit / self.low), value)
        return value / self.limit if self.signed else (value - self.low) / (self.limit - self.low)

    def says(self, strength: float) -> str:
        """The value that has this strength, as text."""
        if self.log:
            size = self.low * (self.limit / self.low) ** abs(strength)
            return f"±{number(size)}" if self.signed and strength == 0 else number(math.copysign(size, strength))
        return number(strength * self.limit if self.signed else self.low + strength * (self.limit - self.low))


def tint(values: Float[np.ndarray, "..."], *, signed: bool) -> Tint | None:
    """The color scale of some values: centered on zero if signed, from zero otherwise; None if none of them is finite.

    It is logarithmic where the largest size is more than HEAVY times the median of the sizes that are not zero, down to the
    smallest of them or to the SPAN-th part of the largest.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return None
    sizes = np.abs(finite[finite != 0])
    limit = float(sizes.max()) if sizes.size else 1.0
    log = bool((signed or finite.min() >= 0) and sizes.size and limit > HEAVY * np.median(sizes))
    if log:
        return Tint(max(float(sizes.min()), limit / SPAN), limit, signed, True)
    if signed:
        return Tint(-limit, limit, True, False)
    low, high = min(0.0, float(finite.min())), float(finite.max())
    return Tint(low, high if high > low else low + 1.0, False, False)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Float[np.ndarray, "row column"],
    *,
    label: str,
    signed: bool,
    across: str = "",
    apart: bool = False,
) -> Markup:
    """A table of numbers as colors, with a scale; every cell says its number when pointed at.

    Args:
        rows, columns: what stands beside and below the cells; thinned out where they would overlap.
        values: one a cell; NaN or infinite = no cell.
        label: what the numbers are, and their unit.
        signed: negative blue, positive orange, centered on zero; otherwise one color, from zero up.
        across: what the columns are.
        apart: the last column is of another kind than the others; it stands apart, and wide enough to be seen.
    Returns: one <svg>.
    Raises: ShapeError unless values is [rows, columns].
    """
    if values.shape != (len(rows), len(columns)):
        raise ShapeError(f"heat_map: values is {values.shape}, but there are {len(rows)} rows and {len(columns)} columns.")
    colors = tint(values, signed=signed)
    shown = [_short(row) for row in rows]
    left = max((text_width(row, FONT) for row in shown), default=0.0) + 6
    top = FONT * 1.8
    room = WIDTH - left - (24 if apart else 4)
    wide = min(36.0, room / max(len(columns), 1))
    starts = [left + wide * j for j in range(len(columns))]
    widths = [wide] * len(columns)
    if apart:
        starts[-1], widths[-1] = starts[-1] + 4, max(wide, 16.0)
    high = min(15.0, max(4.0, 420 / max(len(rows), 1)))
    bottom = top + high * len(rows)
    cells = [
        _cell(starts[j], top + high * i, widths[j], high, f"{row}, {across} {column}: {number(float(values[i, j]))}", mark)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
        if colors is not None and np.isfinite(values[i, j]) and (mark := _color(colors.strength(float(values[i, j]))))
    ]
    beside = [
        tag("text", shown[i], x=left - 5, y=top + high * (i + 0.5) + 4, text_anchor="end")
        for i in _thinned([FONT] * len(rows), high)
    ]
    regular = len(columns) - apart
    below = [
        tag("text", columns[j], x=starts[j] + widths[j] / 2, y=bottom + 13, text_anchor="middle")
        for j in [*_thinned([text_width(c, FONT) + 4 for c in columns[:regular]], wide), *range(regular, len(columns))]
    ]
    axis = [tag("text", across, x=left, y=bottom + 27, fill_opacity=0.75)]
    if colors is not None and colors.log:
        axis.append(tag("text", "logarithmic colors", x=WIDTH, y=bottom + 27, fill_opacity=0.75, text_anchor="end"))
    scale = _legend(colors, bottom + 50)
    return _svg([_heading(label), *cells, *beside, *below, *axis, *scale], bottom + 76, label)


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    label: str,
    line: float | None = None,
    line_label: str = "",
    write: Callable[[float], str] = number,
) -> Markup:
    """One horizontal bar a label from zero, its number at the right edge, and a dashed line at a value to compare with.

    Args:
        labels, values: as many; a value that is not finite gets the word "NaN" and no bar.
        label: what the numbers are, and their unit.
        line, line_label: where the line stands and what it is.
        write: turns a value into text.
    Returns: one <svg>.
    Raises: ShapeError unless there are as many labels as values.
    """
    if len(labels) != len(values):
        raise ShapeError(f"bars: there are {len(labels)} labels and {len(values)} values; expected as many.")
    said, shown = [write(value) if math.isfinite(value) else "NaN" for value in values], [_short(text) for text in labels]
    left = max((text_width(text, FONT) for text in shown), default=0.0) + 6
    right = max((text_width(text, FONT) for text in said), default=0.0) + 8
    ends = [v for v in (*values, 0.0 if line is None else line, 0.0) if math.isfinite(v)]
    low, most = min(ends), max(ends)
    x = Scale(low, most if most > low else low + 1.0, left, WIDTH - right)
    high = min(16.0, max(6.0, 420 / max(len(labels), 1)))
    top = FONT * (3.2 if line is not None else 1.8)
    bottom = top + high * len(labels)
    drawn = [_bar(x, top + high * i, high, f"{labels[i]}: {said[i]}", value) for i, value in enumerate(values)]
    texts = [
        part
        for i in _thinned([FONT] * len(labels), high)
        for part in (
            tag("text", shown[i], x=left - 5, y=top + high * (i + 0.5) + 4, text_anchor="end"),
            tag("text", said[i], x=WIDTH, y=top + high * (i + 0.5) + 4, text_anchor="end"),
        )
    ]
    rule = [] if line is None else _rule(x(line), top, bottom, f"{line_label} {write(line)}".strip())
    return _svg([_heading(label), *drawn, *texts, *rule], bottom + 8, label)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """An HTML table; everything in it is escaped. Wider than its place, it scrolls sideways by itself."""
    head = tag("tr", *(tag("th", heading) for heading in headings))
    body = (tag("tr", *(tag("td", value) for value in row)) for row in rows)
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), style="white-space:nowrap"), style="overflow-x:auto")


def _svg(parts: list[Markup], height: float, label: str) -> Markup:
    box = f"0 0 {WIDTH:g} {height:g}"
    family = "Helvetica, Arial, sans-serif"
    return tag(
        "svg",
        *parts,
        viewBox=box,
        role="img",
        aria_label=label,
        font_size=FONT,
        font_family=family,
        fill="currentColor",
        style=STYLE,
    )


def _heading(text: str) -> Markup:
    return tag("text", text, x=0.0, y=FONT, font_weight="bold")


def _cell(x: float, y: float, wide: float, high: float, says: str, color: tuple[str, float]) -> Markup:
    gap = min(1.0, 0.12 * wide)
    return tag(
        "rect",
        tag("title", says),
        x=x,
        y=y,
        width=wide - gap,
        height=high - min(1.0, 0.12 * high),
        fill=color[0],
        fill_opacity=color[1],
    )


def _color(strength: float) -> tuple[str, float]:
    """Fill and opacity: gray and faint at 0, to orange at 1 and blue at -1."""
    hue = ORANGE if strength > 0 else BLUE
    much = min(abs(strength), 1.0)
    pure = min(1.0, 4 * much)  # the hue comes early, the opacity evenly: a small value already shows its sign
    mixed = (round(g + pure * (int(hue[k : k + 2], 16) - g)) for g, k in zip(GRAY, (1, 3, 5), strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed), FAINT + (1 - FAINT) * much


def _legend(colors: Tint | None, y: float) -> list[Markup]:
    """The color scale: 40 steps, with the numbers at its ends, middle and quarters."""
    if colors is None:
        return [tag("text", "no finite value to show", x=0.0, y=y)]
    start = -1.0 if colors.signed else 0.0
    x = Scale(start, 1.0, 30.0, WIDTH - 30.0)
    step = (1.0 - start) / 40
    parts = [
        tag("rect", x=x(at), y=y - 8, width=x(at + step) - x(at), height=8.0, fill=_color(mid)[0], fill_opacity=_color(mid)[1])
        for at, mid in ((start + step * i, start + step * (i + 0.5)) for i in range(40))
    ]
    stops = [start + (1.0 - start) * i / 4 for i in range(5)]
    texts = [tag("text", colors.says(at), x=x(at), y=y + 14, text_anchor="middle") for at in stops]
    return [*parts, *texts]


def _bar(x: Scale, y: float, high: float, says: str, value: float) -> Markup:
    if not math.isfinite(value):
        return tag("g", tag("title", says))
    start, end = sorted((x(0.0), x(value)))
    return tag("rect", tag("title", says), x=start, y=y + 0.12 * high, width=end - start, height=0.76 * high, fill=BLUE)


def _rule(x: float, top: float, bottom: float, says: str) -> list[Markup]:
    anchor = "end" if x + text_width(says, FONT) > WIDTH else "start"
    path = f"M{x:.1f} {top - 2:.1f}V{bottom:.1f}"
    return [
        tag("path", d=path, stroke="currentColor", stroke_width=1.2, stroke_dasharray="4 3", fill="none"),
        tag("text", says, x=x, y=top - 5, text_anchor=anchor),
    ]


def _thinned(sizes: Sequence[float], step: float) -> list[int]:
    """Which labels to show so that none overlaps the next: all, or every second, fifth, tenth, ..., from the first on."""
    need = max(sizes, default=0.0) / step
    every = next(m * 10**power for power in range(9) for m in (1, 2, 5) if m * 10**power >= need * (1 - 1e-9))
    return list(range(0, len(sizes), every))


def _short(text: str) -> str:
    """`text` on one line, its middle left out where it is too long: both ends of a parameter's name tell it apart."""
    line = " ".join(clean(text).split())
    return line if len(line) <= LABELS else f"{line[: LABELS // 3]}…{line[-(LABELS * 2 // 3 - 1) :]}"
