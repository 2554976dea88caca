"""Fisher information per example, and its ratio between the sets."""

import pytest
import torch

from tests.attribute.plain import plain
from tests.reference import attribution as truth
from tests.tiny import tiny, tiny_sets
from workbench import attribute
from workbench.core.errors import InputError


def squares():
    model, (forget, retain) = tiny(), tiny_sets()
    return truth.fisher(model.hf, plain(model, forget)), truth.fisher(model.hf, plain(model, retain))


def test_fisher_is_the_mean_of_per_example_squares():
    f, _ = squares()
    found = attribute.fisher(tiny(), *tiny_sets())
    for name, value in f.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-9)  # RMSNorm and scores are float32


def test_ratio():
    f, r = squares()
    found = attribute.fisher_ratio(tiny(), *tiny_sets(), damping=0.01)
    epsilon = 0.01 * sum(float(v.sum()) for v in r.values()) / sum(v.numel() for v in r.values())
    assert found.provenance.notes["epsilon"] == pytest.approx(epsilon, rel=1e-5)
    below = sum(int((v < epsilon).sum()) for v in r.values()) / sum(v.numel() for v in r.values())
    assert found.provenance.notes["damped"] == pytest.approx(below, abs=2e-3)  # a weight at the border may round across
    for name in f:
        torch.testing.assert_close(found[name].double(), f[name] / (r[name] + epsilon), rtol=1e-4, atol=1e-7)


def test_swapping_the_sets_inverts_the_ratio():
    forget, retain = tiny_sets()
    one = attribute.fisher_ratio(tiny(), forget, retain, damping=1e-12, include="*.mlp.*")
    other = attribute.fisher_ratio(tiny(), retain, forget, damping=1e-12, include="*.mlp.*")
    for name in one:
        both = one[name] > 1e-6  # damping does not matter there, on either side
        both &= other[name] > 1e-6
        assert bool(both.any())
        torch.testing.assert_close((one[name] * other[name])[both], torch.ones(int(both.sum())), rtol=1e-3, atol=0)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("inf")])
def test_bad_damping(damping):
    with pytest.raises(InputError, match="damping is"):
        attribute.fisher_ratio(tiny(), *tiny_sets(), damping=damping)


def test_no_retain_gradient_is_an_error():
    """Zero weights everywhere: the logits do not move with any inner weight, so there is nothing to divide by."""
    model = tiny()
    with torch.no_grad():
        model.hf.lm_head.weight.zero_()
    with pytest.raises(InputError, match="no gradient at any"):
        attribute.fisher_ratio(model, *tiny_sets(), include="*.mlp.*")
