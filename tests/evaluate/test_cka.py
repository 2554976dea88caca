"""Unbiased linear CKA: against its definition over quadruples, its invariances, and where the biased one goes wrong."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import traces as slow
from tests.tiny import tiny, tiny_sets
from workbench.core.delta import Delta
from workbench.core.errors import DataError, InputError, ShapeError
from workbench.core.records import Provenance
from workbench.evaluate.cka import cka, linear_cka
from workbench.load.batches import encode_all


def six():
    """Six retain rows of unequal lengths."""
    forget, retain = tiny_sets()
    return wb.Examples([*retain, *forget.rows[:2]], "six")


def vectors(seed, n=7, d=3):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_against_the_definition_over_quadruples_of_rows():
    x, y = vectors(0), vectors(1, d=5) + vectors(0)[:, :1]
    found = linear_cka(x, y)
    assert found.value == pytest.approx(slow.cka(x, y), rel=1e-9)
    half = 1.959963984540054 * slow.jackknife(x, y)  # the normal quantile of 97.5 %
    assert found.high - found.value == pytest.approx(half, rel=1e-9)
    assert found.value - found.low == pytest.approx(half, rel=1e-9)
    assert found.n == 7


def test_by_hand():
    """x = (1, 1, -1, -1, 0), y = (1, -1, 1, -1, 0), n = 5. Off the diagonal K_ij = x_i x_j, so

    tr(K~L~) = (sum xy)^2 - sum x^2 y^2 = 0 - 4;  1'K~1 = 1'L~1 = 0 - 4;  1'K~L~1 = sum_j x_j^2 y_j^2 = 4;  tr(K~K~) = 16 - 4.
    HSIC(K, L) = (-4 + 16/12 - 8/3) / 10 = -8/15;  HSIC(K, K) = HSIC(L, L) = (12 + 16/12 - 8/3) / 10 = 16/15;  CKA = -1/2.
    """
    x, y = np.array([[1.0], [1], [-1], [-1], [0]]), np.array([[1.0], [-1], [1], [-1], [0]])
    assert linear_cka(x, y).value == pytest.approx(-1 / 2, rel=1e-12)


def test_invariances():
    """Rotation, shift, scale and the order of the rows; not a stretch along one axis."""
    x, y = vectors(0, n=20), vectors(1, n=20) + vectors(0, n=20)
    turn = np.linalg.qr(vectors(2, n=3))[0]
    base = linear_cka(x, y)
    for other in (x @ turn, x + 100, 7 * x, -x):
        np.testing.assert_allclose(linear_cka(other, y), base, rtol=1e-8)  # the shift of 100 costs digits
    order = np.random.default_rng(3).permutation(20)
    np.testing.assert_allclose(linear_cka(x[order], y[order]), base, rtol=1e-9)
    np.testing.assert_allclose(linear_cka(y, x), base, rtol=1e-9)
    np.testing.assert_allclose(linear_cka(x, 3 * x @ turn + 1), (1, 1, 1, 20), rtol=1e-9)
    assert abs(linear_cka(x * [10, 1, 1], y).value - base.value) > 0.01


def test_random_vectors_are_not_alike():
    """80 rows of width 256: the biased estimator says d / (n + d) = 0.76, this one 0 within its interval."""
    x, y = vectors(0, n=80, d=256), vectors(1, n=80, d=256)
    found = linear_cka(x, y)
    assert found.low < 0 < found.high
    k, l = (side - side.mean(0) for side in (x, y))  # noqa: E741
    biased = np.square(l.T @ k).sum() / np.sqrt(np.square(k.T @ k).sum() * np.square(l.T @ l).sum())
    assert biased == pytest.approx(256 / 336, abs=0.02)  # spread over draws, 0.005


def test_the_interval_covers():
    """x and y share 1 of 2 parts; the 95 % interval holds the value of many rows in 88 to 99 of 100 samples (binomial, 99.9 %)."""
    rng = np.random.default_rng(0)

    def pair(n):
        shared = rng.normal(size=(n, 4))
        return shared + rng.normal(size=(n, 4)), shared + rng.normal(size=(n, 4))

    truth = linear_cka(*pair(3000)).value
    inside = sum(found.low <= truth <= found.high for found in (linear_cka(*pair(60)) for _ in range(100)))
    assert 88 <= inside <= 99


def test_states_of_two_models():
    one, two, rows = tiny(), tiny(seed=1), six()
    found = cka(one, two, rows)
    coded = encode_all(one, rows)
    for layer in (0, 1):
        sides = [np.array([slow.stream(m.hf, r.tokens)[layer][r.start :].mean(0) for r in coded]) for m in (one, two)]
        assert found[layer].value == pytest.approx(slow.cka(*sides), rel=1e-5)  # pooled states are kept in float32
    assert found.frame()["layer"].tolist() == [0, 1]
    assert found.measurements("all")["cka_layer_1", "all"].n == 6
    alone = cka(one, two, rows, layers=[1], batch_tokens=1)
    assert alone[1].value == pytest.approx(found[1].value, rel=1e-5)


def test_a_model_is_like_itself_and_a_change_is_applied_and_gone():
    model, rows = tiny(), six()
    np.testing.assert_allclose(cka(model, model, rows).estimates, [(1, 1, 1, 6)] * 2, rtol=1e-9)
    before = model.fingerprint()
    name = "model.layers.1.mlp.down_proj.weight"
    noise = torch.randn(model.shapes()[name], generator=torch.Generator().manual_seed(0))
    found = cka(model, Delta.of({name: noise}, Provenance("noise", before)), rows)
    assert found[0].value == pytest.approx(1)
    assert found[1].value < 0.99
    assert model.fingerprint() == before


def test_states_that_do_not_vary_have_no_value():
    """All rows the same; all but one; and all but one once another is left out, which has a value and no interval."""
    same = np.ones((6, 2))
    assert np.isnan(linear_cka(same, vectors(0, n=6))[:3]).all()
    same[0] = 0.3
    assert np.isnan(linear_cka(vectors(0, n=6), same)[:3]).all()
    same[1] = [5, 2]
    found = linear_cka(vectors(0, n=6), same)
    assert np.isfinite(found.value)
    assert np.isnan([found.low, found.high]).all()


def test_what_is_refused():
    with pytest.raises(ShapeError, match="x has 7 rows and y 6"):
        linear_cka(vectors(0), vectors(1, n=6))
    with pytest.raises(DataError, match="4 rows, expected 5 or more"):
        linear_cka(vectors(0, n=4), vectors(1, n=4))
    with pytest.raises(DataError, match="NaN or infinite"):
        linear_cka(vectors(0), vectors(1) * np.nan)
    with pytest.raises(DataError, match="retain has 4 rows, expected 5 or more"):
        cka(tiny(), tiny(seed=1), tiny_sets()[1])
    with pytest.raises(InputError, match="layers is"):
        cka(tiny(), tiny(seed=1), six(), layers=[2])
