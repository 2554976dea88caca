"""Which rows an edit moves: the derivative along it, in every way, and the truth beside it."""

import numpy as np
import pytest
import torch

from tests.attribute_data.plain import plain
from tests.reference import attribution as truth
from tests.reference import influence as slow
from tests.tiny import tiny, tiny_sets
from workbench import Delta
from workbench.attribute.data import edit_to_data
from workbench.core.errors import MismatchError
from workbench.core.records import Provenance
from workbench.trace.changes import activation_change


def edit(model, *, scale=1.0, seed=0):
    source = torch.Generator().manual_seed(seed)
    moved = {name: scale * torch.randn(p.shape, generator=source) for name, p in model.hf.named_parameters() if ".1.mlp" in name}
    return Delta.of(moved, Provenance("edit", model.fingerprint()))


@pytest.mark.parametrize("method", ["auto", "forward", "difference", "backward"])
def test_against_a_difference_in_float64(method, exact_norms):
    model, (_, rows) = tiny(), tiny_sets()
    delta = edit(model, scale=0.1)
    found = edit_to_data(model, delta, rows, method=method, batch_tokens=20)
    change = {name: one.dense().double() for name, one in delta.changes.items()}
    expected = slow.along(model.hf, plain(model, rows), change, eps=1e-4)
    # eager softmax is float32: 1e-7 / eps
    np.testing.assert_allclose(found.values, expected.numpy(), atol=2e-3 if method == "difference" else 1e-3)
    assert found.provenance.options["method"] == ("forward" if method == "auto" else method)
    assert found.ids == tuple(rows.ids)
    assert found.unit == "nats per token"


def test_the_true_change_and_its_first_step(exact_norms):
    """The exact column is the loss with the edit minus the one without; as the edit shrinks, prediction and truth meet."""
    model, (_, rows) = tiny(), tiny_sets()
    whole, small = edit(model), edit(model, scale=1e-3)
    found = edit_to_data(model, whole, rows, exact=True)
    before = [float(truth.row_loss(model.hf, row).detach()) for row in plain(model, rows)]
    np.testing.assert_allclose(found.columns["before"], before, rtol=1e-7)
    with torch.no_grad():
        for name, one in whole.changes.items():
            model.hf.get_parameter(name).add_(one.dense())
    after = [float(truth.row_loss(model.hf, row).detach()) for row in plain(model, rows)]
    np.testing.assert_allclose(found.columns["exact"], np.array(after) - before, rtol=1e-5, atol=1e-6)
    again = tiny()
    near = edit_to_data(again, small, rows, exact=True)
    assert float(np.abs(near.values - near.columns["exact"]).max()) < 0.02 * float(np.abs(near.values).max())


def test_unlearning_step_raises_the_loss_of_its_row(exact_norms):
    """Sign: an ascent step on a row is forgetting it, and that row is moved most."""
    model, (_, rows) = tiny(), tiny_sets()
    gradient = truth.example_gradients(model.hf, plain(model, rows))[2]
    delta = Delta.of({name: 0.01 * value for name, value in gradient.items()}, Provenance("ascent", model.fingerprint()))
    found = edit_to_data(model, delta, rows)
    norm = sum(float(value.square().sum()) for value in gradient.values())
    assert found.values[2] == pytest.approx(0.01 * norm, rel=1e-5)
    assert found.ranked()[0] == 2


def test_steering_is_measured_by_a_difference():
    model, (_, rows) = tiny(), tiny_sets()
    hook = activation_change(model, "blocks.0.resid_post", "add", torch.linspace(-0.01, 0.01, 8))
    found = edit_to_data(model, Delta({}, Provenance("steer", model.fingerprint()), (hook,)), rows, exact=True, eps=1e-1)
    assert found.provenance.options["method"] == "difference"
    assert found.provenance.options["eps"] == 0.1
    np.testing.assert_allclose(found.values, found.columns["exact"], rtol=0.1, atol=2e-5)


@pytest.mark.parametrize("method", ["auto", "forward", "difference", "backward"])
def test_the_edit_of_another_model(method):
    model, (_, rows) = tiny(), tiny_sets()
    with pytest.raises(MismatchError, match="belongs to model"):
        edit_to_data(model, edit(tiny(seed=1)), rows, method=method)
    assert not model.ledger
