"""ProbeSweep: what it gives back, what it refuses, and how it is shown and kept."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.tiny import tiny
from workbench.core.direction import Direction
from workbench.core.errors import InputError, MismatchError, ShapeError, UnknownNameError
from workbench.core.records import Provenance
from workbench.load.texts import encode_texts
from workbench.probe import At, LinearProbe, ProbeSweep, fit
from workbench.trace.features import features

NAN = float("nan")
TABLES = ("value", "low", "high", "chance", "shuffled", "words", "gain", "cross_validated", "calibration", "reliability", "held")


def made(*, sites=("resid_post",), n_layers=3, classes=("<b>no</b>", "yes"), controls=4, seed=0):
    """A sweep of made-up numbers; the second layer has the best cross-validated value, the last the best held-out one."""
    rng = np.random.default_rng(seed)
    places = tuple(At(site, layer) for site in sites for layer in range(n_layers))
    n, rows = len(places), 1 if len(classes) < 3 else len(classes)
    value = np.sort(rng.uniform(0.6, 0.9, size=(n, 3)), axis=0)
    crossed = rng.uniform(0.5, 0.6, n)
    crossed[1] = 0.8
    gain = np.stack([value - 0.7, value - 0.75, value - 0.65], axis=2)
    notes = {"base_model": "the base"}
    options = {"pool": "mean", "bos": False, "chat": False, "max_tokens": None}
    return ProbeSweep(
        places=places,
        probes=tuple(LinearProbe(rng.normal(size=(rows, 5)), rng.normal(size=rows), classes, True, {"x": 1 / 3}) for _ in places),
        metrics=("auc", "accuracy", "balanced_accuracy"),
        classes=classes,
        value=value,
        low=value - 0.05,
        high=value + 0.05,
        chance=np.array([0.5, 0.6, 0.5]),
        shuffled=rng.uniform(0.45, 0.55, size=(n, 3, controls)),
        words=np.array([[0.7, 0.65, 0.75]] * 3),
        gain=gain,
        cross_validated=crossed,
        calibration=np.array([[0.05, 0.04, 0.02, 0.06]] * n),
        reliability=np.array([[[0.2, 0.25, 10.0], [0.8, 0.7, 10.0]]] * n),
        held=np.arange(20) * 2,
        n_train=50,
        provenance=Provenance("logistic", "model", {"texts": "abc"}, options, 3, notes=notes),
    )


# --- choosing and directions ------------------------------------------------------------------------------------------


def test_the_best_is_not_the_one_with_the_best_held_out_value():
    sweep = made()
    assert sweep.value[:, 0].argmax() == 2
    assert sweep.best() == At("resid_post", 1)
    assert sweep.index() == 1
    two = made(sites=("resid_post", "mlp_out"))
    assert two.best("mlp_out").site == "mlp_out"
    assert two.best() == At("resid_post", 1)
    partly = replace(made(), cross_validated=np.array([NAN, NAN, 0.6]))
    assert partly.best() == At("resid_post", 2)


def test_to_beat_words_that_mislead_is_not_enough():
    """Gains whose interval lies above 0: of the probe below chance, of the one whose interval holds it, and of the one above."""
    sweep = replace(made(), gain=np.full((3, 3, 3), 0.1), low=np.array([[0.3], [0.45], [0.55]]).repeat(3, axis=1))
    assert sweep.beats_words.tolist() == [False, False, True]
    frame = sweep.frame()
    # accuracy is asked against its own chance, .6
    assert frame[frame["metric"] == "accuracy"]["beats_words"].tolist() == [False, False, False]


def test_a_direction_is_the_unit_weight():
    """w = (0, 3, 0, -4, 0) is (0, .6, 0, -.8, 0), and the other class the other way."""
    sweep = made()
    sweep = replace(
        sweep, probes=(sweep.probes[0], replace(sweep.probes[1], weight=np.array([[0, 3.0, 0, -4, 0]])), sweep.probes[2])
    )
    found = sweep.direction(1)
    np.testing.assert_allclose(found.vector, [0, 0.6, 0, -0.8, 0], rtol=1e-6)  # float32
    assert (found.site, found.layer) == ("resid_post", 1)
    np.testing.assert_array_equal(sweep.direction(1, cls="<b>no</b>").vector, -found.vector)
    np.testing.assert_array_equal(sweep.direction(1, cls="yes").vector, found.vector)
    np.testing.assert_array_equal(sweep.direction().vector, found.vector)
    about = found.provenance
    assert (about.method, about.model, about.data, about.seed) == ("probe logistic", "model", {"texts": "abc"}, 3)
    assert about.notes["auc"] == sweep.value[1, 0]
    assert about.notes["auc_interval"] == [sweep.low[1, 0], sweep.high[1, 0]]
    assert (about.notes["positive"], about.notes["n"]) == ("yes", 20)


def test_one_direction_a_layer_and_of_more_classes_one_a_class():
    assert [d.layer for d in made().directions()] == [0, 1, 2]
    two = made(sites=("resid_post", "mlp_out"))
    assert [(d.site, d.layer) for d in two.directions(site="mlp_out")] == [("mlp_out", 0), ("mlp_out", 1), ("mlp_out", 2)]
    three = made(classes=("a", "b", "c"))
    assert [(d.layer, d.provenance.notes["positive"]) for d in three.directions()] == [(i, c) for i in range(3) for c in "abc"]
    assert [d.provenance.notes["positive"] for d in three.directions(cls="b")] == ["b"] * 3
    weight = three.probes[2].weight[1]
    np.testing.assert_allclose(three.direction(2, cls="b").vector, weight / np.linalg.norm(weight), rtol=1e-6)


def test_a_direction_can_be_saved(tmp_path):
    found = made().direction(0)
    found.save(tmp_path / "d.safetensors")
    back = Direction.load(tmp_path / "d.safetensors")
    assert torch.equal(back.vector, found.vector)
    assert back.provenance.notes == found.provenance.notes
    no_interval = replace(made(), value=np.full((3, 3), NAN), low=np.full((3, 3), NAN), high=np.full((3, 3), NAN)).direction(0)
    no_interval.save(tmp_path / "d.safetensors")  # JSON has no NaN
    assert Direction.load(tmp_path / "d.safetensors").provenance.notes["auc_interval"] == [None, None]


def test_refused_places():
    sweep, two, three = made(), made(sites=("resid_post", "mlp_out")), made(classes=("a", "b", "c"))
    with pytest.raises(InputError, match="no probe at layer 5; the layers are 0, 1, 2"):
        sweep.direction(5)
    with pytest.raises(UnknownNameError, match="unknown site of the sweep 'resid_pots'. Did you mean 'resid_post'"):
        sweep.direction(0, site="resid_pots")
    with pytest.raises(InputError, match="which site. There are resid_post, mlp_out"):
        two.direction(0)
    with pytest.raises(InputError, match="several sites; give site="):
        two.directions()
    with pytest.raises(UnknownNameError, match="unknown class of the probe 'maybe'"):
        sweep.direction(0, cls="maybe")
    with pytest.raises(UnknownNameError, match="unknown class of the probe 'None'. Known: a, b, c"):
        three.direction(0)
    with pytest.raises(InputError, match="so no layer can be chosen"):
        replace(sweep, cross_validated=np.full(3, NAN)).direction()


# --- on texts ---------------------------------------------------------------------------------------------------------


def texts(n=40):
    """Even ones begin with blue, odd ones with green; all differ."""
    numbers = ["what", "is", "the", "sky", "sea", "grass", "very"]
    return [" ".join([("blue", "green")[i % 2], numbers[i // 2 % 7], numbers[i // 14], "of", *["a"] * (i % 3)]) for i in range(n)]


def test_scores_are_the_decisions_on_features_of_new_texts(tmp_path):
    model, new = tiny(), ["what is the sea", "green sky of a very very very green sea and"]
    sweep = fit(model, texts(), [i % 2 for i in range(40)], pool="last", max_tokens=6, controls=0)
    x = features(model, encode_texts(model, new, max_tokens=6), pool="last")["resid_post", 1].double()
    expected = x @ torch.from_numpy(sweep.probes[1].weight.T) + torch.from_numpy(sweep.probes[1].intercept)
    np.testing.assert_allclose(sweep.scores(model, new, 1), expected, rtol=1e-12)
    sweep.save(tmp_path / "s.safetensors")
    np.testing.assert_array_equal(ProbeSweep.load(tmp_path / "s.safetensors").scores(model, new, 1), sweep.scores(model, new, 1))


def test_scores_on_an_edited_and_on_another_model():
    model = tiny()
    sweep = fit(model, texts(), [i % 2 for i in range(40)], controls=0)
    before = sweep.scores(model, texts(2), 0)
    name = "model.layers.0.mlp.down_proj.weight"
    changed = {name: model.hf.get_parameter(name).detach() * 0.5}
    with wb.edit.applied(model, wb.Delta.of(changed, Provenance("half as much more", model.fingerprint()))):
        assert (sweep.scores(model, texts(2), 0) != before).all()
    np.testing.assert_array_equal(sweep.scores(model, texts(2), 0), before)
    other = tiny(seed=1)
    with pytest.raises(MismatchError, match="fitted on another model than tiny. Pass other_model=True"):
        sweep.scores(other, texts(2), 0)
    assert sweep.scores(other, texts(2), 0, other_model=True).shape == (2, 1)
    with pytest.raises(ShapeError, match="activations have 16 features, the probe reads 8"):
        sweep.scores(tiny(d_model=16), texts(2), 0, other_model=True)


# --- as a table, a file, a picture ------------------------------------------------------------------------------------


def test_frame():
    sweep = made()
    sweep.gain[1, :, 1] = [-0.1, 0.1, -0.1]
    frame = sweep.frame()
    assert list(frame["metric"]) == ["auc", "accuracy", "balanced_accuracy", "calibration_error"] * 3
    line = frame[(frame["layer"] == 1) & (frame["metric"] == "accuracy")].iloc[0]
    expected = {
        "value": sweep.value[1, 1],
        "low": sweep.low[1, 1],
        "high": sweep.high[1, 1],
        "n": 20,
        "chance": 0.6,
        "words": 0.65 + 0.05,
    }
    control = sweep.shuffled[1, 1]
    expected |= {"shuffled": control.mean(), "shuffled_low": control.min(), "shuffled_high": control.max()}
    expected |= {"gain": sweep.gain[1, 1, 0], "gain_low": sweep.gain[1, 1, 1], "gain_high": sweep.gain[1, 1, 2]}
    for key, one in expected.items():
        assert line[key] == pytest.approx(one), key
    assert line["beats_words"] == (sweep.gain[1, 1, 1] > 0 and sweep.low[1, 1] > 0.6)
    assert line["beats_words"] != frame[(frame["layer"] == 1) & (frame["metric"] == "auc")].iloc[0]["beats_words"]
    first = frame[frame["metric"] == "auc"]
    assert first["cross_validated"].tolist() == sweep.cross_validated.tolist()
    assert first["beats_words"].tolist() == sweep.beats_words.tolist()
    assert set(sweep.beats_words) == {True, False}
    error = frame[frame["metric"] == "calibration_error"].iloc[0]
    assert (error["value"], error["chance"]) == (0.05, 0.04)
    assert np.isnan(error["low"])


@pytest.mark.parametrize("classes", [("no", "yes"), (0, 1, 2), (False, True), ()])
def test_a_file_holds_it_exactly(tmp_path, classes):
    sweep = made(sites=("resid_post", "mlp_out"), classes=classes)
    sweep = replace(sweep, low=np.where(sweep.value > 0.8, NAN, sweep.low))
    sweep.save(tmp_path / "s.safetensors")
    back = ProbeSweep.load(tmp_path / "s.safetensors")
    for name in TABLES:
        np.testing.assert_array_equal(getattr(back, name), getattr(sweep, name), strict=True)
    assert (back.places, back.metrics, back.classes) == (sweep.places, sweep.metrics, sweep.classes)
    assert [type(c) for c in back.classes] == [type(c) for c in classes]
    assert (back.n_train, back.n, back.provenance) == (50, 20, sweep.provenance)
    for one, other in zip(back.probes, sweep.probes, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight, strict=True)
        np.testing.assert_array_equal(one.intercept, other.intercept, strict=True)
        assert (one.classes, one.log_odds, one.notes) == (classes, True, {"x": 1 / 3})
    with pytest.raises(InputError, match="holds probe_sweep, expected a directions"):
        Direction.load(tmp_path / "s.safetensors")


def test_what_it_says():
    said = repr(made())
    assert re.search(
        r"ProbeSweep\('logistic', 3 probes; AUC 0\.\d+ \[0\.\d+, 0\.\d+\] at layer 1, chosen on training rows, n = 20", said
    )
    sweep = made()
    assert ("not said to beat it" in said) == (not sweep.beats_words[1])
    worse = replace(sweep, gain=-np.abs(sweep.gain))
    assert "bag of words 0.700 [0.650, 0.750]: not said to beat it" in repr(worse)
    better = replace(sweep, gain=np.abs(sweep.gain) + 0.1)
    assert "bag of words 0.700 [0.650, 0.750]: beats it" in repr(better)
    assert "of resid_post, chosen" in repr(made(sites=("resid_post", "mlp_out")))
    assert "shuffled labels" not in repr(made(controls=0))
    assert "macro AUC" in repr(made(classes=("a", "b", "c")))


@pytest.mark.parametrize("controls", [0, 4])
@pytest.mark.parametrize("sites", [("resid_post",), ("resid_post", "mlp_out")])
def test_html_is_static_and_escaped(sites, controls):
    sweep = made(sites=sites, classes=("no", "<script>alert(1)</script>"), controls=controls)
    html = sweep._repr_html_()
    assert html.count('aria-label="AUC by layer') == len(sites)
    assert not re.search(r"<script|https?:|<link|<img|javascript|\bid=", html)
    assert "&lt;script&gt;" in html
    assert html.count("beats bag of words</title>") + html.count("not said to beat bag of words</title>") >= len(sweep)
    hollow = html.count(", not said to beat bag of words</title>")
    assert hollow == (~sweep.beats_words).sum()
    assert ("shuffled labels" in html) == bool(controls)
    assert "Calibration of resid_post at layer 1, 2 bins" in html


def test_html_without_what_is_undefined():
    sweep = replace(
        made(),
        calibration=np.full((3, 4), NAN),
        reliability=np.empty((3, 0, 3)),
        low=np.full((3, 3), NAN),
        high=np.full((3, 3), NAN),
    )
    html = replace(sweep, cross_validated=np.full(3, NAN), words=np.array([[0.7, NAN, NAN]] * 3))._repr_html_()
    assert "no interval" in html
    assert "Calibration of" not in html
    assert "nan" not in re.sub(r">[^<]*<", "><", html).lower(), "no NaN in a coordinate"


def test_many_layers_fit():
    sweep = made(n_layers=80)
    html = sweep._repr_html_()
    assert "16 more probes" in html
    labels = re.findall(r'<text x="([\d.]+)" y="191" text-anchor="middle"[^>]*>(\d+)</text>', html)
    assert 5 < len(labels) < 40


def test_plot():
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    for sweep in (made(), made(sites=("resid_post", "mlp_out")), made(controls=0)):
        ax = sweep.plot()
        lines = {line.get_label(): line for line in ax.get_lines()}
        sites = {place.site for place in sweep.places}
        assert sites | {"bag of words", "chance"} <= set(lines)
        np.testing.assert_array_equal(lines["resid_post"].get_ydata(), sweep.value[:3, 0])
        assert lines["chance"].get_ydata()[0] == 0.5
        plt.close(ax.figure)
