"""A ProbeSweep as a picture, a table and a sentence: the first metric by layer beside chance, shuffled labels and bag of words."""

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64
from markupsafe import Markup

from workbench.core.picture import table
from workbench.core.svg import BLUE, ORANGE, Scale, number, scale, shorten, tag, text_width
from workbench.probe.sweep import ProbeSweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, FONT = 460.0, 210.0, 11.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 10.0, 10.0, 34.0
GRAY = "#7d858e"
NAMES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "spearman": "Spearman correlation",
    "r_squared": "R²",
}
SHOWN = 64
"""Rows of the table at most; `frame` has all."""


def said(sweep: ProbeSweep) -> str:
    """The probe at the layer that the training rows chose, with its controls, in one sentence."""
    name, site = _name(sweep), sweep.places[0].site
    words = _interval(*sweep.words[0])
    if not np.isfinite(sweep.cross_validated).any():
        best = int(np.nanargmax(sweep.value[:, 0]))
        return (
            f"{name} up to {number(sweep.value[best, 0])} over {len(sweep)} probes, of which none was chosen (too few rows to "
            f"cross-validate), bag of words {words}, n = {sweep.n} held out"
        )
    place = sweep.best()
    i = sweep.places.index(place)
    where = f"layer {place.layer}" + (f" of {place.site}" if any(p.site != site for p in sweep.places) else "")
    shuffled = f"; shuffled labels {_range(sweep.shuffled[i, 0])}" if sweep.shuffled.size else ""
    return (
        f"{name} {_interval(sweep.value[i, 0], sweep.low[i, 0], sweep.high[i, 0])} at {where}, chosen on training rows, "
        f"n = {sweep.n} held out; bag of words {words}: {'beats it' if sweep.beats_words[i] else 'not said to beat it'}"
        f"{shuffled}"
    )


def html(sweep: ProbeSweep) -> str:
    """Static HTML: the sentence, a panel a site, the table, and the reliability of the chosen probe."""
    sites = dict.fromkeys(place.site for place in sweep.places)
    head = f"{sweep.provenance.method} probe, {sweep.provenance.options.get('pool', '')} over tokens: {sweep.said()}."
    y = _scale(sweep)
    figures = [
        tag("figure", tag("figcaption", f"{_name(sweep)}, {shorten(site, 40)}"), _panel(sweep, site, y), style="margin:0 0 8px")
        for site in sites
    ]
    return str(
        tag("div", tag("p", head), tag("p", _legend(sweep), style="margin:4px 0"), *figures, _table(sweep), _reliability(sweep))
    )


def plot(sweep: ProbeSweep, ax: "Axes | None" = None) -> "Axes":
    """The picture in matplotlib: a line a site with its band, the range of shuffled labels, bag of words, chance."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    ax = plt.subplots(figsize=(7, 4))[1] if ax is None else ax
    sites = list(dict.fromkeys(place.site for place in sweep.places))
    colors = [BLUE, "#0b9a72", "#b5679a", "#4d4d4d"]
    for k, site in enumerate(sites):
        mine = _by_layer(sweep, site)
        layers, color = [sweep.places[i].layer for i in mine], colors[k % len(colors)]
        ax.plot(layers, sweep.value[mine, 0], color=color, marker="o", markersize=3, label=site)
        ax.fill_between(layers, sweep.low[mine, 0], sweep.high[mine, 0], color=color, alpha=0.2, linewidth=0)
        if sweep.shuffled.shape[2]:
            control = sweep.shuffled[mine, 0]
            name = "shuffled labels" if k == 0 else None
            ax.fill_between(layers, control.min(axis=1), control.max(axis=1), color=GRAY, alpha=0.2, linewidth=0, label=name)
    value, low, high = sweep.words[0]
    ax.axhline(value, color=ORANGE, linestyle="--", label="bag of words")
    ax.axhspan(low, high, color=ORANGE, alpha=0.12, linewidth=0)
    ax.axhline(sweep.chance[0], color=GRAY, linewidth=0.8, linestyle=":", label="chance")
    ax.set_xlabel("layer")
    ax.set_ylabel(f"{_name(sweep)} (n = {sweep.n})")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=7)
    return ax


def _name(sweep: ProbeSweep) -> str:
    several = "macro " if len(sweep.classes) > 2 and sweep.metrics[0] == "auc" else ""
    return several + NAMES[sweep.metrics[0]]


def _interval(value: float, low: float, high: float) -> str:
    return f"{number(value)} [{number(low)}, {number(high)}]" if low == low else f"{number(value)} (no interval)"


def _range(control: Float64[np.ndarray, "control"]) -> str:
    """Mean and range of the shuffled labels."""
    return f"{number(float(control.mean()))} ({number(float(control.min()))} to {number(float(control.max()))})"


def _by_layer(sweep: ProbeSweep, site: str) -> list[int]:
    mine = [i for i, place in enumerate(sweep.places) if place.site == site]
    return sorted(mine, key=lambda i: sweep.places[i].layer)


def _scale(sweep: ProbeSweep) -> Scale:
    """One vertical scale for all panels."""
    tables = (sweep.value[:, 0], sweep.low[:, 0], sweep.high[:, 0], sweep.shuffled[:, 0], sweep.words[0], sweep.chance[:1])
    return scale([float(v) for t in tables for v in t.ravel()], HEIGHT - BOTTOM, TOP, pad=0.04)


def _panel(sweep: ProbeSweep, site: str, y: Scale) -> Markup:
    mine = _by_layer(sweep, site)
    layers = [sweep.places[i].layer for i in mine]
    x = Scale(layers[0] - 0.5, layers[-1] + 0.5, LEFT, WIDTH - RIGHT)
    value, low, high = (float(v) for v in sweep.words[0])
    band = [_box(LEFT, WIDTH - RIGHT, y(low), y(high), ORANGE, 0.14)] if low == low else []
    chance = float(sweep.chance[0])
    lines = [
        tag("path", d=f"M{LEFT:g} {y(value):.2f}H{WIDTH - RIGHT:g}", stroke=ORANGE, stroke_width=1.4, stroke_dasharray="6 3"),
        tag(
            "path", d=f"M{LEFT:g} {y(chance):.2f}H{WIDTH - RIGHT:g}", stroke="currentColor", stroke_width=1, stroke_dasharray="2 3"
        ),
    ]
    return tag(
        "svg",
        *_axes(layers, x, y),
        *band,
        *lines,
        *(part for i in mine for part in _control(sweep, i, x, y)),
        *(part for i in mine for part in _probe(sweep, i, x, y)),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=f"{_name(sweep)} by layer, {site}",
        font_size=FONT,
        font_family="Helvetica, Arial, sans-serif",
        fill="currentColor",
        style="width:100%;max-width:690px;height:auto;display:block",
    )


def _axes(layers: list[int], x: Scale, y: Scale) -> list[Markup]:
    parts = []
    for value in y.ticks(5):
        at = y(value)
        parts.append(tag("path", d=f"M{LEFT:g} {at:.2f}H{WIDTH - RIGHT:g}", stroke="currentColor", stroke_opacity=0.12))
        parts.append(tag("text", f"{value:g}", x=LEFT - 5, y=at + 0.34 * FONT, text_anchor="end", fill_opacity=0.7))
    step = max(1, math.ceil((text_width(str(layers[-1]), FONT) + 6) / ((WIDTH - LEFT - RIGHT) / (layers[-1] - layers[0] + 1))))
    for layer in layers:
        if (layer - layers[0]) % step == 0:
            parts.append(tag("text", layer, x=x(layer), y=HEIGHT - BOTTOM + 15, text_anchor="middle", fill_opacity=0.7))
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*parts, tag("text", "layer", x=middle, y=HEIGHT - 4, text_anchor="middle", fill_opacity=0.7)]


def _control(sweep: ProbeSweep, i: int, x: Scale, y: Scale) -> list[Markup]:
    """The range of the shuffled labels as a gray box, their mean as a line in it."""
    control = sweep.shuffled[i, 0]
    if not control.size:
        return []
    layer = sweep.places[i].layer
    left, right, mean = x(layer - 0.28), x(layer + 0.28), float(control.mean())
    says = tag("title", f"layer {layer}, shuffled labels: {_range(control)}")
    box = _box(left, right, y(float(control.min())), y(float(control.max())), GRAY, 0.3, says)
    return [box, tag("path", d=f"M{left:.2f} {y(mean):.2f}H{right:.2f}", stroke=GRAY, stroke_width=1.4)]


def _probe(sweep: ProbeSweep, i: int, x: Scale, y: Scale) -> list[Markup]:
    """A dot with its interval; hollow where the probe is not said to beat bag of words."""
    layer, value = sweep.places[i].layer, float(sweep.value[i, 0])
    low, high = float(sweep.low[i, 0]), float(sweep.high[i, 0])
    beats = bool(sweep.beats_words[i])
    words = "beats bag of words" if beats else "not said to beat bag of words"
    says = tag("title", f"layer {layer}: {_interval(value, low, high)}, {words}")
    look = {"fill": BLUE} if beats else {"fill": "none", "stroke": BLUE, "stroke_width": 1.6}
    ends = [(y(high), y(value) - 3.4), (y(value) + 3.4, y(low))]  # two parts, so that a hollow dot stays hollow; none of NaN
    bars = [tag("path", d=f"M{x(layer):.2f} {a:.2f}V{b:.2f}", stroke=BLUE, stroke_width=1.6) for a, b in ends if b > a]
    return [*bars, tag("circle", says, cx=x(layer), cy=y(value), r=3.4, **look)]


def _box(left: float, right: float, one: float, other: float, color: str, opacity: float, *inside: Markup) -> Markup:
    top, high = min(one, other), max(abs(one - other), 1.0)
    return tag("rect", *inside, x=left, y=top, width=right - left, height=high, fill=color, fill_opacity=opacity)


def _legend(sweep: ProbeSweep) -> Markup:
    dot, ring = (
        tag("circle", cx=0, cy=0, r=4, **look) for look in ({"fill": BLUE}, {"fill": "none", "stroke": BLUE, "stroke_width": 1.8})
    )
    box = tag("rect", x=-5, y=-5, width=10, height=10, fill=GRAY, fill_opacity=0.4)
    dash, dots = (
        tag("path", d="M-6 0H6", stroke=c, stroke_width=2, stroke_dasharray=d)
        for c, d in ((ORANGE, "4 2"), ("currentColor", "2 2"))
    )
    entries = [
        (dot, "probe, beats bag of words"),
        (ring, "probe, not said to beat it"),
        *([(box, f"range of {sweep.shuffled.shape[2]} shuffled labels")] if sweep.shuffled.shape[2] else []),
        (dash, "bag of words"),
        (dots, "chance"),
    ]
    return Markup(" ").join(
        tag(
            "span",
            tag("svg", mark, viewBox="-7 -7 14 14", width=13, height=13, style="vertical-align:-2px", aria_hidden="true"),
            f" {words}",
            style="white-space:nowrap;margin-right:1.2em",
        )
        for mark, words in entries
    )


def _table(sweep: ProbeSweep) -> Markup:
    names = [NAMES[metric] for metric in sweep.metrics]
    heads = [
        "site",
        "layer",
        names[0],
        "95 % interval",
        "over bag of words",
        "shuffled",
        "cross-validated",
        *names[1:],
        "calibration error",
    ]
    rows = []
    for i, place in enumerate(sweep.places[:SHOWN]):
        error = sweep.calibration[i]
        rows.append(
            [
                place.site,
                place.layer,
                number(sweep.value[i, 0]),
                _ends(sweep.low[i, 0], sweep.high[i, 0]),
                f"{sweep.gain[i, 0, 0]:+.3f} {_ends(*sweep.gain[i, 0, 1:], signed=True)}",
                _range(sweep.shuffled[i, 0]) if sweep.shuffled.size else "–",
                number(sweep.cross_validated[i]) if np.isfinite(sweep.cross_validated[i]) else "–",
                *(number(value) for value in sweep.value[i, 1:]),
                f"{number(error[0])} (expected {number(error[1])})" if np.isfinite(error[0]) else "–",
            ]
        )
    left = len(sweep) - len(rows)
    more = [tag("p", f"{left} more probes: see frame().")] if left else []
    return Markup("").join([table(heads, rows), *more])


def _reliability(sweep: ProbeSweep) -> Markup:
    """How often what the chosen probe promises comes true, in bins of equally many rows."""
    if not np.isfinite(sweep.calibration).any() or not np.isfinite(sweep.cross_validated).any():
        return Markup()
    i = sweep.index()
    rows = [[number(p), number(share), int(n)] for p, share, n in sweep.reliability[i]]
    summary = f"Calibration of {sweep.places[i].site} at layer {sweep.places[i].layer}, {len(rows)} bins of equally many rows"
    of = "that is right" if len(sweep.classes) > 2 else f"that is {list(sweep.classes)[-1]!r}"
    return tag("details", tag("summary", summary), table(["mean probability", f"share {of}", "rows"], rows))


def _ends(low: float, high: float, *, signed: bool = False) -> str:
    if low != low:
        return "no interval"
    return f"[{low:+.3f}, {high:+.3f}]" if signed else f"[{number(low)}, {number(high)}]"
