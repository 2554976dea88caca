"""Units: their weights and scores against coordinates written by hand, and masks that are made of whole ones."""

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig

import workbench as wb
from tests.reference import units as truth
from tests.reference.tiny_models import tiny_model
from tests.tiny import tiny
from workbench.attribute.parts import UNITS
from workbench.attribute.units import LocatedUnits, structured, unit_scores, units_mask
from workbench.core.errors import InputError, MismatchError, ModelError, NumericsError, ShapeError, UnknownNameError
from workbench.core.mask import Mask
from workbench.core.records import Provenance
from workbench.core.scores import Scores

EVERY = [(architecture, unit) for architecture in truth.ARCHITECTURES for unit in truth.kinds(architecture)]


@cache
def model_of(architecture):
    """A model that tests only read."""
    return wb.wrap(tiny_model(architecture), tiny().tokenizer, name=architecture)


def scores_of(model, *, seed=0, without=()):
    g = torch.Generator().manual_seed(seed)
    drawn = {n: torch.randn(p.shape, generator=g) for n, p in model.hf.named_parameters()}
    return Scores({n: t for n, t in drawn.items() if n not in without}, Provenance("made up", model.fingerprint()))


def coordinates(mask):
    """Every chosen weight of a mask; a vector's have one index, which no unit has."""
    return {(name, *at) for name in mask for at in mask[name].nonzero().tolist()}


def union(architecture, unit, chosen):
    return set().union(*(truth.weights_of(architecture, unit, layer, index) for layer, index in chosen))


def ranked(values):
    """(layer, index) from the highest value to the lowest; Python's sort keeps ties in their order."""
    places = [(layer, index) for layer in range(values.shape[0]) for index in range(values.shape[1])]
    return sorted(places, key=lambda place: -float(values[place]))


# --- the weights and the score of a unit ------------------------------------------------------------------------------


def test_every_kind_of_unit_is_tested():
    assert {unit for _, unit in EVERY} == set(UNITS)


@pytest.mark.parametrize(("architecture", "unit"), EVERY)
def test_a_mask_of_named_units_has_exactly_their_weights(architecture, unit):
    model, last = model_of(architecture), truth.kinds(architecture)[unit] - 1
    for chosen in ([(1, 0)], [(2, last), (0, last), (0, 0), (2, last)]):
        mask = units_mask(model, unit, chosen)
        assert coordinates(mask) == union(architecture, unit, chosen)
        mask.check(model.fingerprint(), model.shapes())
        assert list(mask) == list(model.shapes()), "every parameter is listed, so that ~mask is the rest of the model"


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize(("architecture", "unit"), EVERY)
def test_scores_equal_a_loop_over_the_coordinates(architecture, unit, reduce):
    model = model_of(architecture)
    scores = scores_of(model)
    found = unit_scores(model, scores, unit=unit, reduce=reduce)
    assert found.dtype == torch.float64
    assert found.shape == (3, truth.kinds(architecture)[unit])
    for layer in range(3):
        for index in range(found.shape[1]):
            expected = truth.score(scores.tensors, truth.weights_of(architecture, unit, layer, index), reduce)
            # float64, up to 1536 terms of size 1 added in another order
            assert float(found[layer, index]) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_added_in_float64(dtype):
    # 2**30 + 31 x 1: beside 2**30, float32 and bfloat16 lose every 1
    model = model_of("llama")
    scores = scores_of(model)
    name = "model.layers.1.mlp.gate_proj.weight"
    planted = torch.ones(truth.M, truth.D)
    planted[5, 0] = 2.0**30
    planted[6] = torch.tensor([1.0, -1.0]).repeat(truth.D // 2)  # signed scores cancel
    mixed = Scores({**scores.tensors, name: planted.to(dtype)}, scores.provenance)
    found = unit_scores(model, mixed, unit="gate_row", reduce="sum")[1]
    assert found[4:7].tolist() == [32.0, 2.0**30 + 31, 0.0]
    assert float(unit_scores(model, mixed, unit="gate_row")[1, 5]) == (2.0**30 + 31) / 32


# --- choosing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "unit"), EVERY)
def test_the_highest_units_are_chosen(architecture, unit):
    model = model_of(architecture)
    scores = scores_of(model)
    order = ranked(unit_scores(model, scores, unit=unit))
    for count in {1, min(5, len(order)), len(order)}:
        assert coordinates(structured(model, scores, unit=unit, count=count)) == union(architecture, unit, order[:count])


@pytest.mark.parametrize(
    ("fraction", "count"),
    # 3 layers x 48 neurons = 144: 14.4 -> 14; 21.6 -> 22; 0.144 -> at least 1
    [(0.1, 14), (0.15, 22), (0.001, 1), (1.0, 144)],
)
def test_a_fraction_is_rounded_to_whole_units(fraction, count):
    model = model_of("llama")
    mask = structured(model, scores_of(model), fraction=fraction)
    assert mask.count == count * 3 * truth.D
    assert mask == structured(model, scores_of(model), count=count)


def test_layer_scope_gives_each_layer_its_share_and_the_first_the_remainder():
    model = model_of("gpt2")
    scores = scores_of(model)
    values = unit_scores(model, scores, unit="neuron", reduce="sum")
    mask = structured(model, scores, unit="neuron", count=11, scope="layer", reduce="sum")
    # 11 = 4 + 4 + 3
    best = [(layer, i) for layer, n in enumerate((4, 4, 3)) for _, i in ranked(values[layer : layer + 1])[:n]]
    assert coordinates(mask) == union("gpt2", "neuron", best)


def test_ties_go_to_the_lower_layer_then_to_the_lower_index():
    model = model_of("gpt2")
    flat = Scores({n: torch.ones(s) for n, s in model.shapes().items()}, Provenance("flat", model.fingerprint()))
    assert coordinates(structured(model, flat, unit="head", count=6)) == union(
        "gpt2", "head", [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    )
    assert coordinates(structured(model, flat, unit="head", count=4, scope="layer")) == union(
        "gpt2", "head", [(0, 0), (0, 1), (1, 0), (2, 0)]
    )
    ranking = torch.full((3, 4), -1.0)
    ranking[1, 1], ranking[0, :3], ranking[2, 0] = 1.0, torch.tensor([0.0, -0.0, 0.0]), 0.0  # -0 ties with 0
    located = LocatedUnits("zeros", model, ranking, "head")
    assert coordinates(located.inside(4 / 12)) == union("gpt2", "head", [(1, 1), (0, 0), (0, 1), (0, 2)])


def test_provenance_says_what_was_chosen_and_from_what():
    model = model_of("llama")
    about = structured(model, scores_of(model), unit="head", fraction=0.5).provenance
    assert about.method == "made up"
    assert about.options["scores"]["method"] == "made up"
    assert {k: about.options[k] for k in ("unit", "fraction", "count", "reduce", "scope")} == {
        "unit": "head", "fraction": 0.5, "count": None, "reduce": "mean", "scope": "global"
    }  # fmt: skip
    assert units_mask(model, "head", [(1, 2), (0, 3), (1, 2)]).provenance.options["chosen"] == [[0, 3], [1, 2]]


# --- a ranking at any size, and its control ---------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "unit"), [("llama", "neuron"), ("gpt2", "head"), ("phi3", "kv_group")])
def test_located_units_inside_and_random(architecture, unit):
    model = model_of(architecture)
    ranking = unit_scores(model, scores_of(model), unit=unit)
    ranking[1] += 0.5  # so that the layers do not give the same number
    located = LocatedUnits("made up", model, ranking, unit)
    order = ranked(ranking)
    for size in (0.2, 0.5, 1.0):
        chosen = order[: max(1, round(size * len(order)))]
        assert coordinates(located.inside(size)) == union(architecture, unit, chosen)
        drawn = units_of(architecture, unit, located.random(size, seed=3))
        assert [sum(layer == at for layer, _ in drawn) for at in range(3)] == [
            sum(layer == at for layer, _ in chosen) for at in range(3)
        ]
        assert located.random(size, seed=3) == located.random(size, seed=3)
    about = located.random(0.5, seed=3).provenance
    assert (about.seed, about.options["ranking"], about.options["unit"]) == (3, "made up", unit)
    assert located.inside(0.5).provenance.model == model.fingerprint()


def units_of(architecture, unit, mask):
    """The units a mask is made of; fails if it has a weight of a unit that is not chosen whole."""
    every = [(layer, index) for layer in range(3) for index in range(truth.kinds(architecture)[unit])]
    bits = coordinates(mask)
    whole = [place for place in every if truth.weights_of(architecture, unit, *place) <= bits]
    assert union(architecture, unit, whole) == bits
    return whole


def test_random_units_are_uniform():
    # 1 of 4 heads in each of 3 layers, 100 seeds: 75 times each, standard deviation sqrt(300 x 1/4 x 3/4) = 7.5; five of them
    model = model_of("gpt2")
    located = LocatedUnits("first heads", model, torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(3, 4), "head")
    counts = torch.zeros(3, 4)
    for seed in range(100):
        drawn = located.random(0.25, seed=seed)
        counts += torch.stack([drawn[f"transformer.h.{layer}.attn.c_proj.weight"][:: truth.H, 0] for layer in range(3)])
    assert counts.sum(1).tolist() == [100.0, 100.0, 100.0]
    assert float((counts.sum(0) - 75).abs().max()) < 37.5, f"each head should come about 75 times, came {counts.sum(0).tolist()}"


def test_a_ranking_found_by_patching_may_be_float32():
    located = LocatedUnits("patching", model_of("llama"), torch.arange(12.0).view(3, 4), "head")
    assert coordinates(located.inside(1 / 12)) == union("llama", "head", [(2, 3)])


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"unit": "neurons", "count": 1}, UnknownNameError, "unknown unit 'neurons'. Did you mean 'neuron'.*kv_group"),
        ({"reduce": "median", "count": 1}, UnknownNameError, "unknown reduction 'median'.*mean, sum"),
        ({"scope": "tensor", "count": 1}, UnknownNameError, "unknown scope 'tensor'.*global, layer"),
        ({}, InputError, "give fraction or count, one of them"),
        ({"fraction": 0.1, "count": 1}, InputError, "give fraction or count, one of them"),
        ({"fraction": 0.0}, InputError, "fraction is 0.0, expected a share above 0"),
        ({"fraction": 1.5}, InputError, "fraction is 1.5"),
        ({"fraction": float("nan")}, InputError, "fraction is nan"),
        ({"count": 0}, InputError, "count is 0, expected 1 to 144"),
        ({"count": 145}, InputError, "count is 145, expected 1 to 144; the model has that many 'neuron' units"),
        (
            {"unit": "in_row", "count": 1},
            ModelError,
            "LlamaForCausalLM has no 'in_row' units: its MLP is gated; use one of .*gate_row",
        ),
    ],
)
def test_bad_options(options, error, match):
    model = model_of("llama")
    with pytest.raises(error, match=match):
        structured(model, scores_of(model), **options)


@pytest.mark.parametrize("unit", ["gate_row", "up_row"])
def test_a_unit_the_architecture_lacks(unit):
    with pytest.raises(
        ModelError, match=f"GPT2LMHeadModel has no '{unit}' units: its MLP is not gated; use one of .*in_row, neuron"
    ):
        units_mask(model_of("gpt2"), unit, [(0, 0)])


@pytest.mark.parametrize("unit", ["neuron", "gate_row", "in_row", "down_column"])
def test_a_mixture_of_experts_has_heads_and_no_neurons(unit):
    small = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = MixtralConfig(**small, num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)
    model = wb.wrap(AutoModelForCausalLM.from_config(config).float(), tiny().tokenizer)
    with pytest.raises(ModelError, match=f"MixtralForCausalLM has no '{unit}' units: .*mixture of experts"):
        units_mask(model, unit, [(0, 0)])
    assert units_mask(model, "kv_group", [(0, 0)]).count == 16 * (16 + 8 + 8 + 16)  # d_model x (q, k, v, o)


@pytest.mark.parametrize("unit", ["neuron", "up_row"])
def test_scores_that_do_not_cover_the_unit(unit):
    model = model_of("llama")
    lacking = scores_of(model, without=["model.layers.2.mlp.up_proj.weight"])
    with pytest.raises(InputError, match=f"'{unit}' units need a score for model.layers.2.mlp.up_proj.weight, which 'made up'"):
        unit_scores(model, lacking, unit=unit)
    assert unit_scores(model, lacking, unit="gate_row").shape == (3, 48)


def test_scores_of_the_matrices_alone_are_enough():
    model = model_of("llama")
    vectors = [name for name, shape in model.shapes().items() if len(shape) == 1]
    whole, lacking = scores_of(model), scores_of(model, without=vectors)
    assert torch.equal(unit_scores(model, whole), unit_scores(model, lacking))
    assert structured(model, whole, count=5) == structured(model, lacking, count=5)


def test_scores_of_another_model_are_refused():
    with pytest.raises(MismatchError, match="'neuron' units: the scores are of model"):
        structured(model_of("llama"), scores_of(model_of("phi3")), count=1)


def test_a_score_that_is_not_finite():
    model = model_of("llama")
    scores = scores_of(model)
    scores["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")
    with pytest.raises(NumericsError, match="scores of the 'neuron' units: 1 of 144 values are NaN"):
        structured(model, scores, count=1)


@pytest.mark.parametrize("place", [(3, 0), (0, 48), (-1, 0), (0, -1)])
def test_a_unit_that_does_not_exist(place):
    with pytest.raises(InputError, match=r"no 'neuron' \(-?\d+, -?\d+\); layers are 0 to 2, units of a layer 0 to 47"):
        units_mask(model_of("llama"), "neuron", [(0, 0), place])


def test_no_unit_at_all():
    with pytest.raises(InputError, match="chosen is empty"):
        units_mask(model_of("llama"), "neuron", [])


def test_bad_rankings():
    model = model_of("llama")
    with pytest.raises(ShapeError, match=r"ranking is \(3, 48\), but the model has 3 layers of 4 'head' units"):
        LocatedUnits("x", model, torch.zeros(3, 48), "head")
    with pytest.raises(NumericsError, match="ranking of x: 1 of 12 values"):
        LocatedUnits("x", model, torch.tensor([float("nan")] + 11 * [0.0]).view(3, 4), "head")
    with pytest.raises(UnknownNameError, match="unknown unit 'heads'"):
        LocatedUnits("x", model, torch.zeros(3, 4), "heads")
    with pytest.raises(InputError, match="LocatedUnits 'x': size is 1.2"):
        LocatedUnits("x", model, torch.zeros(3, 4), "head").inside(1.2)
