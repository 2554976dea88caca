"""Fitters against textbook formulas in loops, and cases by hand."""

import inspect
import math

import numpy as np
import pytest
import torch

from tests.reference import probes as truth
from workbench.core.errors import DataError, InputError, NumericsError, ShapeError, UnknownNameError
from workbench.core.registry import probe
from workbench.probe.fitters import LinearProbe, lda, logistic, mean_difference, ridge


def clouds(n_classes=2, *, n=60, d=5, seed=0):
    """Correlated features of very different scale, classes of unequal size, far from the origin."""
    rng = np.random.default_rng(seed)
    codes = np.minimum(rng.integers(0, n_classes + 1, n), n_classes - 1)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 0.8 * rng.normal(size=(n_classes, d))[codes]
    return x * np.logspace(-2, 2, d) + 10 * rng.normal(size=d), codes


# --- against the reference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.01, 0.1, 3.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_logistic_is_the_minimum_that_newton_finds(n_classes, c):
    x, codes = clouds(n_classes)
    found = logistic(x, codes, C=c)
    weight, intercept = truth.softmax_regression(x, codes, c=c)
    assert found.weight.shape == ((1, 5) if n_classes == 2 else (3, 5))
    # L-BFGS stops at a gradient of 1e-6 of the mean loss, with features of standard deviation 1
    np.testing.assert_allclose(found.weight * x.std(0), weight * x.std(0), atol=2e-4)
    shift = found.intercept.mean() - intercept.mean() if n_classes > 2 else 0.0  # a softmax does not see it
    np.testing.assert_allclose(found.decision(x) - shift, x @ weight.T + intercept, atol=1e-3)
    assert found.log_odds


@pytest.mark.parametrize("n_classes", [2, 3])
def test_lda_is_the_textbook_formula(n_classes):
    x, codes = clouds(n_classes)
    found = lda(x, codes)
    weight, intercept = truth.lda(x, codes)
    # float64, a well-conditioned system of 5 equations solved in another way; scales from 1e-2 to 1e2
    np.testing.assert_allclose(found.weight, weight, rtol=1e-7)
    np.testing.assert_allclose(found.intercept, intercept, rtol=1e-7)
    assert found.log_odds
    if n_classes > 2:
        np.testing.assert_allclose(found.weight.sum(0) / np.abs(found.weight).max(0), 0, atol=1e-12)


def test_mean_difference_is_a_loop():
    x, codes = clouds()
    ones, zeros = ([row for row, code in zip(x, codes, strict=True) if code == c] for c in (1, 0))
    one, zero = sum(ones) / len(ones), sum(zeros) / len(zeros)
    found = mean_difference(x, codes)
    np.testing.assert_allclose(found.weight, (one - zero)[None], rtol=1e-9)
    assert found.decision(((one + zero) / 2)[None])[0, 0] == pytest.approx(0, abs=1e-7)  # halfway; decisions are of size 1e4
    assert not found.log_odds


@pytest.mark.parametrize("seed", range(3))
def test_ridge_chooses_by_leaving_one_out(seed):
    x, _ = clouds(n=30, seed=seed)
    y = x @ np.array([3.0, 0, 1, 0, 0.01]) / 10 + np.random.default_rng(seed).normal(size=30) + 7
    alphas = (0.01, 0.3, 3.0, 30.0, 300.0)
    found = ridge(x, y, alphas=alphas)
    assert found.notes == {"alpha": truth.best_alpha(x, y, alphas)}
    weight, intercept = truth.ridge(x, y, found.notes["alpha"])
    np.testing.assert_allclose(found.weight[0], weight, rtol=1e-8)  # float64, another solver
    np.testing.assert_allclose(found.intercept[0], intercept, rtol=1e-8)
    assert (found.classes, found.log_odds) == ((), False)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_mean_difference_by_hand():
    """Means (1, 0) of "no" and (3, 4) of "yes": w = (2, 4), halfway (2, 2), b = -(4 + 8) = -12."""
    x = np.array([[0.0, 0], [2, 0], [3, 3], [3, 5]])
    found = mean_difference(x, np.array(["no", "no", "yes", "yes"]))
    assert (found.weight.tolist(), found.intercept.tolist(), found.classes) == ([[2.0, 4.0]], [-12.0], ("no", "yes"))
    assert found.decision(x).tolist() == [[-12.0], [-8.0], [6.0], [14.0]]


def test_mean_difference_of_three_classes_is_one_against_the_rest():
    """Class 0 at 0, class 1 at 3, two rows of class 2 at 6: rests at (3 + 6 + 6)/3 = 5, 4 and 3/2; w = -5, -1, 9/2;
    b = -w times halfway = 5 * 5/2, 1 * 7/2, -9/2 * 15/4."""
    found = mean_difference(np.array([[0.0], [3], [6], [6]]), np.array([0, 1, 2, 2]))
    assert found.weight.tolist() == [[-5.0], [-1.0], [4.5]]
    assert found.intercept.tolist() == [12.5, 3.5, -16.875]


def test_logistic_by_hand():
    """Rows at -1 and 1 are standardized as they are. v minimizes v^2/2 + 2 C ln(1 + exp(-v)): v = 2 C / (1 + exp(v)), and
    C = (1 + e) / 2 makes that v = 1. At 10 + 5 z the weight is 1/5 and the intercept -2."""
    found = logistic(np.array([[-1.0], [1.0]]).repeat(2, axis=0), np.array([0, 0, 1, 1]), C=(1 + math.e) / 4)
    assert found.weight[0, 0] == pytest.approx(1, abs=1e-5)  # the solver's tolerance
    assert found.intercept[0] == pytest.approx(0, abs=1e-9)
    moved = logistic(np.array([[5.0], [15.0]]).repeat(2, axis=0), np.array([0, 0, 1, 1]), C=(1 + math.e) / 4)
    assert (moved.weight[0, 0], moved.intercept[0]) == (pytest.approx(0.2, abs=1e-5), pytest.approx(-2, abs=1e-4))


# --- invariants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", list(probe), ids=lambda m: m.name)
def test_half_precision_tensors_are_widened(member):
    x, codes = clouds(n=80)
    half = torch.tensor(x, dtype=torch.bfloat16)
    one, other = member.function(half, codes), member.function(half.double().numpy(), codes)
    np.testing.assert_array_equal(one.weight, other.weight)
    assert one.weight.dtype == one.intercept.dtype == one.decision(half).dtype == np.float64
    np.testing.assert_array_equal(member.function(torch.tensor(x), codes).weight, member.function(x, codes).weight)  # float64 stays


@pytest.mark.parametrize("member", list(probe), ids=lambda m: m.name)
def test_constant_features_have_no_weight(member):
    x, codes = clouds()
    x = np.hstack([x, np.full((len(x), 1), 1e6 + 0.1), np.zeros((len(x), 1))])
    found = member.function(x, codes)
    assert np.isfinite(found.weight).all()
    np.testing.assert_allclose(found.weight[0, 5:], 0, atol=1e-9)
    np.testing.assert_allclose(
        found.weight[0, :5], member.function(x[:, :5], codes).weight[0], rtol=1e-4, atol=1e-6
    )  # the solvers' own


@pytest.mark.parametrize("member", [m for m in probe if m.name != "mean_difference"], ids=lambda m: m.name)
def test_the_scale_of_a_feature_does_not_matter(member):
    """All but the difference of means standardize: a feature in other units gets a weight in the inverse units."""
    x, codes = clouds()
    scale, shift = np.logspace(3, -3, 5), np.array([5.0, -3, 0, 100, 7])
    one, other = member.function(x, codes), member.function(x * scale + shift, codes)
    # solvers stop at 1e-6 of the loss
    np.testing.assert_allclose(other.decision(x * scale + shift), one.decision(x), rtol=1e-4, atol=1e-4)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_refusals():
    x, codes = clouds(n=8)
    for member in probe:
        with pytest.raises(ShapeError, match="8 rows of activations and 7 labels"):
            inspect.unwrap(member.function)(x, codes[:7])
        broken = x.copy()
        broken[3, 1] = np.nan
        with pytest.raises(NumericsError, match="row 3 of the activations holds NaN"):
            member.function(broken, codes)
        with pytest.raises(DataError, match="the activations of all 8 rows are equal"):
            member.function(np.ones((8, 3)), codes)
    for fitter in (logistic, mean_difference, lda):
        with pytest.raises(DataError, match=r"all 8 labels are \['a'\]; expected at least two classes"):
            fitter(x, np.array(["a"] * 8))
        with pytest.raises(DataError, match="8 rows with 8 different labels; .* choose the method 'ridge'"):
            fitter(x, np.arange(8))
    with pytest.raises(InputError, match="C is 0, expected a number above 0"):
        logistic(x, codes, C=0)
    with pytest.raises(NumericsError, match="not converged after 2 iterations .C = 1000.. Lower C"):
        logistic(x, codes, C=1000.0, max_iter=2)
    with pytest.raises(DataError, match="8 labels from 1 to 1; expected at least 3 rows whose labels differ"):
        ridge(x, np.ones(8))
    with pytest.raises(DataError, match="label 1 is 'b', expected a finite number"):
        ridge(x, np.array([1, "b", 2, 3, 4, 5, 6, 7], dtype=object))
    with pytest.raises(DataError, match="label 2 is nan, expected a finite number"):
        ridge(x, np.array([0, 1, np.nan, 3, 4, 5, 6, 7]))
    with pytest.raises(InputError, match=r"alphas is \(0.0, 1.0\), expected numbers above 0"):
        ridge(x, np.arange(8.0), alphas=(0.0, 1.0))
    with pytest.raises(ShapeError, match="activations have 4 features, the probe reads 5"):
        logistic(x, codes).decision(x[:, :4])
    with pytest.raises(UnknownNameError, match="unknown probe 'logistics'. Did you mean 'logistic'"):
        probe["logistics"]


def test_a_probe_is_a_record():
    made = LinearProbe(np.array([[1.0, 2.0]]), np.array([0.5]))
    assert made.decision(torch.tensor([[1.0, 1.0]])).tolist() == [[3.5]]
