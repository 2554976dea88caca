"""Integrated gradients over weights: completeness, and a slow path integral."""

import pytest
import torch

from tests.attribute.plain import plain
from tests.reference import attribution as truth
from tests.tiny import tiny, tiny_sets
from workbench import attribute
from workbench.core.errors import InputError, MismatchError


def near(model):
    """`model` a little moved, as retraining would: between two unrelated models the path is too rough for few points."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.hf.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=source, dtype=p.dtype))
    return model


def test_against_many_midpoints():
    model, other, (forget, retain) = tiny(), near(tiny()), tiny_sets()
    end = {n: p.detach() for n, p in other.hf.named_parameters()}
    expected = truth.path_integral(tiny().hf, plain(model, forget), end, steps=200)
    found = attribute.integrated_gradients(model, forget, retain, reference=other, steps=16)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-3, atol=1e-5)  # the midpoints' own error


@pytest.mark.parametrize("reference", [None, "other"])
def test_scores_sum_to_the_rise_of_the_loss(reference):
    model, (forget, retain) = tiny(), tiny_sets()
    other = near(tiny()) if reference else None
    found = attribute.integrated_gradients(model, forget, retain, reference=other, steps=24)
    start = sum(float(truth.row_loss(model.hf, row).detach()) for row in plain(model, forget)) / len(forget)
    end_model = other or zeroed(tiny())
    end = sum(float(truth.row_loss(end_model.hf, row).detach()) for row in plain(model, forget)) / len(forget)
    notes = found.provenance.notes
    assert notes["rise"] == pytest.approx(end - start, rel=1e-4)
    assert notes["sum"] == pytest.approx(end - start, rel=1e-2)  # the quadrature's error
    assert sum(float(t.double().sum()) for t in found.tensors.values()) == pytest.approx(notes["sum"], rel=1e-4)


def zeroed(model):
    with torch.no_grad():
        for p in model.hf.parameters():
            p.zero_()
    return model


def test_absolute_form_and_left_out_parameters():
    model, other, (forget, retain) = tiny(), near(tiny()), tiny_sets()
    signed = attribute.integrated_gradients(model, forget, retain, reference=other, include="*.mlp.*")
    absolute = attribute.integrated_gradients(model, forget, retain, reference=other, include="*.mlp.*", form="absolute")
    assert any(float(signed[n].min()) < 0 for n in signed)
    assert all(torch.equal(signed[n].abs(), absolute[n]) for n in signed)
    assert all("mlp" in n for n in signed)
    assert signed.provenance.notes["rise"] == pytest.approx(signed.provenance.notes["sum"], rel=1e-3)


def test_bad_input():
    model, sets = tiny(), tiny_sets()
    with pytest.raises(InputError, match="steps is 0"):
        attribute.integrated_gradients(model, *sets, steps=0)
    with pytest.raises(InputError, match="'npo' compares with the model it starts from"):
        attribute.integrated_gradients(model, *sets, forget_loss="npo")
    with pytest.raises(MismatchError, match="other names or shapes"):
        attribute.integrated_gradients(model, *sets, reference=tiny(d_model=16))


def test_too_few_points_are_said():
    """One point on the way to an unrelated model: the scores do not sum to the rise, and the notes say so."""
    model, (forget, retain) = tiny(), tiny_sets()
    rough = attribute.integrated_gradients(model, forget, retain, reference=tiny(seed=1), steps=1)
    assert "do not sum" in rough.provenance.notes["warning"]
    fine = attribute.integrated_gradients(model, forget, retain, reference=near(tiny()), steps=8, forget_loss="gradient_ascent")
    assert "warning" not in fine.provenance.notes
    assert fine.provenance.notes["rise"] < 0, "ascent's loss is the log-probability, which falls"
