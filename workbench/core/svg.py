"""Markup from Python: escaped tags, safe text, scales, ticks and the width of a line of text.

A figure is one SVG string without style sheet, script or identifier. Text and lines take `currentColor`, so it reads on
a light and on a dark background; the few colors follow Okabe and Ito's palette, at a lightness that works on both.
"""

import math
import re
from typing import NamedTuple
from unicodedata import combining, east_asian_width

from markupsafe import Markup, escape

BLUE, ORANGE, GREEN, PURPLE = "#2f7fc1", "#d9660b", "#0b9a72", "#b5679a"

# Control characters, half surrogates (no UTF-8 exists for them) and the marks that reorder the text after them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def clean(text: str) -> str:
    """`text` with what a page or terminal must not receive replaced by U+FFFD. Escaping HTML is another step."""
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n"))


def tag(name: str, *children: object, **attributes: str | float) -> Markup:
    """<name attributes>children</name>; children and attributes that are not Markup are cleaned and escaped.

    Attributes are keywords because they are data without a fixed list: "class_" is class, "font_size" is font-size.
    Floats are written with two decimals at most.
    """
    said = "".join(f' {key.rstrip("_").replace("_", "-")}="{_safe(value)}"' for key, value in attributes.items())
    inside = "".join(_safe(child) for child in children)
    return Markup(f"<{name}{said}>{inside}</{name}>")


def _safe(value: object) -> str:
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return escape(clean(str(value)))


class Scale(NamedTuple):
    """A linear map from [low, high] in data to [start, end] in pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def clipped(self, value: float) -> float:
        """The pixel of `value`, or of the nearer end of the scale."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers inside the scale, `about` many: steps of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def scale(values: list[float], start: float, end: float, *, pad: float = 0.07) -> Scale:
    """A scale that holds all finite `values` with a margin; never narrower than 1e-3 of their size."""
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite), max(finite)
    margin = max(pad * (high - low), 1e-3 * max(abs(low), abs(high)), 1e-9)
    return Scale(low - margin, high + margin, start, end)


def text_width(text: str, font_size: float) -> float:
    """Upper estimate in pixels of a line in Helvetica or a face of its width; only a browser has exact metrics."""
    ems = sum(0 if combining(c) else 1.0 if east_asian_width(c) in "WF" else _NARROW.get(c, 0.58) for c in text)
    return ems * font_size


_NARROW = dict.fromkeys("iljtf.,:;'|!()[] -", 0.34)


def shorten(text: str, limit: int) -> str:
    """`text` on one line and at most `limit` characters long."""
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def number(value: float) -> str:
    """Three decimals near one, three digits elsewhere: 0.983, 12.4, 1.86e-23."""
    if value != value:
        return "NaN"
    if abs(value) < 0.001 and value != 0:
        return re.sub(r"e([+-])0", r"e\1", f"{value:.2e}")
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share as a percentage that never rounds something to nothing: 0 %, < 0.01 %, 0.31 %, 84.2 %, 100 %."""
    if share == 0 or share == 1:
        return f"{share:.0%}".replace("%", " %")
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{min(100 * share, 99.9):.1f} %" if share >= 0.1 else f"{100 * share:.2f} %"


def label(metric: str) -> str:
    """A metric's name for readers: rouge_l_recall -> ROUGE-L recall, ks_distance -> KS distance."""
    words = metric.replace("rouge_l", "ROUGE-L").replace("rouge_1", "ROUGE-1").replace("ks_", "KS ").replace("_", " ")
    return re.sub(r" (geometric|arithmetic|harmonic)$", r" (\1)", words)
