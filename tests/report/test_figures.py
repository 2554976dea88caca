"""Labels that do not collide, ticks, the layer panels, numbers as text, and the words that are underlined."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest

from workbench.core.svg import Scale, clean, label, number, percent, scale, shorten, tag, text_width
from workbench.report.labels import Box, place
from workbench.report.layers import panels, short
from workbench.report.words import listed, underlined


def overlap(a: Box, b: Box) -> float:
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    return max(width, 0) * max(height, 0)


@pytest.mark.parametrize("spread", [0.0, 5.0, 60.0])
def test_labels_of_a_crowd_do_not_overlap_and_stay_inside(spread: float) -> None:
    rng = np.random.default_rng(0)
    points = [(300 + spread * dx, 200 + spread * dy) for dx, dy in rng.normal(size=(12, 2))]
    markers = [Box(x - 8, y - 8, x + 8, y + 8) for x, y in points]
    bounds = Box(0, 0, 700, 400)
    boxes = place(points, [(60.0 + 8 * i, 14.0) for i in range(12)], bounds, blocked=markers, lines=[])
    assert sum(overlap(a, b) for a, b in itertools.combinations(boxes, 2)) == 0
    # a marker is a pixel smaller than its box, so a corner may be cut where that saves a long leader
    assert sum(overlap(box, marker) for box in boxes for marker in markers) < 1
    assert all(overlap(box, bounds) == pytest.approx((box.right - box.left) * (box.bottom - box.top)) for box in boxes)


def test_a_lone_label_stands_to_the_right_and_a_cornered_one_turns_inwards() -> None:
    bounds = Box(0, 0, 400, 300)
    (free,) = place([(100, 100)], [(50, 14)], bounds, blocked=[], lines=[])
    assert free == pytest.approx((108, 93, 158, 107))  # 8 pixels away, centered on the point's height
    (corner,) = place([(395, 100)], [(50, 14)], bounds, blocked=[], lines=[])
    assert corner.right <= 400


def test_ticks_are_round_and_inside() -> None:
    assert Scale(0.013, 0.98, 0, 100).ticks(5) == [0.2, 0.4, 0.6, 0.8]
    assert Scale(-1.0, 1.0, 0, 100).ticks(4) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert Scale(0, 7000, 0, 100).ticks(4) == [0, 2000, 4000, 6000]


def test_a_scale_of_one_value_has_a_width_and_ignores_nan() -> None:
    one = scale([math.nan, 0.5, 0.5], 0, 100)
    assert one.low < 0.5 < one.high
    assert one(0.5) == pytest.approx(50)


def test_panels_share_an_axis_and_draw_zero_below_it() -> None:
    frame = pd.DataFrame({"arm": ["a", "a", "a", "b"], "layer": ["m.0", "m.1", "lm_head", "m.0"], "ratio": [0.001, 0.1, 0.0, 0.01]})
    drawn = panels(frame)
    assert list(drawn) == ["a", "b"]
    height = {m[1]: float(m[0]) for svg in drawn.values() for m in re.findall(r'cy="([\d.]+)" r="[\d.]+"[^>]*><title>([^<]*)', svg)}
    # 0.001, 0.01, 0.1 are one power of ten apart each: equal steps upwards; zero stands below all
    assert height["m.0: 0.001"] - height["m.0: 0.01"] == pytest.approx(height["m.0: 0.01"] - height["m.1: 0.1"], abs=0.02)
    assert height["lm_head: 0"] > height["m.0: 0.001"] > height["m.0: 0.01"]
    assert drawn["b"].count("<circle") == 1
    assert "10⁻³" in drawn["b"]
    assert "10⁻¹" in drawn["b"]
    assert drawn["a"].count("L") == 1, "one line, between the two layers that moved"
    assert short("model.layers.12") == "12"
    assert short("lm_head") == "lm_he"


def test_panels_of_arms_that_moved_nothing_are_drawn() -> None:
    drawn = panels(pd.DataFrame({"arm": ["a"], "layer": ["m.0"], "ratio": [0.0]}))
    assert drawn["a"].count("<circle") == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.98349, "0.983"),
        (0.0, "0.000"),
        (12.345, "12.3"),
        (1234.6, "1,235"),
        (1.86e-23, "1.86e-23"),
        (2e-4, "2.00e-4"),
        (math.nan, "NaN"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.842, "84.2 %"), (0.9999, "99.9 %"), (0.0031, "0.31 %"), (1e-9, "< 0.01 %")],
)
def test_a_share_is_never_rounded_to_none_or_all(share: float, text: str) -> None:
    assert percent(share) == text


def test_labels_of_metrics() -> None:
    assert label("rouge_l_recall") == "ROUGE-L recall"
    assert label("ks_distance") == "KS distance"
    assert label("model_utility_geometric") == "model utility (geometric)"


def test_tags_escape_children_and_attributes() -> None:
    html = tag("g", "<b>", tag("title", "&"), data_arm='"><i>', x=1.5, y=2.0)
    assert html == '<g data-arm="&#34;&gt;&lt;i&gt;" x="1.5" y="2">&lt;b&gt;<title>&amp;</title></g>'


def test_text_is_cleaned_shortened_and_measured() -> None:
    assert clean("a\r\nb\x00\x1b\ud83d\u202e\tc") == "a\nb\ufffd\ufffd\ufffd\ufffd\tc"
    assert shorten("one two\nthree", 9) == "one two…"
    assert text_width("日本", 10) == 20
    assert text_width("ill", 10) < text_width("mmm", 10)


def test_underlined_words_are_the_longest_common_subsequence() -> None:
    # in both, in order: "a mat" (2 words) or "the cat sat there" (4)
    assert underlined("a mat, the cat sat there", "The cat sat there on a mat.") == "a mat, <u>the cat sat there</u>"
    assert underlined("a x b\ny", "A b") == "<u>a</u> x <u>b</u>\ny"
    assert underlined("<i>", "<i>") == "<u>&lt;i&gt;</u>"
    assert underlined("", "a") == ""


def test_lists_in_sentences() -> None:
    assert [listed("abc"[:n]) for n in range(4)] == ["none", "a", "a and b", "a, b, and c"]
