"""WAGLE's score: its formula, its two terms, and the promises every attribution keeps."""

import pytest
import torch

from tests.attribute.plain import plain
from tests.reference import attribution as truth
from tests.tiny import tiny, tiny_sets
from workbench import attribute
from workbench.core.errors import InputError


def gradients(model, forget, retain):
    return truth.mean_gradient(model.hf, plain(model, forget)), truth.mean_gradient(model.hf, plain(model, retain))


@pytest.fixture
def setting():
    return tiny(), *tiny_sets()


@pytest.mark.parametrize("gamma", [0.05, 3.0])
@pytest.mark.parametrize("form", ["absolute", "signed"])
def test_formula(setting, gamma, form):
    model, forget, retain = setting
    g_f, g_r = gradients(model, forget, retain)
    scores = attribute.wagle(model, forget, retain, gamma=gamma, form=form)
    for name, p in model.hf.named_parameters():
        expected = p.detach() * g_f[name] - g_r[name] * g_f[name] / gamma
        expected = expected.abs() if form == "absolute" else expected
        torch.testing.assert_close(
            scores[name].double(), expected, rtol=1e-4, atol=1e-7
        )  # Llama's RMSNorm is float32 in any dtype, and so are the scores


def test_the_published_setting_is_that_on_sums(setting):
    model, forget, retain = setting
    g_f, g_r = gradients(model, forget, retain)
    scores = attribute.wagle(model, forget, retain, gamma="paper")
    name = "model.layers.0.mlp.up_proj.weight"
    weight = model.hf.get_parameter(name).detach()
    sums = (weight - len(retain) * g_r[name] / 1e-6) * g_f[name]
    torch.testing.assert_close(scores[name].double(), sums.abs(), rtol=1e-4, atol=1e-7)


def test_it_says_which_term_decides(setting):
    model, forget, retain = setting
    published = attribute.wagle(model, forget, retain, gamma="paper").provenance.notes
    assert published["spearman_with_retain_term"] > 0.99
    assert "the weight term is dead" in published["warning"]
    other = attribute.wagle(model, forget, retain, gamma=1e9).provenance.notes
    assert other["spearman_with_weight_term"] > 0.999
    assert "the retain term is dead" in other["warning"]
    middle = attribute.wagle(model, forget, retain).provenance.notes
    assert 0.01 < middle["weight_term_larger"] < 0.99
    assert "warning" not in middle


def test_the_forget_loss_can_be_another(setting):
    model, forget, retain = setting

    def twice(passed, rows):
        return 2 * passed.logprob.sum(-1) / passed.mask.sum(-1)

    one = attribute.wagle(model, forget, retain, gamma=1.0, form="signed")
    two = attribute.wagle(model, forget, retain, gamma=1.0, form="signed", forget_loss=twice)
    for name in one:
        torch.testing.assert_close(two[name], -2 * one[name], rtol=1e-4, atol=1e-7)
    assert two.provenance.options["forget_loss"] == "twice"


@pytest.mark.parametrize("gamma", [0.0, -1.0])
def test_bad_gamma(setting, gamma):
    with pytest.raises(InputError, match="gamma is"):
        attribute.wagle(*setting, gamma=gamma)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"damping": -1.0}, "damping -1"), ({"damping": 0.0}, "damping 0"), ({"curvature_rows": 0}, "curvature_rows is 0")],
)
def test_bad_options(setting, options, match):
    with pytest.raises(InputError, match=match):
        attribute.wagle(*setting, **options)


def test_the_two_terms_are_kept_and_add_up(setting):
    model, forget, retain = setting
    forms = {form: attribute.wagle(model, forget, retain, gamma=0.3, form=form) for form in ("signed", "weight", "retain")}
    g_f, _ = gradients(model, forget, retain)
    for name, p in model.hf.named_parameters():
        torch.testing.assert_close(forms["weight"][name].double(), p.detach() * g_f[name], rtol=1e-4, atol=1e-7)  # RMSNorm
        both = forms["weight"][name] + forms["retain"][name]
        torch.testing.assert_close(forms["signed"][name], both, rtol=1e-4, atol=1e-7)


def test_swapping_the_sets_leaves_the_retain_term_alone(setting):
    """- g_r g_f / gamma is the same in both sets; theta g_f is not."""
    model, forget, retain = setting
    one = attribute.wagle(model, forget, retain, gamma=0.3, form="retain")
    other = attribute.wagle(model, retain, forget, gamma=0.3, form="retain")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-9)
    name = "model.layers.0.mlp.up_proj.weight"
    first, second = (attribute.wagle(model, *sets, gamma=0.3)[name] for sets in ((forget, retain), (retain, forget)))
    assert not torch.allclose(first, second)


def test_signed_scores_say_what_removing_a_weight_does(setting):
    """To first order the loss changes by - theta g_f: the highest signed score is the best weight to remove."""
    model, forget, retain = setting
    found = attribute.wagle(model, forget, retain, form="weight")
    name = "model.layers.0.mlp.up_proj.weight"
    place = int(found[name].argmax())
    weight = model.hf.get_parameter(name)
    rows = plain(model, forget)
    before = sum(float(truth.row_loss(model.hf, row).detach()) for row in rows) / len(rows)
    with torch.no_grad():
        weight.view(-1)[place] *= 0.99
    after = sum(float(truth.row_loss(model.hf, row).detach()) for row in rows) / len(rows)
    assert (after - before) / 0.01 == pytest.approx(-float(found[name].max()), rel=0.05)  # curvature over one per cent
