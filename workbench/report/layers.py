"""How far each layer moved: a small panel an arm, all on one logarithmic axis, so that place and size compare."""

import math
import re
from typing import TYPE_CHECKING

from markupsafe import Markup

from workbench.core.svg import Scale, tag

if TYPE_CHECKING:
    import pandas as pd

WIDTH, HEIGHT, FONT = 260.0, 132.0, 11.0
LEFT, RIGHT, TOP, ZERO = 34.0, 8.0, 8.0, 20.0


def panels(layers: "pd.DataFrame") -> dict[str, Markup]:
    """An SVG an arm: ||Delta|| / ||W|| of every layer, in the order the layers are given.

    The axis is logarithmic and shared: it spans the powers of ten around the smallest and the largest positive ratio.
    A layer that did not move stands as a hollow dot on the line marked 0 below the axis.

    Args: layers: columns arm, layer, ratio.
    """
    moved = [math.log10(ratio) for ratio in layers["ratio"].tolist() if ratio > 0] or [-1.0, 0.0]
    low = math.floor(min(moved))
    high = max(math.ceil(max(moved)), low + 1)
    y = Scale(low, high, HEIGHT - FONT * 1.8 - ZERO, TOP)
    return {str(arm): _panel(rows, y) for arm, rows in layers.groupby("arm", sort=False)}


def _panel(rows: "pd.DataFrame", y: Scale) -> Markup:
    names, ratios = [str(name) for name in rows["layer"]], [float(ratio) for ratio in rows["ratio"]]
    step = (WIDTH - LEFT - RIGHT) / len(names)
    xs = [LEFT + step * (i + 0.5) for i in range(len(names))]
    ys = [y(math.log10(ratio)) if ratio > 0 else y.start + ZERO for ratio in ratios]
    every = math.ceil(len(names) / 8)
    return tag(
        "svg",
        *_grid(y),
        tag("path", d=_line(xs, ys, ratios), stroke="currentColor", stroke_opacity=0.35, stroke_width=1.2, fill="none"),
        *(_dot(x, at, name, ratio, min(2.8, 0.45 * step)) for x, at, name, ratio in zip(xs, ys, names, ratios, strict=True)),
        *(
            tag("text", short(name), x=x, y=HEIGHT - 4, text_anchor="middle", fill_opacity=0.7)
            for i, (x, name) in enumerate(zip(xs, names, strict=True))
            if i % every == 0
        ),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=f"change of {len(names)} layers",
        font_size=FONT,
        fill="currentColor",
        style="width:100%;height:auto;display:block",
    )


def _grid(y: Scale) -> list[Markup]:
    """Powers of ten (every second one if there are many) and the line for no change."""
    parts = []
    step = math.ceil((y.high - y.low) / 4)
    marks = [(y(power), f"10{_superscript(power)}") for power in range(int(y.low), int(y.high) + 1, step)]
    for at, text in [*marks, (y.start + ZERO, "0")]:
        parts.append(tag("path", d=f"M{LEFT:g} {at:.2f}H{WIDTH - RIGHT:g}", stroke="currentColor", stroke_opacity=0.12))
        parts.append(tag("text", text, x=LEFT - 5, y=at + 0.34 * FONT, text_anchor="end", fill_opacity=0.7))
    return parts


def _line(xs: list[float], ys: list[float], ratios: list[float]) -> str:
    """A path through neighbors that both moved."""
    pairs = zip(zip(xs, ys, ratios, strict=True), list(zip(xs, ys, ratios, strict=True))[1:], strict=False)
    return "".join(f"M{a:.2f} {b:.2f}L{c:.2f} {d:.2f}" for (a, b, r), (c, d, s) in pairs if r > 0 and s > 0)


def _dot(x: float, y: float, name: str, ratio: float, r: float) -> Markup:
    says = tag("title", f"{name}: {ratio:.3g}")
    if ratio > 0:
        return tag("circle", says, cx=x, cy=y, r=r)
    return tag("circle", says, cx=x, cy=y, r=0.85 * r, fill="none", stroke="currentColor", stroke_opacity=0.5)


def short(layer: str) -> str:
    """The number of a layer, or the first letters of its last name: model.layers.12 -> 12, lm_head.weight -> lm_he."""
    found = re.search(r"(\d+)$", layer)
    return found.group(1) if found else re.sub(r"\.(weight|bias)$", "", layer).rsplit(".", 1)[-1][:5]


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
