"""Attribution patching against directional derivatives, true patching against one hook at a time, and where they coincide."""

import functools
import inspect

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import workbench as wb
from tests.reference import components as truth
from tests.reference.tiny_models import tiny_model
from tests.tiny import WORDS, tiny
from workbench.attribute.contrast_runs import answer_difference
from workbench.attribute.patching import _checked, activation_patching, attribution_patching
from workbench.core.errors import DataError, InputError, ModelError, NumericsError, ShapeError, UnknownNameError
from workbench.load.contrasts import Contrast, Contrasts, encode_contrasts

LAYERS = {"llama": "model.layers.{}", "gpt2": "transformer.h.{}"}
BELOW = {
    ("llama", "head"): ".self_attn.o_proj",
    ("llama", "neuron"): ".mlp.down_proj",
    ("gpt2", "head"): ".attn.c_proj",
    ("gpt2", "neuron"): ".mlp.c_proj",
}
# Llama's RMSNorm is float32 in any dtype, so equal formulas differ by its rounding; GPT-2's layer norm is float64 here.
RTOL = {"llama": 1e-4, "gpt2": 1e-9}
ATOL = {"llama": 1e-6, "gpt2": 1e-12}


def model_of(name):
    """Random Llama with grouped-query attention, or GPT-2, in float64 with the tiny tokenizer."""
    return tiny() if name == "llama" else wb.wrap(tiny_model("gpt2"), tiny().tokenizer, name="gpt2")


def rows():
    """Prompts of 7, 4 and 6 tokens; one, two and three answers."""
    return Contrasts(
        [
            Contrast("a", "what is the color of the sky", "what is the color of the grass", (" blue",), (" green",)),
            Contrast("b", "the sea is very", "the grass is very", (" blue", " and"), (" green",)),
            Contrast("c", "is the sky a sea and", "is no grass a sea and", (" no", " a", " very"), (" green", " the")),
        ],
        "rows",
    )


def expected(name, model, kind, direction, places, which):
    """[pair, component] by the slow loop; NaN where a pair has no such position. which: 0 derivative, 1 true effect."""
    coded = encode_contrasts(model, rows())
    out = np.full((len(coded.ids), len(places)), np.nan)
    size = model.hf.config.hidden_size // model.hf.config.num_attention_heads
    for i, (clean, corrupted) in enumerate(zip(coded.clean, coded.corrupted, strict=True)):
        base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
        for j, (layer, index) in enumerate(places):
            if kind == "resid" and -index > len(base.tokens):
                continue
            features = {"head": slice(index * size, (index + 1) * size), "neuron": index, "resid": slice(None)}[kind]
            selection = (index if kind == "resid" else slice(None), features)
            module = LAYERS[name].format(layer) + BELOW.get((name, kind), "")
            answers = (coded.correct[i], coded.incorrect[i])
            out[i, j] = truth.effects(model.hf, base.tokens, source.tokens, *answers, module, selection)[which]
    return out


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["head", "neuron", "resid"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_both_against_one_at_a_time(name, kind, direction):
    model = model_of(name)
    found = attribution_patching(model, rows(), kind=kind, direction=direction, verify=3)
    places = found.places if kind != "neuron" else found.places[::7]
    derivative = expected(name, model, kind, direction, places, 0)
    at = [found.places.index(place) for place in places]
    np.testing.assert_allclose(found.value[at], np.nanmean(derivative, 0), rtol=RTOL[name], atol=ATOL[name])
    np.testing.assert_array_equal(found.n[at], (~np.isnan(derivative)).sum(0))
    patched = activation_patching(model, rows(), places, kind=kind, direction=direction)
    effects = expected(name, model, kind, direction, places, 1)
    np.testing.assert_allclose(patched.value, np.nanmean(effects, 0), rtol=RTOL[name], atol=ATOL[name])
    np.testing.assert_array_equal(patched.n, (~np.isnan(effects)).sum(0))


def test_every_component_of_the_model_is_there():
    """Llama: 2 layers of 4 query heads (on 2 key-value heads), 20 neurons, and 7 positions of the longest prompt."""
    model = tiny()
    assert attribution_patching(model, rows(), verify=0).values.shape == (2, 4)
    assert attribution_patching(model, rows(), kind="neuron", verify=0).values.shape == (2, 20)
    resid = attribution_patching(model, rows(), kind="resid", verify=0)
    assert resid.columns == [-7, -6, -5, -4, -3, -2, -1]
    assert resid.n.tolist() == [3, 3, 3, 3, 2, 2, 1] * 2  # of lengths 7, 4 and 6


def linear_model():
    """GPT-2 whose logits are linear in the last layer's neurons, and in its heads once its MLP adds nothing."""
    model = model_of("gpt2")
    model.hf.transformer.ln_f = nn.Identity()
    return model


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("kind", ["neuron", "head"])
def test_exact_where_the_model_is_linear(kind, direction):
    """One answer each: M is a difference of logits. rtol: float64 rounding of two orders of summation."""
    model = linear_model()
    if kind == "head":
        with torch.no_grad():
            model.hf.transformer.h[2].mlp.c_proj.weight.zero_()
    single = Contrasts([row for row in rows() if row.id == "a"], "one answer")
    found = attribution_patching(model, single, kind=kind, direction=direction, verify=1000)
    last = [place for place in found.places if place.layer == 2]
    patched = activation_patching(model, single, last, kind=kind, direction=direction)
    np.testing.assert_allclose(found.value[[p.layer == 2 for p in found.places]], patched.value, rtol=1e-9, atol=1e-13)
    assert np.abs(patched.value).max() > 1e-3


def test_the_two_directions_are_opposite_where_the_metric_is_linear():
    """In a linear model a change forth and back: the same size; elsewhere noise is not the negative of denoise."""
    single = Contrasts([row for row in rows() if row.id == "a"], "one answer")
    one, two = (attribution_patching(linear_model(), single, kind="neuron", direction=d, verify=0) for d in ("denoise", "noise"))
    last = [p.layer == 2 for p in one.places]
    np.testing.assert_allclose(one.value[last], -two.value[last], rtol=1e-9, atol=1e-13)
    assert not np.allclose(one.value, -two.value, rtol=0.1)


def test_identical_prompts_have_no_effect_and_no_ranking():
    same = Contrasts([Contrast(r.id, r.clean, r.clean, r.correct, r.incorrect) for r in rows()], "same")
    for kind in ("head", "neuron", "resid"):
        found = attribution_patching(tiny(), same, kind=kind)
        assert not found.value.any()
        assert found.agreement.note == "all estimates are equal"
        assert np.isnan(found.agreement.spearman)
        assert not activation_patching(tiny(), same, found.places[:3], kind=kind).value.any()


def test_patching_everything_carries_the_whole_difference():
    """The residual stream before block 0 at every position is the prompt: M goes from one run's to the other's."""
    model = model_of("gpt2")
    one = rows()[:1]
    length = 7
    seen = activation_patching(model, one, [(0, -k) for k in range(1, length + 1)], kind="resid")
    notes = seen.provenance.notes
    changed = [p.index for p, v in zip(seen.places, seen.value, strict=True) if v]
    assert changed == [-1]  # sky / grass is the last word, the only one that differs
    # rtol: float64 rounding
    np.testing.assert_allclose(seen.value[0], notes["metric_clean"] - notes["metric_corrupted"], rtol=1e-9)


def test_verify_is_true_patching_of_a_spread_sample():
    model = model_of("gpt2")
    found = attribution_patching(model, rows(), verify=5, seed=3)
    agreement = found.agreement
    assert agreement.n == 5 == len(set(agreement.places))
    true = activation_patching(model, rows(), agreement.places)
    np.testing.assert_allclose(agreement.effects, true.value, rtol=1e-12)  # the same computation
    ranks = sorted(np.argsort(np.argsort(found.value))[[found.places.index(p) for p in agreement.places]])
    assert all(rank * 5 // 12 == i for i, rank in enumerate(ranks))  # 12 heads in fifths: one from each
    assert attribution_patching(model, rows(), verify=0).agreement is None
    every = attribution_patching(model, rows(), verify=100).agreement
    assert every.n == 12
    estimate = attribution_patching(model, rows(), verify=0)
    order = [estimate.places.index(p) for p in every.places]
    ranked = [np.argsort(np.argsort(x)) for x in (estimate.value[order], np.array(every.effects))]
    # Spearman without ties, by its formula: 1 - 6 sum d^2 / (n (n^2 - 1))
    by_hand = 1 - 6 * float(((ranked[0] - ranked[1]) ** 2).sum()) / (12 * 143)
    assert every.spearman == pytest.approx(by_hand, rel=1e-12)
    assert attribution_patching(model, rows(), verify=5, seed=3).agreement == agreement


@pytest.mark.parametrize("kind", ["head", "neuron", "resid"])
@pytest.mark.parametrize("how", ["one by one", "padded left", "other order"])
def test_batches_padding_and_order_do_not_matter(kind, how, monkeypatch):
    """atol: float64 rounding of matrices of another shape."""
    model = model_of("gpt2")
    plain = attribution_patching(model, rows(), kind=kind, verify=4)
    asked = rows()
    if how == "padded left":
        from workbench.load.batches import collate

        monkeypatch.setattr("workbench.attribute.contrast_runs.collate", functools.partial(collate, side="left"))
    elif how == "other order":
        asked = rows().take([2, 0, 1])
    found = attribution_patching(model, asked, kind=kind, verify=4, batch_tokens=1 if how == "one by one" else 4096)
    np.testing.assert_allclose(found.value, plain.value, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(found.agreement.effects, plain.agreement.effects, rtol=1e-9, atol=1e-13)


def test_metric_by_hand():
    """p = (1/2, 1/4, 1/8, 1/8): ln(1/2 + 1/8) - ln(1/4) = ln(5/2); one each: ln(1/2) - ln(1/8) = ln 4."""
    last = torch.log(torch.tensor([[4.0, 2.0, 1.0, 1.0]] * 2, dtype=torch.float64)) + 3
    correct = torch.tensor([[True, False, True, False], [True, False, False, False]])
    incorrect = torch.tensor([[False, True, False, False], [False, False, False, True]])
    found = answer_difference(last, correct, incorrect)
    torch.testing.assert_close(found, torch.log(torch.tensor([2.5, 4.0], dtype=torch.float64)), rtol=1e-12, atol=0)


def test_another_metric():
    def probability(last, correct, incorrect):
        return (last.softmax(-1) * (correct.double() - incorrect.double())).sum(-1)

    found = attribution_patching(model_of("gpt2"), rows(), metric=probability, verify=0)
    assert found.unit == "probability units"
    assert found.provenance.options["metric"] == "probability"
    assert -1 < found.provenance.notes["metric_clean"] < 1
    assert not np.allclose(found.value, attribution_patching(model_of("gpt2"), rows(), verify=0).value)


def test_what_is_recorded():
    longer = Contrast("d", "the sea", "the green sea", (" is",), (" no",))
    model = tiny()
    found = attribution_patching(model, Contrasts([*rows(), longer], "four"), verify=2)
    about = found.provenance
    assert (about.notes["kept"], about.notes["dropped"]) == (3, {"unequal length": 1})
    coded = encode_contrasts(model, rows())
    mean = np.mean(
        [
            truth.run(model.hf, row.tokens, *answers)[0].item()
            for row, *answers in zip(coded.clean, coded.correct, coded.incorrect, strict=True)
        ]
    )
    assert about.notes["metric_clean"] == pytest.approx(mean, rel=1e-6)  # Llama's float32 norms
    assert found.direction == about.options["direction"] == "denoise"
    assert about.model == model.fingerprint()
    assert about.options["verify"] == 2


class Stop(Exception):
    pass


def test_nothing_is_left_behind_after_an_exception():
    model = tiny()
    model.hf.lm_head.weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.hf.parameters()]

    def breaks(last, correct, incorrect):
        if last.requires_grad:
            raise Stop
        return answer_difference(last, correct, incorrect)

    def check():
        assert [p.requires_grad for p in model.hf.parameters()] == flags
        assert all(p.grad is None for p in model.hf.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())

    with pytest.raises(Stop):
        attribution_patching(model, rows(), metric=breaks)
    check()
    before = [p.detach().clone() for p in model.hf.parameters()]
    with torch.no_grad():  # a caller's no_grad does not reach the gradients
        attribution_patching(model, rows())
    check()
    assert all(torch.equal(p, q) for p, q in zip(model.hf.parameters(), before, strict=True))


def test_a_mixture_of_experts_has_no_neurons():
    config = transformers.MixtralConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        model = wb.wrap(transformers.MixtralForCausalLM(config), tiny().tokenizer, name="mixtral")
    with pytest.raises(ModelError, match=r"MixtralForCausalLM has no neurons .* 'mlp.post' .*Use kind='resid'"):
        attribution_patching(model, rows(), kind="neuron")
    assert np.isfinite(attribution_patching(model, rows(), verify=0).value).all()


@pytest.mark.parametrize(
    ("kind", "components", "match"),
    [
        ("head", [(2, 0)], "head 0 of layer 2 does not exist; layers are 0 to 1, and head goes from 0 to 3"),
        ("head", [(0, 4)], "head 4 of layer 0 does not exist"),
        ("head", [(0, -1)], "head -1 of layer 0 does not exist"),
        ("neuron", [(0, 20)], "neuron goes from 0 to 19"),
        ("resid", [(0, 0)], "resid 0 of layer 0 does not exist.* position from the end goes from -7 to -1"),
        ("resid", [(0, -8)], "resid -8 of layer 0"),
        ("head", [], "components has 0 entries"),
        ("head", [(0, 1), (0, 1)], "2 entries, 1 of them different"),
    ],
)
def test_components_that_do_not_exist(kind, components, match):
    with pytest.raises(InputError, match=match):
        activation_patching(tiny(), rows(), components, kind=kind)


def test_noise_names_the_runs_the_other_way_round():
    """Base and source change places, the two prompts do not."""
    notes = [attribution_patching(tiny(), rows(), verify=0, direction=way).provenance.notes for way in ("denoise", "noise")]
    for name in ("metric_clean", "metric_corrupted"):
        assert notes[0][name] == pytest.approx(notes[1][name], rel=1e-12)
    assert abs(notes[0]["metric_clean"] - notes[0]["metric_corrupted"]) > 1e-6, "the two can be told apart"
    true = activation_patching(tiny(), rows(), [(0, 0)], direction="noise").provenance.notes
    assert true["metric_clean"] == pytest.approx(notes[0]["metric_clean"], rel=1e-12)


def test_one_sampled_component_has_no_ranking():
    found = attribution_patching(tiny(), rows(), verify=1).agreement
    assert np.isnan(found.spearman)
    assert (found.n, found.note) == (1, "one component")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda last, correct, incorrect: answer_difference(last, correct, incorrect).mean(),
        lambda last, correct, incorrect: answer_difference(last, correct, incorrect)[:1],
        lambda last, correct, incorrect: answer_difference(last, correct, incorrect)[:, None],
    ],
)
def test_a_metric_gives_one_value_a_pair(wrong):
    with pytest.raises(ShapeError, match="expected one value a pair"):
        attribution_patching(tiny(), rows(), metric=wrong)


def test_values_of_the_wrong_type():
    model = tiny()
    for components, match in ((["a"], "components has 'a', expected"), ([(0.7, 1)], r"components has \(0.7, 1\), expected")):
        with pytest.raises(InputError, match=match):
            inspect.unwrap(_checked)(model, components, "head", encode_contrasts(model, rows()))  # pytest checks annotations
    with pytest.raises(InputError, match="verify is 2.5"):
        inspect.unwrap(attribution_patching)(model, rows(), verify=2.5)


def test_refused():
    model = tiny()
    with pytest.raises(UnknownNameError, match="unknown kind of component 'heads'. Did you mean 'head'"):
        attribution_patching(model, rows(), kind="heads")
    with pytest.raises(UnknownNameError, match="unknown direction 'denoising'. Did you mean 'denoise'"):
        activation_patching(model, rows(), [(0, 0)], direction="denoising")
    with pytest.raises(InputError, match="verify is -1"):
        attribution_patching(model, rows(), verify=-1)
    with pytest.raises(DataError, match="none of the 1 pairs"):
        attribution_patching(model, Contrasts([Contrast("x", "the sky", "sky", (" is",), (" no",))], "x"))
    with pytest.raises(ModelError, match="the metric has no gradient"):
        attribution_patching(
            model, rows(), metric=lambda last, correct, incorrect: answer_difference(last, correct, incorrect).detach()
        )
    with pytest.raises(NumericsError, match=r"gradient at blocks.0.attn.hook_z of tiny: \d+ of"):
        attribution_patching(model, rows(), metric=lambda last, correct, incorrect: (0 * last.sum(-1)).sqrt())
    model.hf.train()
    with pytest.raises(InputError, match="training mode"):
        attribution_patching(model, rows())
