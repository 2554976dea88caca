"""Selective synaptic dampening against its definition."""

import pytest
import torch

from tests.reference import attribution as truth
from tests.tiny import tiny, tiny_sets
from workbench import edit
from workbench.core.errors import InputError
from workbench.load.batches import encode_all


def rows(model, examples):
    return [(row.tokens, row.start) for row in encode_all(model, examples)]


@pytest.mark.parametrize(("alpha", "lam"), [(1.1, 1.0), (1.5, 0.3), (2.0, 0.0)])
def test_formula(alpha, lam):
    model, (forget, retain) = tiny(), tiny_sets()
    f, everything = truth.fisher(model.hf, rows(model, forget)), truth.fisher(model.hf, rows(model, forget) + rows(model, retain))
    found = edit.dampen(model, forget, retain, alpha=alpha, lam=lam)
    hits = 0
    for name, p in model.hf.named_parameters():
        chosen = f[name] > alpha * everything[name]
        expected = torch.where(chosen, p.detach() * ((lam * everything[name] / f[name]).clamp(max=1) - 1), 0.0)
        change = found.changes[name].dense().double() if name in found.changes else torch.zeros_like(p)
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-7)  # float32 Fisher and values
        hits += int(chosen.sum())
    assert found.provenance.notes["chosen"] == hits > 0


def test_half_strength_is_half_the_change():
    model, sets = tiny(), tiny_sets()
    whole, half = (edit.dampen(model, *sets, alpha=1.2, strength=s) for s in (1.0, 0.5))
    for name in whole.changes:
        torch.testing.assert_close(half.changes[name].dense(), whole.changes[name].dense() / 2)


def test_refusals():
    model, sets = tiny(), tiny_sets()
    with pytest.raises(InputError, match="alpha is -1"):
        edit.dampen(model, *sets, alpha=-1.0)
    with pytest.raises(InputError, match="alpha below 2.33"):  # forget is 3 of 7 rows, so F_f > alpha F_D needs alpha < 7/3
        edit.dampen(model, *sets, alpha=2.5)
