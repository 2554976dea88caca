"""The forget-utility plane: each arm a point with two intervals and its name, the retrain-retrain band behind them."""

import math
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from workbench.core.svg import BLUE, GREEN, ORANGE, PURPLE, Scale, number, scale, shorten, tag, text_width
from workbench.report.labels import Box, place

if TYPE_CHECKING:
    import pandas as pd


class Mark(NamedTuple):
    """How a kind of arm is drawn: an SVG path around (0, 0), its color, filled or outlined, and its legend."""

    path: str
    color: str
    filled: bool
    meaning: str


DIAMOND = "M0-7 7 0 0 7-7 0Z"
CIRCLE = "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0Z"
MARKS = {
    "untouched": Mark("M-6.5-6.5H6.5V6.5H-6.5Z", "currentColor", False, "untouched"),
    "reference": Mark(DIAMOND, GREEN, True, "retrained without the forget rows"),
    "band": Mark(DIAMOND, GREEN, False, "retrained a second time"),
    "unlearn": Mark(CIRCLE, BLUE, True, "unlearned"),
    "edit": Mark("M0-6.5 6.5 5H-6.5Z", ORANGE, True, "edited"),
    "model": Mark(CIRCLE, PURPLE, False, "another model"),
}
HALO = "paint-order:stroke;stroke:var(--page,transparent);stroke-width:3px;stroke-linejoin:round"
"""Around text that may lie on a line: the page's background where the page names one."""


class Canvas(NamedTuple):
    """Size of a figure in pixels and its two scales; y grows upwards."""

    width: float
    height: float
    font: float
    x: Scale
    y: Scale


def plane(
    points: "pd.DataFrame",
    *,
    x_label: str,
    y_label: str,
    x_band: tuple[float, float] | None = None,
    y_band: tuple[float, float] | None = None,
    width: float = 880,
    height: float = 520,
    font: float = 13,
) -> Markup:
    """The points as an SVG that scales to the width of its container.

    Args:
        points: a row an arm with title, mark (a key of MARKS), x, x_low, x_high, y, y_low, y_high; bounds may be NaN.
        x_band, y_band: drawn as strips over the whole plane; where they cross, an arm is as good as retrained.
    """
    xs = [*points["x"], *points["x_low"], *points["x_high"], *(x_band or ())]
    ys = [*points["y"], *points["y_low"], *points["y_high"], *(y_band or ())]
    canvas = Canvas(width, height, font, scale(xs, 3.6 * font, width - 8), scale(ys, height - 3.6 * font, 2.4 * font))
    arms = points.to_dict("records")
    return tag(
        "svg",
        *_axes(canvas, x_label, y_label),
        *_strips(canvas, x_band, y_band),
        *(_bars(canvas, arm) for arm in arms),
        *_labels(canvas, arms, _strip_name(canvas, x_band)),
        *(_point(canvas, arm) for arm in arms),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=f"{y_label} against {x_label}, {len(arms)} arms",
        font_size=font,
        fill="currentColor",
        style="width:100%;height:auto;display:block",
    )


def legend(points: "pd.DataFrame") -> Markup:
    """What the shapes mean, for those that occur; a line of HTML that wraps."""
    used = [name for name in MARKS if name in set(points["mark"])]
    entries = [
        tag(
            "span",
            symbol(name),
            " ",
            MARKS[name].meaning,
            style="white-space:nowrap;margin-right:1.4em",
        )
        for name in used
    ]
    return Markup(" ").join(entries)


def symbol(name: str) -> Markup:
    """The shape of a mark, as high as a line of text."""
    style = "vertical-align:-2px;flex:none"
    return tag("svg", _shape(MARKS[name]), viewBox="-8 -8 16 16", width=13, height=13, style=style, aria_hidden="true")


def _shape(mark: Mark) -> Markup:
    return tag("path", d=mark.path, fill=mark.color if mark.filled else "none", stroke=mark.color, stroke_width=1.8)


def _axes(canvas: Canvas, x_label: str, y_label: str) -> list[Markup]:
    x, y, small = canvas.x, canvas.y, canvas.font * 0.92
    parts = []
    for value in x.ticks(max(3, int((x.end - x.start) / 110))):
        parts.append(tag("path", d=f"M{x(value):.2f} {y.start:.2f}V{y.end:.2f}", stroke="currentColor", stroke_opacity=0.1))
        parts.append(
            tag(
                "text",
                _tick(value),
                x=x(value),
                y=y.start + 1.4 * small,
                text_anchor="middle",
                font_size=small,
                fill_opacity=0.7,
                class_="x-tick",
            )
        )
    for value in y.ticks(max(3, int((y.start - y.end) / 70))):
        parts.append(tag("path", d=f"M{x.start:.2f} {y(value):.2f}H{x.end:.2f}", stroke="currentColor", stroke_opacity=0.1))
        parts.append(
            tag(
                "text",
                _tick(value),
                x=x.start - 7,
                y=y(value) + 0.34 * small,
                text_anchor="end",
                font_size=small,
                fill_opacity=0.7,
                class_="y-tick",
            )
        )
    parts.append(tag("text", f"↑ {y_label}", x=2.0, y=1.1 * canvas.font, font_weight=600))
    parts.append(tag("text", x_label, x=x.end, y=canvas.height - 0.6 * small, text_anchor="end", font_weight=600))
    if text_width(x_label, canvas.font) < (x.end - x.start) - 130:
        parts.append(tag("text", "← forgets more", x=x.start, y=canvas.height - 0.6 * small, fill_opacity=0.7))
    return parts


def _tick(value: float) -> str:
    return f"{value:.10g}".replace("-", "−")


def _strips(canvas: Canvas, x_band: tuple[float, float] | None, y_band: tuple[float, float] | None) -> list[Markup]:
    """The bands, at least 1.5 pixels wide so that a narrow one is still seen."""
    x, y = canvas.x, canvas.y
    parts = []
    paint = {"fill": GREEN, "fill_opacity": 0.14}
    if x_band:
        wide = max(x(x_band[1]) - x(x_band[0]), 1.5)
        left = (x(x_band[0]) + x(x_band[1]) - wide) / 2
        parts.append(tag("rect", x=left, y=y.end, width=wide, height=y.start - y.end, class_="x-band", **paint))
    if y_band:
        tall = max(y(y_band[0]) - y(y_band[1]), 1.5)
        top = (y(y_band[0]) + y(y_band[1]) - tall) / 2
        parts.append(tag("rect", x=x.start, y=top, width=x.end - x.start, height=tall, class_="y-band", **paint))
    return parts


def _strip_name(canvas: Canvas, x_band: tuple[float, float] | None) -> tuple[Markup, Box] | None:
    """What the vertical strip is, written beside its foot, and the room that takes."""
    if x_band is None:
        return None
    text, small = "retrain-retrain band", 0.92 * canvas.font
    wide = text_width(text, small)
    left = canvas.x(x_band[1]) + 5
    if left + wide > canvas.x.end:
        left = canvas.x(x_band[0]) - 5 - wide
    foot = canvas.y.start - 6
    drawn = tag("text", text, x=left, y=foot, fill=GREEN, font_size=small, style=HALO)
    return drawn, Box(left, foot - small, left + wide, foot + 0.3 * small)


def _bars(canvas: Canvas, arm: dict) -> Markup:
    """The two interval bars, in the color of the mark."""
    x, y = canvas.x, canvas.y
    lines = []
    if math.isfinite(arm["x_low"]) and math.isfinite(arm["x_high"]):
        lines.append(f"M{x(arm['x_low']):.2f} {y(arm['y']):.2f}H{x(arm['x_high']):.2f}")
    if math.isfinite(arm["y_low"]) and math.isfinite(arm["y_high"]):
        lines.append(f"M{x(arm['x']):.2f} {y(arm['y_low']):.2f}V{y(arm['y_high']):.2f}")
    color = MARKS[arm["mark"]].color
    return tag("path", d="".join(lines), stroke=color, stroke_width=1.4, stroke_opacity=0.5, fill="none", class_="interval")


def _point(canvas: Canvas, arm: dict) -> Markup:
    """The mark, with its numbers as the tooltip."""
    says = [f"{axis}: {number(arm[axis])} [{number(arm[f'{axis}_low'])}, {number(arm[f'{axis}_high'])}]" for axis in ("x", "y")]
    return tag(
        "g",
        tag("title", "\n".join([arm["title"], *says])),
        _shape(MARKS[arm["mark"]]),
        transform=f"translate({canvas.x(arm['x']):.2f} {canvas.y(arm['y']):.2f})",
        class_="point",
        data_arm=arm["title"],
    )


def _labels(canvas: Canvas, arms: list[dict], strip: tuple[Markup, Box] | None) -> list[Markup]:
    """The names, none on another, with a thin line to the point where one had to move away."""
    x, y, font = canvas.x, canvas.y, canvas.font
    texts = [shorten(arm["title"], 28 if canvas.width < 600 else 36) for arm in arms]
    points = [(x(arm["x"]), y(arm["y"])) for arm in arms]
    boxes = place(
        points,
        [(text_width(text, font), 1.15 * font) for text in texts],
        Box(x.start, y.end, x.end, y.start),
        blocked=[*([strip[1]] if strip else []), *(Box(px - 8, py - 8, px + 8, py + 8) for px, py in points)],
        lines=[bar for arm in arms for bar in _bar_boxes(canvas, arm)],
    )
    parts = [strip[0]] if strip else []
    for text, (px, py), box in zip(texts, points, boxes, strict=True):
        ex, ey = min(max(px, box.left), box.right), min(max(py, box.top), box.bottom)
        if math.dist((px, py), (ex, ey)) > 18:
            parts.append(
                tag(
                    "path",
                    d=f"M{px:.2f} {py:.2f}L{ex:.2f} {ey:.2f}",
                    stroke="currentColor",
                    stroke_opacity=0.45,
                    class_="leader",
                )
            )
        left_of = (box.left + box.right) / 2 < px - 0.3 * (box.right - box.left)
        anchor, at = ("end", box.right) if left_of else ("start", box.left)
        parts.append(tag("text", text, x=at, y=box.bottom - 0.3 * font, text_anchor=anchor, class_="label", style=HALO))
    return parts


def _bar_boxes(canvas: Canvas, arm: dict) -> list[Box]:
    x, y = canvas.x, canvas.y
    across = Box(x(arm["x_low"]), y(arm["y"]) - 2, x(arm["x_high"]), y(arm["y"]) + 2)
    along = Box(x(arm["x"]) - 2, y(arm["y_high"]), x(arm["x"]) + 2, y(arm["y_low"]))
    return [box for box in (across, along) if all(map(math.isfinite, box))]
