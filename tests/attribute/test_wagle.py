"""WAGLE's score: its formula, its two terms, and the promises every attribution keeps."""

import pytest
import torch

from tests.reference import attribution as truth
from tests.tiny import tiny, tiny_sets
from workbench import attribute
from workbench.core.errors import InputError
from workbench.load.batches import encode_all


def plain(model, rows):
    return [(row.tokens, row.start) for row in encode_all(model, rows)]


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
