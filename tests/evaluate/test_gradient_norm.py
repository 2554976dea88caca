import numpy as np
import pytest
import torch

from tests.tiny import tiny, tiny_sets
from workbench.core.errors import InputError
from workbench.evaluate.gradient_norm import gradient_norm
from workbench.load.batches import collate, encode_all


def slow(model, examples, names=None):
    """One backward pass a row, all parameters in one vector."""
    found = []
    for row in encode_all(model, examples):
        batch = collate([row])
        model.hf.zero_grad()
        logits = model.hf(batch.tokens).logits.log_softmax(-1)
        picked = logits[0, row.start - 1 : -1].gather(-1, batch.tokens[0, row.start :, None])
        (-picked.mean()).backward()
        grads = [p.grad.flatten() for n, p in model.hf.named_parameters() if p.grad is not None and (names is None or n in names)]
        found.append(float(torch.cat(grads).norm()))
    model.hf.zero_grad()
    return found


def test_reference_batches_and_order():
    model, (_, rows) = tiny(), tiny_sets()
    values = gradient_norm(model, rows)
    np.testing.assert_allclose(values, slow(model, rows), rtol=1e-9)
    np.testing.assert_allclose(gradient_norm(model, rows, batch_tokens=1), values, rtol=1e-9)  # one by one
    np.testing.assert_allclose(gradient_norm(model, rows.take([3, 1])), values[[3, 1]], rtol=1e-9)
    names = {"model.embed_tokens.weight"}
    np.testing.assert_allclose(gradient_norm(model, rows, names=names), slow(model, rows, names), rtol=1e-9)


def test_norm_over_everything_is_not_the_mean_of_norms():
    """Squares of the tensors' norms add up to the square of the whole: the published mean over tensors is another number."""
    model, (rows, _) = tiny(), tiny_sets()
    names = [name for name, _ in model.hf.named_parameters()]
    parts = np.array([gradient_norm(model, rows, names={name}) for name in names])
    np.testing.assert_allclose(np.sqrt((parts**2).sum(0)), gradient_norm(model, rows), rtol=1e-9)


def test_training_mode_is_refused():
    model, (rows, _) = tiny(), tiny_sets()
    model.hf.train()
    with pytest.raises(InputError, match="training mode"):
        gradient_norm(model, rows)
