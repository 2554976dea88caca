"""What an edit of a study file needs is found on the rows: the right direction, the right places, and nothing else is taken."""

import pytest
import torch

from tests.tiny import tiny, tiny_sets
from workbench import attribute, edit, probe
from workbench.core.delta import applied
from workbench.core.errors import InputError, StudyError, UnknownNameError
from workbench.core.records import Example, Examples
from workbench.study.locate import find_direction, find_places, make_edit, read_edit


@pytest.fixture(scope="module")
def setting():
    model = tiny()
    forget, retain = tiny_sets()
    wide = [Examples([Example(f"{s.name}{i}", r.prompt, f"{r.response} {w}") for i, (r, w) in enumerate(
        (r, w) for r in s for w in ("sea", "sky", "blue", "very"))], s.name) for s in (forget, retain)]  # fmt: skip
    return model, *wide


def weights_of(model, delta):
    with applied(model, delta):
        return {name: p.detach().clone() for name, p in model.hf.named_parameters()}


def assert_same_change(model, one, other):
    a, b = weights_of(model, one), weights_of(model, other)
    changed = [name for name, p in model.hf.named_parameters() if not torch.equal(a[name], p)]
    assert changed, "nothing was changed"
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


def test_places_are_the_units_of_the_highest_mean_score(setting):
    model, forget, retain = setting
    ranking = attribute.unit_scores(model, attribute.fisher_ratio(model, forget, retain), unit="neuron")
    found = find_places(model, forget, retain, fraction=0.1)
    assert len(found) == round(0.1 * ranking.numel())
    lowest = min(float(ranking[place]) for place in found)
    assert all(float(value) <= lowest for i, value in enumerate(ranking.flatten()) if divmod(i, ranking.shape[1]) not in found)
    assert float(ranking[found[0]]) == float(ranking.max())
    assert len(find_places(model, forget, retain, fraction=1e-9)) == 1


def test_layers_are_ranked_by_their_neurons_and_heads():
    model, (forget, retain) = tiny(n_layers=6, seed=5), tiny_sets()
    scores = attribute.snip(model, forget, retain)
    neurons, heads = (attribute.unit_scores(model, scores, unit=unit).mean(1) for unit in ("neuron", "head"))
    orders = [mean.argsort(descending=True).tolist() for mean in (neurons + heads, neurons, heads)]
    assert orders[0] not in orders[1:], "neither would be missed"
    assert find_places(model, forget, retain, "layer", attribute="snip", fraction=1.0) == orders[0]


def test_a_direction_points_to_the_forget_rows(setting):
    model, forget, retain = setting
    texts = [f"{row.prompt} {row.response}" for row in (*forget, *retain)]
    labels = [1] * len(forget) + [0] * len(retain)
    sweep = probe.fit(model, texts, labels, controls=0)
    torch.testing.assert_close(find_direction(model, forget, retain, layer=1).vector, sweep.direction(1).vector)
    assert find_direction(model, forget, retain).layer == sweep.best().layer
    backward = find_direction(model, retain, forget, layer=1).vector
    assert float(backward @ sweep.direction(1).vector) < 0


@pytest.mark.parametrize("called", ["ablate_neurons", "ablate_value_vectors", "ablate_heads"])
def test_an_edit_of_places_is_made_where_they_were_found(setting, called):
    model, forget, retain = setting
    unit = {"ablate_neurons": "neuron", "ablate_value_vectors": "down_column", "ablate_heads": "head"}[called]
    places = find_places(model, forget, retain, unit, attribute="snip", fraction=0.25)
    options = {"kind": "zero", "locate": {"attribute": "snip", "fraction": 0.25}}
    assert_same_change(model, make_edit(model, called, options, forget, retain), getattr(edit, called)(model, places, kind="zero"))


def test_layers_and_constants_from_the_retain_rows(setting):
    model, forget, retain = setting
    made = make_edit(model, "ablate_layers", {"locate": {"fraction": 0.4}}, forget, retain)
    assert made.provenance.options["layers"] == sorted(find_places(model, forget, retain, "layer", fraction=0.4))
    held = make_edit(model, "ablate_neurons", {"kind": "mean"}, forget, retain)
    assert held.provenance.data == edit.ablate_neurons(model, [(0, 0)], kind="mean", texts=retain).provenance.data


def test_edits_along_a_direction(setting):
    model, forget, retain = setting
    best = find_direction(model, forget, retain)
    assert_same_change(model, make_edit(model, "orthogonalize", {}, forget, retain), edit.orthogonalize(model, best))
    at = [find_direction(model, forget, retain, "mlp_in", layer=layer) for layer in range(model.n_layers)]
    options = {"matrix": "gate", "fraction": 0.5, "strength": 2.0}
    assert_same_change(model, make_edit(model, "surgery", options, forget, retain), edit.surgery(model, at, **options))
    down = find_direction(model, forget, retain, "mlp_out", layer=0)
    one = {"matrix": "down", "fraction": 0.5}
    made = make_edit(model, "surgery", one | {"locate": {"layer": 0}}, forget, retain)
    assert_same_change(model, made, edit.surgery(model, down, **one))
    unnamed = {"matrix": "gate", "fraction": 0.5, "locate": {"layer": None}}
    assert_same_change(
        model, make_edit(model, "surgery", unnamed, forget, retain), edit.surgery(model, at, matrix="gate", fraction=0.5)
    )
    first = {"matrix": "gate", "choose": "all", "layers": [0]}
    assert_same_change(model, make_edit(model, "surgery", first, forget, retain), edit.surgery(model, at[0], **first))


@pytest.mark.parametrize(
    ("body", "error", "match"),
    [
        ({"method": "surgerie"}, UnknownNameError, "surgery"),
        ({"method": "dampen", "locate": {"fraction": 0.1}}, StudyError, "looks at the rows itself"),
        ({"method": "ablate_neurons", "locate": {"fractoin": 0.1}}, UnknownNameError, "fraction"),
        ({"method": "ablate_neurons", "locate": {"probe": "logistic"}}, UnknownNameError, "'probe'"),
        ({"method": "ablate_neurons", "locate": {"attribute": "snib"}}, UnknownNameError, "snip"),
        ({"method": "ablate_neurons", "locate": {"fraction": 1.5}}, StudyError, "fraction is 1.5"),
        ({"method": "orthogonalize", "locate": {"probe": "logistik"}}, UnknownNameError, "logistic"),
        ({"method": "orthogonalize", "locate": {"layer": "top"}}, InputError, "layer"),
        ({"method": "orthogonalize", "locate": 3}, StudyError, "expected a mapping"),
        ({"method": "orthogonalize", "strengh": 1}, UnknownNameError, "strength"),
    ],
)
def test_what_a_file_may_not_say(body, error, match):
    with pytest.raises(error, match=match):
        read_edit("e", "e", body)


def test_a_name_that_is_an_edit_needs_no_method():
    assert read_edit("e", "ablate-neurons", {"kind": "zero"}) == ("ablate_neurons", {"kind": "zero"})
