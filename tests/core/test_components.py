"""Components: means with intervals, the grid, tables and pictures, and a file that holds it all exactly."""

import inspect

import numpy as np
import pytest

from workbench.core.components import OUTSIDE, Agreement, Components, Place
from workbench.core.errors import DataError, InputError, NumericsError, ShapeError, UnknownNameError
from workbench.core.records import Provenance
from workbench.core.statistics import mean_estimate

NAN = float("nan")
EFFECTS = np.array([[1.0, -4.0, 0.5, 2.0], [3.0, -5.0, 0.5, NAN], [2.0, -9.0, 0.5, NAN], [6.0, 2.0, 0.5, 3.0]])
PLACES = [Place(0, 0), Place(0, 1), Place(2, 0), Place(2, 1)]


def made(kind="head", effects=EFFECTS, places=PLACES, site="attn.hook_z", **options):
    about = Provenance("a <b>method</b>", "model", options={"x": 1}, notes={"kept": 4})
    options = {"unit": "nats", "direction": "denoise", "provenance": about, **options}
    return Components.of(kind, [site] * len(places), places, effects, **options)


@pytest.mark.parametrize("seed", [0, 5])
def test_means_and_intervals_are_those_of_the_package(seed):
    """By hand: (1 + 3 + 2 + 6) / 4 = 3, (-4 - 5 - 9 + 2) / 4 = -4, 1/2, (2 + 3) / 2 = 5/2 over the two pairs that have it."""
    found = made(seed=seed)
    assert found.value.tolist() == [3.0, -4.0, 0.5, 2.5]
    assert found.n.tolist() == [4, 4, 4, 2]
    for i, column in enumerate(EFFECTS.T):
        value, low, high, n = mean_estimate(column[~np.isnan(column)], seed=seed)
        # rtol: the same resamples, summed in another order
        np.testing.assert_allclose((found.value[i], found.low[i], found.high[i], found.n[i]), (value, low, high, n), rtol=1e-12)
    assert found.low[2] == found.high[2] == 0.5
    drawn = np.random.default_rng(1).normal(size=(9, 4))
    many = made(effects=drawn, seed=seed)
    for i, column in enumerate(drawn.T):
        np.testing.assert_allclose((many.low[i], many.high[i]), mean_estimate(column, seed=seed)[1:3], rtol=1e-12)


def test_one_pair_has_no_interval():
    found = made(effects=np.array([[1.0, 2.0, NAN, 3.0], [NAN, 4.0, 5.0, NAN]]))
    assert found.value.tolist() == [1.0, 3.0, 5.0, 3.0]
    assert np.isnan(found.low).tolist() == np.isnan(found.high).tolist() == [True, False, True, True]
    assert found.n.tolist() == [1, 2, 1, 1]
    assert "NaN" in found._repr_html_()


def test_many_components_are_resampled_in_parts(monkeypatch):
    effects = np.random.default_rng(0).normal(size=(5, 40))
    places = [Place(0, i) for i in range(40)]
    whole = made(effects=effects, places=places)
    monkeypatch.setattr("workbench.core.components._CHUNK", 2000 * 7)
    parts = made(effects=effects, places=places)
    np.testing.assert_allclose(parts.low, whole.low, rtol=1e-12)  # another blocking of the same matrix product
    np.testing.assert_array_equal(parts.value, whole.value)


def test_grid():
    """Layer 1 has none of these components and is no row; what is missing in a row is NaN, not 0."""
    found = made(effects=EFFECTS[:, :3], places=PLACES[:3])
    assert (found.rows, found.columns) == ([0, 2], [0, 1])
    np.testing.assert_array_equal(found.values, [[3.0, -4.0], [0.5, NAN]])


def test_positions_from_the_end():
    found = made("resid", places=[Place(0, -1), Place(0, -2), Place(1, -1), Place(1, -2)], site="resid_pre")
    assert found.columns == [-2, -1]
    np.testing.assert_array_equal(found.values, [[-4.0, 3.0], [2.5, 0.5]])
    assert found.frame()["index"].tolist() == [-2, -1, -2, -1]


def test_what_lies_outside_the_layers():
    places = [Place(OUTSIDE, OUTSIDE), Place(0, 1), Place(0, OUTSIDE)]
    about = Provenance("m", "model")
    found = Components.of(
        "writer", ["embed", "attn.hook_z", "mlp_out"], places, EFFECTS[:, :3], unit="logits", direction="", provenance=about
    )
    np.testing.assert_array_equal(found.values, [[-4.0]])  # the heads alone
    frame = found.frame()
    assert frame["site"].tolist() == ["attn.hook_z", "embed", "mlp_out"]
    assert frame["layer"].isna().tolist() == [False, True, False]
    assert frame["index"].isna().tolist() == [False, True, True]


def test_the_largest_first():
    found = made(agreement=Agreement(0.5, 2, (PLACES[0], PLACES[1]), (1.0, 2.0)))
    assert found.top(2).places == [(0, 1), (0, 0)]
    assert found.top(2).agreement == found.agreement
    assert found.frame()["value"].tolist() == [-4.0, 3.0, 2.5, 0.5]
    for k in (0, 5):
        with pytest.raises(InputError, match=f"k is {k}, expected 1 to 4"):
            found.top(k)
    with pytest.raises(InputError, match=r"k is 2.0, expected 1 to 4"):
        inspect.unwrap(Components.top)(found, 2.0)  # pytest checks annotations; users do not


@pytest.mark.parametrize(
    "agreement",
    [None, Agreement(0.25, 2, (Place(0, 1), Place(2, 0)), (1 / 3, -2.0)), Agreement(NAN, 1, (Place(0, 1),), (0.0,), "why not")],
)
def test_a_file_holds_it_exactly(tmp_path, agreement):
    places = [Place(OUTSIDE, OUTSIDE), Place(0, 1), Place(2, 0), Place(2, 1)]
    about = Provenance("m", "model", {"contrasts": "f"}, {"verify": 3}, 4, "torch.float64", "mean", 17, {"dropped": {"a": 1}})
    sites = ["embed", "attn.hook_z", "mlp_out", "attn.hook_z"]
    found = Components.of("writer", sites, places, EFFECTS / 3, unit="u", direction="d", provenance=about, agreement=agreement)
    found.save(tmp_path / "c.safetensors")
    back = Components.load(tmp_path / "c.safetensors")
    for name in ("layer", "index", "value", "low", "high", "n"):
        np.testing.assert_array_equal(getattr(back, name), getattr(found, name), strict=True)
    assert (back.kind, back.site, back.unit, back.direction) == (found.kind, found.site, "u", "d")
    assert back.provenance == found.provenance
    assert repr(back.agreement) == repr(agreement)


def test_what_it_says():
    assert "not checked against true patching" in repr(made())
    said = repr(made(agreement=Agreement(0.8125, 4, (), ())))
    assert "4 x head, nats, denoise; Spearman with true patching 0.812 on 4 components" in said
    assert "on 4 components, spread evenly over the ranking" in said
    assert "undefined (one component) on 1 component)" in repr(made(agreement=Agreement(NAN, 1, (), (), "one component")))
    assert "undefined (all estimates are equal)" in repr(made(agreement=Agreement(NAN, 2, (), (), "all estimates are equal")))


@pytest.mark.parametrize(("kind", "site"), [("head", "attn.hook_z"), ("neuron", "mlp.post"), ("resid", "resid_pre")])
def test_notebook_picture(kind, site):
    places = [Place(layer, -index if kind == "resid" else index) for layer in (0, 1) for index in (1, 2)]
    html = made(kind, places=places, site=site)._repr_html_()
    assert "<b>" not in html
    assert "not checked against true patching" in html
    assert ("<svg" in html) == (kind != "neuron")
    assert ("largest |value|" in html) == (kind == "neuron")


def test_plots():
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    image = made().plot().images[0]
    np.testing.assert_array_equal(image.get_array(), [[3.0, -4.0], [0.5, 2.5]])
    assert image.get_clim() == (-4.0, 4.0)
    ax = made(effects=np.zeros((2, 4))).plot(plt.figure().subplots())
    assert ax.images[0].get_clim() == (0.0, 1.0)
    neurons = made("neuron", site="mlp.post").plot()
    assert [bar.get_height() for bar in neurons.patches] == [4.0, 2.5]
    plt.close("all")


def test_refused():
    with pytest.raises(UnknownNameError, match="unknown kind of component 'heads'. Did you mean 'head'"):
        made("heads")
    with pytest.raises(DataError, match="measured on no pair"):
        made(effects=np.array([[1.0, NAN, 1.0, 1.0]] * 2))
    with pytest.raises(ShapeError, match=r"lengths \[3, 4\]"):
        Components.of("head", ["x"] * 3, PLACES, EFFECTS, unit="", direction="", provenance=Provenance("m", "model"))
    with pytest.raises(NumericsError, match="Components: effects"):
        made(effects=EFFECTS * np.inf)
