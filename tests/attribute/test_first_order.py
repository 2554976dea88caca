"""Saliency and SNIP: their formulas, by reference and by hand."""

import torch

from tests.attribute.plain import plain
from tests.reference import attribution as truth
from tests.tiny import tiny, tiny_sets
from workbench import attribute
from workbench.attribute import first_order
from workbench.core.scores import Scores


def test_formulas():
    model, (forget, retain) = tiny(), tiny_sets()
    g_f = truth.mean_gradient(model.hf, plain(model, forget))
    saliency, snip = attribute.saliency(model, forget, retain), attribute.snip(model, forget, retain)
    for name, p in model.hf.named_parameters():
        # Llama's RMSNorm is float32 in any dtype, and so are the scores
        torch.testing.assert_close(saliency[name].double(), g_f[name].abs(), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(snip[name].double(), (p.detach() * g_f[name]).abs(), rtol=1e-4, atol=1e-7)


def test_the_function_is_what_its_formula_says():
    """The registered function keeps the formula's name and docstring, and takes the options of every score."""
    assert first_order.snip.__name__ == "snip"
    assert "went to zero" in str(first_order.snip.__doc__)
    model, (forget, retain) = tiny(), tiny_sets()
    found = attribute.snip(model, forget, retain, include="*.mlp.*", exclude=["*down*"])
    assert isinstance(found, Scores)
    assert sorted(found) == [f"model.layers.{i}.mlp.{part}_proj.weight" for i in (0, 1) for part in ("gate", "up")]


def test_snip_is_wagle_without_retain_term():
    """gamma -> infinity: the retain term vanishes and the ranking is that of snip."""
    model, (forget, retain) = tiny(), tiny_sets()
    snip, wagle = attribute.snip(model, forget, retain), attribute.wagle(model, forget, retain, gamma=1e30)
    assert snip.mask(0.2) == wagle.mask(0.2)
    assert attribute.wagle(model, forget, retain, gamma=1e-3).mask(0.2) != snip.mask(0.2)
