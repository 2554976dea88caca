"""Saliency is the size of the mean gradient."""

import torch

from tests.reference import attribution as truth
from tests.tiny import tiny, tiny_sets
from workbench.attribute import saliency
from workbench.load.batches import encode_all


def test_formula():
    model, (forget, retain) = tiny(), tiny_sets()
    expected = truth.mean_gradient(model.hf, [(r.tokens, r.start) for r in encode_all(model, forget)])
    found = saliency(model, forget, retain)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].double(), value.abs(), rtol=1e-4, atol=1e-7
        )  # Llama's RMSNorm is float32 in any dtype, and so are the scores
