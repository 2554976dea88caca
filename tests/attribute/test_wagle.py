"""WAGLE's score: its formula, its two terms, and the promises every attribution keeps."""

import pytest
import torch
from scipy.stats import spearmanr

from tests.attribute.plain import plain
from tests.reference import attribution as truth
from tests.tiny import tiny, tiny_sets
from workbench import attribute
from workbench.attribute.wagle import sample
from workbench.core.errors import InputError
from workbench.load.batches import encode_all
from workbench.trace.gradients import curvature


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


def test_the_default_gamma_is_each_tensors_curvature_and_a_share_of_the_mean(setting):
    model, forget, retain = setting
    names = [name for name, _ in model.hf.named_parameters()]
    rows = encode_all(model, retain)
    each = curvature(model, rows, seed=3)  # as many rows as there are
    sizes = {name: p.numel() for name, p in model.hf.named_parameters()}
    mean = sum(each[name] * sizes[name] for name in names) / sum(sizes.values())
    g_f, g_r = gradients(model, forget, retain)
    found = attribute.wagle(model, forget, retain, seed=3, damping=0.2)
    whole = {"score": [], "weight": [], "retain": []}
    for name, p in model.hf.named_parameters():
        weight, kept = p.detach() * g_f[name], -g_r[name] * g_f[name] / (each[name] + 0.2 * mean)
        torch.testing.assert_close(found[name].double(), (weight + kept).abs(), rtol=1e-4, atol=1e-7)  # RMSNorm
        for key, value in (("score", weight + kept), ("weight", weight), ("retain", kept)):
            whole[key].append(value.abs().flatten())
    score, weight, kept = (torch.cat(parts) for parts in whole.values())
    notes = found.provenance.notes
    assert notes["spearman_with_weight_term"] == pytest.approx(spearmanr(score, weight)[0], abs=1e-3)  # near ties may swap
    assert notes["spearman_with_retain_term"] == pytest.approx(spearmanr(score, kept)[0], abs=1e-3)
    assert notes["weight_term_larger"] == pytest.approx(float((weight > kept).double().mean()), abs=2e-3)


def test_curvature_rows_are_drawn_by_content(setting):
    model, _, retain = setting
    rows = encode_all(model, retain)
    assert len(sample(rows, 2, seed=0)) == 2
    assert sample(rows, 2, seed=0) == sample(rows[::-1], 2, seed=0) == sample([*rows, *rows], 2, seed=0)
    assert len({tuple(row.id for row in sample(rows, 2, seed=seed)) for seed in range(8)}) > 1
    assert len(sample(rows, 99, seed=0)) == len(rows)


def test_no_curvature_is_an_error(setting):
    model, forget, retain = setting
    with torch.no_grad():
        model.hf.lm_head.weight.zero_()
    with pytest.raises(InputError, match="no curvature at any"):
        attribute.wagle(model, forget, retain, include="*.mlp.*")
