"""Pictures of Scores and Mask: what they show, in colors and numbers, and what must never be in them."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import workbench as wb
from workbench.core.errors import DataError, ShapeError
from workbench.core.picture import bars, heat_map, table, tint
from workbench.core.records import Provenance
from workbench.core.svg import percent

NAN = float("nan")


def parsed(markup):
    return ElementTree.fromstring(str(markup))  # well formed, or it raises


def titles(markup):
    return [e.text for e in parsed(markup).iter("title")]


def texts(markup):
    return [e.text for e in parsed(markup).iter("text")]


def cells(markup):
    """The rectangles that say something: x, y, width, fill, opacity by tooltip."""
    return {e.find("title").text: e.attrib for e in parsed(markup).iter("rect") if e.find("title") is not None}


def a_model(layers, *, method="test", shift=0.0):
    g = torch.Generator().manual_seed(0)
    kinds = {"self_attn.q_proj.weight": (4, 3), "mlp.up_proj.weight": (6, 5), "input_layernorm.weight": (7,)}
    tensors = {"model.embed_tokens.weight": torch.randn(9, 4, generator=g) + shift}
    for layer in range(layers):
        tensors |= {f"model.layers.{layer}.{k}": torch.randn(s, generator=g) + shift for k, s in kinds.items()}
    return wb.Scores(tensors | {"lm_head.weight": torch.randn(9, 4, generator=g) + shift}, Provenance(method, "f" * 64))


def test_linear_colors_by_hand():
    signed = tint(np.array([[-2.0, 1.0, NAN]]), signed=True)
    assert [signed.strength(v) for v in (-2.0, 0.0, 1.0)] == [-1.0, 0.0, 0.5]
    assert [signed.says(s) for s in (-1.0, 0.0, 0.5)] == ["-2.000", "0.000", "1.000"]
    plain = tint(np.array([[2.0, 1.0, NAN]]), signed=False)
    assert [plain.strength(v) for v in (0.0, 1.0, 2.0)] == [0.0, 0.5, 1.0]  # from zero, though none is zero


def test_logarithmic_colors_by_hand():
    # 100 is more than ten times the median size of 1, 1, 1, 100: colors go from 1 to 100, and 10 is half way
    plain = tint(np.array([0.0, 1.0, 1.0, 1.0, 100.0]), signed=False)
    assert [plain.strength(v) for v in (0.0, 0.5, 1.0, 100.0)] == [0.0, 0.0, 0.0, 1.0]
    assert plain.strength(10.0) == pytest.approx(0.5, rel=1e-12)
    assert [plain.says(s) for s in (0.0, 0.5, 1.0)] == ["1.000", "10", "100"]
    signed = tint(np.array([-1.0, 1.0, 1.0, -100.0]), signed=True)
    assert [signed.strength(v) for v in (-100.0, -0.5, 0.5, 100.0)] == [-1.0, 0.0, 0.0, 1.0]
    assert signed.strength(-10.0) == pytest.approx(-0.5, rel=1e-12)
    assert [signed.says(s) for s in (-1.0, -0.5, 0.0, 0.5)] == ["-100", "-10", "±1.000", "10"]
    assert tint(np.array([1e-9, 1.0, 1e-9]), signed=False).low == 1e-4  # four powers of ten, not nine


@pytest.mark.parametrize("values", [[0.0, 0.0], [NAN, 3.0], [-5.0, -5.0], [1e-300, 1.0], [-1.0, 1e-8]])
@pytest.mark.parametrize("signed", [True, False])
def test_odd_values_have_colors(values, signed):
    colors = tint(np.array([values]), signed=signed)
    assert all(-1 <= colors.strength(v) <= 1 for v in values if v == v)
    assert "none" not in heat_map(["r"], ["a", "b"], np.array([values]), label="x", signed=signed)


def test_heat_map_shows_every_finite_value():
    values = np.array([[-1.0, 0.5, NAN], [0.25, 1.0, float("inf")]])
    picture = heat_map(["up", "down"], ["0", "1", "–"], values, label="mean score", signed=True, across="layer")
    found = cells(picture)
    assert list(found) == ["up, layer 0: -1.000", "up, layer 1: 0.500", "down, layer 0: 0.250", "down, layer 1: 1.000"]
    fills = [(cell["fill"], cell["fill-opacity"]) for cell in found.values()]
    assert fills[0] == ("#2f7fc1", "1")  # blue, the strongest below zero
    assert fills[3] == ("#d9660b", "1")  # orange
    # one at a quarter: .15 + .85 / 4 = .3625; both positive cells have the hue, the weaker one less opacity
    assert [float(opacity) for _, opacity in fills[1:3]] == [0.57, 0.36]
    assert [t for t in texts(picture) if t.lstrip("-").replace(".", "").isdigit()][-5:] == [
        "-1.000",
        "-0.500",
        "0.000",
        "0.500",
        "1.000",
    ]


def test_nothing_finite_says_so():
    assert "no finite value" in heat_map(["r"], ["c"], np.array([[NAN]]), label="x", signed=False)
    assert "no finite value" in heat_map([], [], np.zeros((0, 0)), label="x", signed=False)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (12, 81), (80, 64)])
def test_everything_lies_inside_and_labels_do_not_overlap(rows, columns):
    names = [f"self_attn.a_very_long_name_of_a_projection_{i}.weight" for i in range(rows)]
    picture = heat_map(
        names, [str(j) for j in range(columns)], np.ones((rows, columns)), label="x", signed=False, apart=columns > 1
    )
    _, _, width, height = map(float, parsed(picture).attrib["viewBox"].split())
    assert width == 460
    assert height < 620
    found = cells(picture).values()
    assert len(found) == rows * columns
    assert max(float(c["x"]) + float(c["width"]) for c in found) <= width
    assert min(float(c["x"]) for c in found) > 0
    beside = [float(e.attrib["y"]) for e in parsed(picture).iter("text") if e.attrib.get("text-anchor") == "end"]
    assert all(b - a >= 10.9 for a, b in pairwise(beside))  # 11 units of text, two decimals
    below = [e for e in parsed(picture).iter("text") if e.attrib.get("text-anchor") == "middle"][:-5]
    ends = [(float(e.attrib["x"]) - 3.2 * len(e.text), float(e.attrib["x"]) + 3.2 * len(e.text)) for e in below]
    assert all(right <= left for (_, right), (left, _) in pairwise(ends))


def test_bars_by_hand():
    picture = bars(["a", "b", "c"], [0.1, 0.4, NAN], label="share", line=0.2, line_label="random:", write=percent)
    found = cells(picture)
    assert float(found["b: 40.0 %"]["width"]) == pytest.approx(4 * float(found["a: 10.0 %"]["width"]), abs=0.02)
    assert list(found) == ["a: 10.0 %", "b: 40.0 %"]
    assert "NaN" in texts(picture)
    assert "random: 20.0 %" in texts(picture)
    start = float(found["b: 40.0 %"]["x"])
    rule = next(e.attrib["d"] for e in parsed(picture).iter("path"))
    # the line at 20 % is half way along the bar of 40 %; its place is written with one decimal
    assert float(re.match(r"M([\d.]+)", rule)[1]) == pytest.approx(start + float(found["b: 40.0 %"]["width"]) / 2, abs=0.06)


def test_bars_below_zero_start_at_zero():
    found = cells(bars(["a", "b"], [-1.0, 1.0], label="x"))
    left, right = found["a: -1.000"], found["b: 1.000"]
    assert float(left["x"]) + float(left["width"]) == pytest.approx(float(right["x"]), abs=0.02)
    assert float(left["width"]) == pytest.approx(float(right["width"]), abs=0.02)  # two decimals, twice
    assert float(left["width"]) > 100


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match=r"values is \(1, 2\), but there are 2 rows and 1 columns"):
        heat_map(["a", "b"], ["c"], np.ones((1, 2)), label="x", signed=False)
    with pytest.raises(ShapeError, match="2 labels and 1 values"):
        bars(["a", "b"], [1.0], label="x")


@pytest.mark.parametrize("layers", [0, 2, 80])
def test_scores_as_html(layers):
    scores = a_model(layers)
    page = scores._repr_html_()
    found = cells(page)
    means = {n: float(t.double().mean()) for n, t in scores.tensors.items()}
    assert len(found) == len(means)
    if layers:
        assert f"mlp.up_proj.weight, layer 1: {means['model.layers.1.mlp.up_proj.weight']:.3f}" in found
    rows = [["".join(td.itertext()) for td in tr.iter("td")] for tr in parsed(page).iter("tr")][1:]
    assert [row[0] for row in rows] == sorted(means, key=means.get, reverse=True)[:12]


def test_scores_of_one_sign_have_one_color():
    above = a_model(2, shift=9.0)._repr_html_()
    assert not any("#2f7fc1" in c["fill"] for c in cells(above).values())
    assert not any(text.startswith("-") for text in texts(above))  # the scale starts at zero
    assert any(c["fill"][1:3] < "80" for c in cells(a_model(2)._repr_html_()).values())  # less red than gray: blue


@pytest.mark.parametrize("layers", [0, 2, 80])
def test_mask_as_html(layers):
    mask = a_model(layers).mask(0.25)
    page = mask._repr_html_()
    shares = mask.by_module().set_index("parameter")
    said = titles(page)
    embed = shares.loc["model.embed_tokens.weight"]
    assert f"model.embed_tokens.weight: {percent(embed['share'])}" in said
    assert f"a random choice of the same size: {percent(mask.count / mask.n_weights)}" in texts(page)
    if layers:
        assert [title.split(":")[0] for title in said[-layers - 1 :]] == [*map(str, range(layers)), "–"]  # not as they come
        layer = shares[shares["layer"] == "model.layers.1"]
        assert f"1: {percent(layer['chosen'].sum() / layer['weights'].sum())}" in said
        kind = shares[shares.index.str.endswith("up_proj.weight")]
        assert f"mlp.up_proj.weight: {percent(kind['chosen'].sum() / kind['weights'].sum())}" in said


def test_a_name_is_never_markup():
    evil = "<script src='https://x'>alert(1)</script>&\u202e\x00"
    scores = wb.Scores({evil: torch.rand(5, 5), f"h.0.{evil}": torch.rand(2)}, Provenance(evil, "f" * 64))
    for page in (scores._repr_html_(), scores.mask(0.5)._repr_html_(), str(table([evil], [[evil]]))):
        parsed(page)
        assert "<script" not in page
        assert "\u202e" not in page
        assert "\x00" not in page


def test_nothing_that_loads_runs_or_collides():
    scores = a_model(3)
    for page in (scores._repr_html_(), scores.mask(0.5)._repr_html_()):
        assert not re.search(r"<script|<style|<link|https?:|url\(|xmlns| id=| on\w+=|href", page)
        for svg in parsed(page).iter("svg"):
            assert {"viewBox", "role", "aria-label"} <= set(svg.attrib)
            assert "width:100%;max-width:" in svg.attrib["style"]
            assert svg.attrib["fill"] == "currentColor"


@pytest.mark.parametrize(("layers", "shift", "limits"), [(2, 0.0, "centered"), (3, 9.0, "from zero"), (80, 0.0, "centered")])
def test_scores_plot(layers, shift, limits):
    scores = a_model(layers, shift=shift)
    ax = scores.plot()
    drawn = ax.images[0]
    assert drawn.get_array().shape == (5, layers + 1)
    low, high = drawn.norm.vmin, drawn.norm.vmax
    assert low == (-high if limits == "centered" else 0.0)
    plt.close(ax.figure)
    axes = plt.subplots()[1]
    assert scores.plot(axes) is axes
    plt.close(axes.figure)


def test_heavy_tails_plot_in_logarithms():
    tensors = {f"h.{i}.w": torch.full((3,), 1.0 if i else 1000.0) for i in range(5)} | {"h.5.w": torch.zeros(2)}
    ax = wb.Scores(tensors, Provenance("test", "f" * 64)).plot()
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (1.0, 1000.0)
    assert float(ax.images[0].norm(ax.images[0].get_array()[0, 5])) == 0.0  # a zero is the weakest color, not a hole
    plt.close(ax.figure)
    tensors["h.1.w"] = -tensors["h.1.w"]
    ax = wb.Scores(tensors, Provenance("test", "f" * 64)).plot()
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax, ax.images[0].norm.linthresh) == (-1000.0, 1000.0, 1.0)
    plt.close(ax.figure)


def test_no_finite_mean_cannot_be_plotted():
    bad = wb.Scores({"w": torch.full((2,), NAN)}, Provenance("test", "f" * 64))
    assert "no finite value" in bad._repr_html_()
    with pytest.raises(DataError, match="no tensor has a finite mean"):
        bad.plot()


def test_mask_plot():
    mask = a_model(2).mask(0.25)
    ax = mask.plot()
    assert len(ax.patches) == 5  # module kinds
    up = mask.by_module().set_index("parameter").filter(like="up_proj", axis=0)
    assert up["chosen"].sum() / up["weights"].sum() in [bar.get_width() for bar in ax.patches]
    assert ax.lines[0].get_xdata()[0] == mask.count / mask.n_weights
    plt.close(ax.figure)
