"""The memory plan: what it counts, and that it is refused before the run."""

import pytest
import torch

from tests.tiny import tiny, tiny_sets
from workbench.core import runtime
from workbench.core.errors import MemoryPlanError
from workbench.load.batches import encode_all
from workbench.trace.plan import _kept, plan_pass


def test_what_is_counted():
    """Weights 8 bytes each in float64; two float32 sums of the chosen parameters; three more, and two of the largest, after."""
    model, (forget, _) = tiny(), tiny_sets()
    rows, names = encode_all(model, forget), [n for n in tiny().shapes() if "mlp" in n]
    plan = plan_pass(model, rows, names, sums=2, beside=3, autograd=True, batch_tokens=4096, job="test")
    sizes = [model.hf.get_parameter(n).numel() for n in names]
    assert plan.weights == 8 * sum(p.numel() for p in model.hf.parameters())
    assert plan.sums == 4 * 2 * sum(sizes)
    assert plan.scores == 4 * (3 * sum(sizes) + 2 * max(sizes))
    assert plan.total == plan.weights + plan.sums + max(plan.activations, plan.scores)
    assert "GiB at the peak" in str(plan)


def test_activations_are_what_autograd_keeps_and_three_times_the_logits():
    """With the logits' share taken away, what is left does not depend on the vocabulary's logits being counted."""
    model, (forget, _) = tiny(), tiny_sets()
    rows, names = encode_all(model, forget), list(model.shapes())
    longest = max(len(row.tokens) for row in rows)
    plan = plan_pass(model, rows, names, sums=1, autograd=True, batch_tokens=1, job="test")
    row = max(rows, key=lambda one: len(one.tokens))
    assert plan.activations == _kept(model, row, names) + 3 * 8 * 16 * longest  # float64 logits of 16 tokens


def test_half_precision_gradients_of_one_set_are_counted():
    """Autograd adds a batch's gradients up in bfloat16 before they go to the float32 sums: two more bytes a weight."""
    rows, names = encode_all(tiny(), tiny_sets()[0]), list(tiny().shapes())
    with_, without = (
        plan_pass(tiny(torch.bfloat16), rows, names, sums=1, autograd=a, batch_tokens=64, job="test") for a in (True, False)
    )
    weights = sum(p.numel() for p in tiny().hf.parameters())
    assert with_.sums - without.sums == 2 * weights


def test_activations_follow_the_batch_and_not_the_weights():
    model, (forget, _) = tiny(), tiny_sets()
    rows, names = encode_all(model, forget), list(model.shapes())
    longest = max(len(row.tokens) for row in rows)
    one, all_three = (
        plan_pass(model, rows, names, sums=1, autograd=True, batch_tokens=n, job="test").activations for n in (1, 4096)
    )
    assert all_three == pytest.approx(3 * one, rel=0.01)
    # at the least, the input of every matrix in float64: 8 bytes x tokens x (7 linear maps of 8 or 20 features in 2 layers)
    assert one > 8 * longest * 2 * (6 * 8 + 20)
    del rows[0]
    assert all(p.grad is None for p in model.hf.parameters())


def test_it_is_refused_before_the_run(monkeypatch):
    model, (forget, _) = tiny(torch.float32), tiny_sets()
    monkeypatch.setattr(runtime, "free_bytes", lambda device: 1000)
    with pytest.raises(MemoryPlanError, match="smaller batch_tokens"):
        plan_pass(model, encode_all(model, forget), list(model.shapes()), sums=2, autograd=True, batch_tokens=4096, job="test")
