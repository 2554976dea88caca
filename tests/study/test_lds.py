"""The linear datamodeling score: additive data give 1, noise about 0, a constant none; the ceiling is what theory says."""

from inspect import unwrap

import numpy as np
import pytest

from tests.reference import lds as slow
from workbench.core.errors import ShapeError
from workbench.study.lds import lds, reliability, spearman


def a_bank(models=24, train=16, queries=5, seeds=2, *, noise=0.0, seed=0):
    """Influence, random halves, and losses that are minus its sums, with noise of its own for every seed."""
    rng = np.random.default_rng(seed)
    influence = rng.normal(size=(queries, train))
    subsets = np.stack([rng.permutation(train) < train // 2 for _ in range(models)])
    losses = -(influence @ subsets.T).T[:, None, :] + noise * rng.normal(size=(models, seeds, queries))
    return influence, subsets, losses


def test_additive_data_give_one():
    influence, subsets, losses = a_bank()
    found = lds(influence, subsets, losses)
    assert found.estimate[:3] == (1.0, 1.0, 1.0)
    assert found.estimate.n == 5
    assert found.note == ""
    assert lds(-influence, subsets, losses).estimate.value == -1.0


def test_against_the_slow_one():
    influence, subsets, losses = a_bank(noise=2.0)
    influence = influence.round(1)  # ties, which sums of floats in two orders would break
    value, per_query = slow.lds(influence.tolist(), subsets.tolist(), losses.tolist())
    found = lds(influence, subsets, losses)
    assert found.estimate.value == pytest.approx(value, rel=1e-12)  # float64, sums of 24 ranks
    np.testing.assert_allclose(found.per_query, per_query, rtol=1e-12)
    assert found.estimate.low < value < found.estimate.high


def test_by_hand():
    """Three models on two rows, one query. Sums: {0}: 2, {1}: 1, {0, 1}: 3, ranks 2 1 3.

    Minus the mean losses over two seeds: -3, -2, -1, ranks 1 2 3. Deviations (0 -1 1) . (-1 0 1) = 1 over sqrt(2 * 2): 1/2.
    """
    subsets = np.array([[True, False], [False, True], [True, True]])
    losses = np.array([[[2.0], [4.0]], [[2.0], [2.0]], [[1.5], [0.5]]])
    assert lds(np.array([[2.0, 1.0]]), subsets, losses).estimate.value == pytest.approx(0.5)


def test_order_and_scale_do_not_matter():
    influence, subsets, losses = a_bank(noise=1.0)
    rng = np.random.default_rng(1)
    rows, models, queries = rng.permutation(16), rng.permutation(24), rng.permutation(5)
    same = lds(influence[queries][:, rows], subsets[models][:, rows], losses[models][:, :, queries])
    np.testing.assert_allclose(same.per_query, lds(influence, subsets, losses).per_query[queries], rtol=1e-12)
    scaled = lds(influence * np.arange(1, 6)[:, None] * 1e-6, subsets, losses)  # a scale of its own for every query
    np.testing.assert_allclose(scaled.per_query, lds(influence, subsets, losses).per_query, rtol=1e-12)


def test_what_is_constant_has_no_score():
    influence, subsets, losses = a_bank(noise=1.0)
    flat = lds(np.full_like(influence, 0.1), subsets, losses)  # 0.1 summed eight times in any order is one sum
    assert np.isnan(flat.estimate.value)
    assert "the same sum or loss" in flat.note
    influence[2] = 0.7
    some = lds(influence, subsets, losses)
    assert some.estimate.n == 4
    assert some.note.startswith("not defined for 1 of 5 queries")
    assert np.isnan(some.per_query[2])
    assert some.estimate.value == pytest.approx(np.nanmean(some.per_query))


def test_noise_is_about_zero():
    influence, subsets, losses = a_bank(models=60, queries=20)
    other = np.random.default_rng(9).normal(size=influence.shape)
    found = lds(other, subsets, losses).estimate
    assert found.low < 0 < found.high
    assert abs(found.value) < 0.15  # one query's standard error is 1/sqrt(59) = 0.13, the mean of 20 has 0.03


def test_the_interval_draws_queries_and_models():
    influence, subsets, losses = a_bank(noise=3.0)
    both, again = lds(influence, subsets, losses), lds(influence, subsets, losses)
    np.testing.assert_array_equal(both.drawn, again.drawn)
    one_query = lds(influence[:1], subsets, losses[:, :, :1]).estimate
    assert one_query.high - one_query.low > 0.1  # there is but one query, so only models can make it wide
    twins = lds(np.repeat(influence[:1], 5, 0), subsets, np.repeat(losses[:, :, :1], 5, 2)).estimate
    assert (twins.low, twins.high) == pytest.approx((one_query.low, one_query.high), abs=0.1)  # equal queries, other draws


def test_reliability_by_hand():
    """Orders of three models under two seeds: 1 2 3 and 2 1 3, Spearman 1/2. Mean of two: 2 * 1/2 / (1 + 1/2) = 2/3."""
    losses = np.array([[[1.0], [2.0]], [[2.0], [1.0]], [[3.0], [3.0]]])
    found = reliability(losses)
    assert found.one_seed == pytest.approx(1 / 2)
    assert found.mean_of_seeds == pytest.approx(2 / 3)
    assert found.ceiling.value == pytest.approx((2 / 3) ** 0.5)
    assert found.ceiling.n == 1


def test_the_ceiling_is_the_mean_of_roots():
    """The query above, r = 1/2, one whose seeds agree, r = 1, and one whose seeds oppose, r = -1, which counts as 0.

    r: (1/2 + 1 - 1)/3 = 1/6. Reliabilities 2/3, 1, 0: mean 5/9. Ceiling: (sqrt(2/3) + 1 + 0)/3 = 0.605, not sqrt(5/9) = 0.745 and
    not the root of Spearman-Brown of 1/6, sqrt(2/7) = 0.535.
    """
    first = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0]])
    same = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    opposite = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    found = reliability(np.stack([first, same, opposite], axis=2))
    assert found.one_seed == pytest.approx(1 / 6)
    assert found.mean_of_seeds == pytest.approx(5 / 9)
    assert found.ceiling.value == pytest.approx(((2 / 3) ** 0.5 + 1) / 3)
    assert found.ceiling.low < found.ceiling.value < found.ceiling.high


def test_three_seeds_are_three_pairs():
    """Orders 1 2 3, 1 2 3 and 2 1 3: pairs 1, 1/2, 1/2, mean 2/3; of three seeds 3 * 2/3 / (1 + 2 * 2/3) = 6/7."""
    losses = np.array([[1.0, 1.0, 2.0], [2.0, 2.0, 1.0], [3.0, 3.0, 3.0]])[:, :, None]
    found = reliability(losses)
    assert found.one_seed == pytest.approx(2 / 3)
    assert found.ceiling.value == pytest.approx((6 / 7) ** 0.5)


def test_the_ceiling_is_what_a_perfect_method_reaches():
    """Signal of variance 1 and noise of variance 1 for each of two seeds: reliability of the mean 1 / (1 + 1/2)."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(400, 1, 30))
    losses = signal + rng.normal(size=(400, 2, 30))
    found = reliability(losses, resamples=50).ceiling
    ceiling = found.value
    assert 0 < found.high - found.low < 0.1
    reached = spearman(signal[:, 0].T, losses.mean(axis=1).T).mean()
    assert ceiling == pytest.approx(reached, abs=0.02)  # 30 queries of 400 models: standard error about 0.006; ranks, not Pearson


def test_no_ceiling_without_agreement():
    assert "one seed" in reliability(np.zeros((5, 1, 2))).note
    assert "every query has the same loss" in reliability(np.zeros((5, 2, 2))).note
    opposite = np.stack([np.arange(5.0), -np.arange(5.0)], axis=1)[:, :, None]
    found = reliability(opposite)
    assert found.one_seed == pytest.approx(-1.0)
    assert np.isnan(found.ceiling.value)
    assert "the seeds do not agree" in found.note


def test_shapes_must_fit():
    influence, subsets, losses = a_bank()
    with pytest.raises(ShapeError, match=r"lds: influence is \(5, 15\)"):
        unwrap(lds)(influence[:, :15], subsets, losses)  # as outside the tests, where no annotation is run
