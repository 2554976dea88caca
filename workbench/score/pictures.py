"""Two small static pictures: how a score is distributed and where it is cut, and a score against a measurement.

SVG strings in the manner of `core.picture`: no script, URL or identifier; lines and text take `currentColor`.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from markupsafe import Markup

from workbench.core.errors import DataError
from workbench.core.picture import FONT, STYLE, WIDTH
from workbench.core.svg import BLUE, ORANGE, Scale, number, scale, tag

_BINS = 40
_LEFT, _TOP, _BOTTOM = 46.0, 40.0, 200.0


def histogram(
    values: Float[np.ndarray, "row"], kept: Bool[np.ndarray, "row"], *, label: str, kept_label: str, dropped_label: str
) -> Markup:
    """How many rows have which value: those kept in blue, on them those dropped in orange.

    Args: label: what the values are.   kept_label, dropped_label: said in the legend.
    Raises: DataError if no value is finite.
    """
    x, finite = _axis(values), np.isfinite(values)
    bins = min(_BINS, max(5, math.ceil(2 * math.sqrt(int(finite.sum())))))
    edges = np.linspace(x.low, x.high, bins + 1)
    counts = [np.histogram(values[finite & side], edges)[0] for side in (kept, ~kept)]
    y = Scale(0.0, float(max(1, (counts[0] + counts[1]).max())), _BOTTOM, _TOP)
    bars = [
        _bar(x, y, (edges[i], edges[i + 1]), (base, base + int(count[i])), color)
        for count, base_of, color in ((counts[0], np.zeros(bins, int), BLUE), (counts[1], counts[0], ORANGE))
        for i in range(bins)
        if count[i] and (base := int(base_of[i])) >= 0
    ]
    legend = [*_key(_LEFT, BLUE, kept_label), *(_key(_LEFT + 190, ORANGE, dropped_label) if not kept.all() else [])]
    return _svg([*_frame(x, y, label, f"pairs, {len(values):,} in all"), *bars, *legend], label)


def scatter(
    x_values: Float[np.ndarray, "row"],
    y_values: Float[np.ndarray, "row"],
    names: Sequence[str],
    *,
    x_label: str,
    y_label: str,
) -> Markup:
    """A point a row; pointing at it says its name and numbers. A dashed line where y is 0.

    Raises: DataError if no value of x or of y is finite.
    """
    x, across = _axis(x_values), _axis(np.append(y_values, 0.0))
    y = Scale(across.low, across.high, _BOTTOM, _TOP)
    points = [
        tag(
            "circle",
            tag("title", f"{name}: {number(float(a))}, {number(float(b))}"),
            cx=x(a),
            cy=y(b),
            r=2.4,
            fill=BLUE,
            fill_opacity=0.75,
        )
        for a, b, name in zip(x_values, y_values, names, strict=True)
        if math.isfinite(a) and math.isfinite(b)
    ]
    zero = tag("path", d=f"M{_LEFT:g} {y(0.0):.1f}H{WIDTH:g}", stroke="currentColor", stroke_opacity=0.6, stroke_dasharray="4 3")
    return _svg([*_frame(x, y, x_label, y_label), zero, *points], f"{y_label} against {x_label}")


def _axis(values: Float[np.ndarray, "..."]) -> Scale:
    if not np.isfinite(values).any():
        raise DataError("picture: no value is finite; there is nothing to draw.")
    return scale(values.tolist(), _LEFT, WIDTH - 6, pad=0.03)


def _frame(x: Scale, y: Scale, x_label: str, y_label: str) -> list[Markup]:
    """Both axes' lines, numbers and names."""
    across = [tag("text", _tick(v), x=x(v), y=_BOTTOM + 15, text_anchor="middle") for v in x.ticks(6)]
    rules = [tag("path", d=f"M{_LEFT:g} {y(v):.1f}H{WIDTH:g}", stroke="currentColor", stroke_opacity=0.15) for v in y.ticks(4)]
    up = [tag("text", _tick(v), x=_LEFT - 5, y=y(v) + 4, text_anchor="end") for v in y.ticks(4)]
    names = [
        tag("text", x_label, x=(_LEFT + WIDTH) / 2, y=_BOTTOM + 32, text_anchor="middle", fill_opacity=0.75),
        tag("text", y_label, x=0.0, y=FONT, font_weight="bold"),
    ]
    return [*rules, *across, *up, *names]


def _bar(x: Scale, y: Scale, ends: tuple[float, float], counts: tuple[int, int], color: str) -> Markup:
    says = f"{number(float(ends[0]))} to {number(float(ends[1]))}: {counts[1] - counts[0]}"
    left, right, top, bottom = x(ends[0]), x(ends[1]), y(counts[1]), y(counts[0])
    return tag("rect", tag("title", says), x=left + 0.4, y=top, width=right - left - 0.8, height=bottom - top, fill=color)


def _key(x: float, color: str, text: str) -> list[Markup]:
    return [tag("rect", x=x, y=FONT + 9, width=9.0, height=9.0, fill=color), tag("text", text, x=x + 14, y=FONT + 17.5)]


def _tick(value: float) -> str:
    return f"{value:,.10g}".replace("-", "−")


def _svg(parts: list[Markup], label: str) -> Markup:
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH:g} {_BOTTOM + 38:g}",
        role="img",
        aria_label=label,
        font_size=FONT,
        font_family="Helvetica, Arial, sans-serif",
        fill="currentColor",
        style=STYLE,
    )
