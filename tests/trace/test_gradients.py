"""Gradients of sets against one autograd pass an example in float64; Gauss-Newton against its definition."""

import pytest
import torch

from tests.reference import attribution as truth
from tests.tiny import tiny, tiny_sets
from workbench.core.errors import DataError, NumericsError
from workbench.load.batches import encode_all
from workbench.trace.gradients import curvature, fisher, mean_gradient


@pytest.fixture
def setting():
    model = tiny()
    rows = encode_all(model, tiny_sets()[1])
    return model, rows, [(row.tokens, row.start) for row in rows]


@pytest.mark.parametrize("batch_tokens", [1, 24, 10_000])
def test_mean_gradient_equals_a_loop(setting, batch_tokens):
    model, rows, plain = setting
    expected = truth.mean_gradient(model.hf, plain)
    found = mean_gradient(model, rows, batch_tokens=batch_tokens)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
        assert value.abs().max() > 0


def test_duplicating_the_set_changes_nothing(setting):
    model, rows, _ = setting
    once, twice = mean_gradient(model, rows), mean_gradient(model, rows + rows)
    for name in once:
        torch.testing.assert_close(once[name], twice[name], rtol=1e-9, atol=1e-12)


def test_fisher_is_per_example(setting):
    model, rows, plain = setting
    expected = truth.fisher(model.hf, plain)
    found = fisher(model, rows)
    batch = mean_gradient(model, rows)
    for name, value in expected.items():
        # float32 accumulators
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-10)
    assert any((found[n] - batch[n].square()).abs().max() > 1e-4 for n in found), "the square of the mean is not it"


def test_curvature_is_unbiased(setting):
    # 600 independent draws of the labels; each tensor's mean must lie within 4 standard errors of the definition
    model, rows, plain = setting
    name = "model.layers.1.mlp.down_proj.weight"
    expected = truth.gauss_newton_mean_diagonal(model.hf, plain, name)
    draws = torch.tensor([curvature(model, rows, seed=i)[name] for i in range(600)], dtype=torch.float64)
    error = float(draws.std() / len(draws) ** 0.5)
    assert abs(float(draws.mean()) - expected) < 4 * error, f"got {draws.mean():.5g}, expected {expected:.5g} +- {error:.2g}"
    assert error < 0.05 * expected


def test_flags_and_old_gradients_come_back(setting):
    model, rows, _ = setting
    head = model.hf.lm_head.weight
    norm = model.hf.model.norm.weight
    norm.requires_grad_(False)
    head.grad = torch.ones_like(head)
    mean_gradient(model, rows)
    assert not norm.requires_grad
    assert torch.equal(head.grad, torch.ones_like(head))


def test_half_precision_accumulates_in_float32():
    # eight copies of one row: bf16 accumulation of eighths would round, float32 gives the single row's gradient
    model = tiny(torch.bfloat16)
    rows = encode_all(model, tiny_sets()[1][:1])
    one, many = mean_gradient(model, rows), mean_gradient(model, rows * 8, batch_tokens=1)
    for name in one:
        assert many[name].dtype == torch.float32
        torch.testing.assert_close(many[name], one[name], rtol=2e-3, atol=1e-6)  # bf16 rounds each row's 1/8 scaled gradient


def test_nan_names_the_parameter(setting):
    model, rows, _ = setting
    with pytest.raises(NumericsError, match="model.embed_tokens.weight holds NaN"):
        mean_gradient(model, rows, lambda passed, chosen: passed.logprob.sum(-1) * float("nan"))


@pytest.mark.parametrize("job", [mean_gradient, fisher, lambda model, rows: curvature(model, rows, seed=0)])
def test_no_rows_is_an_error(setting, job):
    with pytest.raises(DataError, match="there are no rows"):
        job(setting[0], [])
