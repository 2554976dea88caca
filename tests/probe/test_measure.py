"""Statistics of weighted rows against loops over repeated rows, and their intervals against the package's bootstrap."""

import math

import numpy as np
import pytest

from tests.reference import probes as truth
from workbench.core.statistics import bootstrap
from workbench.probe import measure
from workbench.probe.judge import Judge, confidence, margins, predicted
from workbench.probe.measure import estimate, resamples, spread

N = 14
RNG = np.random.default_rng(5)
SCORES = np.round(RNG.normal(size=N), 1)  # with ties
CODES = np.array([0, 1, 2, 1, 0, 0, 2, 1, 0, 1, 2, 0, 0, 1])
TARGETS = np.round(SCORES + RNG.normal(size=N), 1)
RIGHT = RNG.random(N) < 0.6
WEIGHTS = np.vstack([np.ones(N), RNG.integers(0, 4, size=(20, N))]).astype(float)  # some leave out a class
LOGITS, P = RNG.normal(size=(N, 3)), RNG.random(N)


def repeated(values, weights):
    """The rows as a list, each as often as it was drawn."""
    return [v for v, w in zip(values, weights, strict=True) for _ in range(int(w))]


def of(statistic, *about, weights=WEIGHTS):
    return spread(lambda w: statistic(*about, w), weights)


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)  # float64, a dozen terms in another order


# --- against loops ----------------------------------------------------------------------------------------------------


def test_auc():
    positive = CODES == 1
    assert_same(of(measure.auc, SCORES, positive), [truth.auc(repeated(SCORES, w), repeated(positive, w)) for w in WEIGHTS])


def test_macro_auc():
    scores = np.round(LOGITS, 1)
    expected = [
        sum(truth.auc(repeated(scores[:, c], w), [code == c for code in repeated(CODES, w)]) for c in range(3)) / 3 for w in WEIGHTS
    ]
    assert_same(of(measure.macro_auc, scores, CODES), expected)


def test_accuracies():
    assert_same(of(measure.accuracy, RIGHT), [np.mean(repeated(RIGHT, w)) for w in WEIGHTS])
    expected = [truth.balanced_accuracy(repeated(RIGHT, w), repeated(CODES, w), 3) for w in WEIGHTS]
    assert_same(of(measure.balanced_accuracy, RIGHT, CODES), expected)


def test_spearman_and_r_squared():
    assert_same(of(measure.spearman, SCORES, TARGETS), [truth.spearman(repeated(SCORES, w), repeated(TARGETS, w)) for w in WEIGHTS])
    assert_same(
        of(measure.r_squared, SCORES, TARGETS), [truth.r_squared(repeated(SCORES, w), repeated(TARGETS, w)) for w in WEIGHTS]
    )


@pytest.mark.parametrize(("n", "bins"), [(14, 4), (14, 14), (10, 10), (3, 10)])
def test_calibration_error(n, bins):
    p, right = P[:n], RIGHT[:n].astype(float)
    table = measure.reliability(p, right, bins=bins)
    assert len(table) == min(n, bins)
    assert table[:, 2].sum() == n
    assert np.ptp(table[:, 2]) <= 1
    assert_same(measure.calibration_error(table), truth.calibration_error(p, right, min(n, bins)))


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_auc_by_hand():
    """Scores 1, 2, 2, 3 of which the second and last are positive: 2 > 1, 2 = 2, 3 > 1, 3 > 2: (1 + 1/2 + 1 + 1) / 4 = 7/8.
    With the tied negative drawn twice: (1 + 1/2 + 1/2 + 1 + 1 + 1) / 6 = 5/6. Without a negative: undefined."""
    scores, positive = np.array([1.0, 2, 2, 3]), np.array([False, True, False, True])
    found = spread(lambda w: measure.auc(scores, positive, w), np.array([[1.0, 1, 1, 1], [1, 1, 2, 1], [0, 1, 0, 1]]))
    assert_same(found, [7 / 8, 5 / 6, math.nan])


def test_calibration_by_hand():
    """Two bins of two: promised .1 and .3, none came; promised .6 and 1, one came. |.2 - 0| and |.8 - .5|: mean .25."""
    table = measure.reliability(np.array([0.6, 0.1, 1.0, 0.3]), np.array([0.0, 0, 1, 0]), bins=2)
    assert_same(table, [[0.2, 0, 2], [0.8, 0.5, 2]])
    assert measure.calibration_error(table) == pytest.approx(0.25)


def test_margins_by_hand():
    """p = (1/2, 1/4, 1/4): odds 1, 1/3, 1/3. A number common to a row's logits changes nothing."""
    logits = np.log([[2.0, 1, 1]]) + 7
    np.testing.assert_allclose(margins(logits), np.log([[1, 1 / 3, 1 / 3]]), atol=1e-12)
    assert predicted(logits).tolist() == [0]
    assert confidence(logits, np.array([0]))[0].tolist() == pytest.approx([0.5])
    assert confidence(np.array([[math.log(3)], [-1000.0]]), np.array([1, 1]))[0].tolist() == pytest.approx([0.75, 0])


# --- resamples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
def test_intervals_are_the_packages_own(seed):
    """Rows by themselves in two strata: `core.statistics.bootstrap` of the two samples, resample by resample."""
    codes = np.sort(CODES == 1).astype(int)
    weights = resamples(codes, np.arange(N), seed=seed)

    def slow(negative, positive):
        return np.array([truth.auc([*a, *b], [False] * len(a) + [True] * len(b)) for a, b in zip(negative, positive, strict=True)])

    found = estimate(spread(lambda w: measure.auc(SCORES, codes == 1, w), weights), N)
    assert_same(found, bootstrap(slow, SCORES[codes == 0], SCORES[codes == 1], seed=seed, resamples=2000))
    means = estimate(spread(lambda w: measure.accuracy(RIGHT, w), resamples(np.zeros(N, dtype=int), np.arange(N), seed=seed)), N)
    assert_same(means, bootstrap(lambda x: x.mean(axis=1), RIGHT.astype(float), seed=seed))


def test_rows_are_drawn_within_their_class():
    weights = resamples(CODES, np.arange(N), seed=0, count=50)
    assert weights.shape == (51, N)
    assert (weights[0] == 1).all()
    for c, n in enumerate(np.bincount(CODES)):
        assert (weights[:, c == CODES].sum(axis=1) == n).all()
    assert weights[1:].std() > 0.5


def test_groups_are_drawn_whole():
    groups = np.array([4, 4, 0, 0, 7, 7, 7, 1, 1, 9, 9, 9, 9, 2])
    pure = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1])  # no group has rows of both
    mixed = np.arange(N) % 2
    for strata, drawn in ((pure, {0: 3, 1: 3}), (mixed, {None: 6})):
        weights = resamples(strata, groups, seed=0, count=300)[1:]
        for g in np.unique(groups):
            assert (np.ptp(weights[:, groups == g], axis=1) == 0).all()
        for stratum, n in drawn.items():
            firsts = [np.flatnonzero(groups == g)[0] for g in np.unique(groups)]
            mine = [i for i in firsts if stratum is None or strata[i] == stratum]
            assert (weights[:, mine].sum(axis=1) == n).all()
        assert len(np.unique(weights.sum(axis=1))) > 1, "larger groups make larger resamples"
        ends = [i for i in firsts if strata[np.flatnonzero(groups == groups[i])[-1]] == 0]
        assert (np.ptp(weights[:, ends].sum(axis=1)) == 0) == (strata is pure)


def test_what_cannot_be_said_has_no_interval():
    """One group of a class does not say how groups vary; two mixed groups leave resamples without a class."""
    alone = resamples(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2]), seed=0)
    found = estimate(spread(lambda w: measure.accuracy(np.array([True, False, True, True]), w), alone), 4)
    assert found[0] == 0.75
    assert np.isnan(found[1:3]).all()
    codes, groups = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])
    auc = spread(lambda w: measure.auc(np.arange(4.0), codes == 1, w), resamples(codes, groups, seed=0))
    assert 0.2 < np.isnan(auc).mean() < 0.3  # a quarter draws the second group twice
    assert np.isnan(estimate(auc, 4)[1:3]).all()
    few = np.array([0.5, *[np.nan] * 4, *np.linspace(0, 1, 96)])  # 4 of 100 undefined: the others say it
    assert estimate(few, 9) == (0.5, pytest.approx(0.025), pytest.approx(0.975), 9)


def test_blocks_change_nothing(monkeypatch):
    weights = resamples(CODES, np.arange(N), seed=0, count=100)
    whole = spread(lambda w: measure.spearman(SCORES, TARGETS, w), weights)
    monkeypatch.setattr("workbench.probe.measure.BLOCK", 7 * N)
    assert_same(spread(lambda w: measure.spearman(SCORES, TARGETS, w), weights), whole)


def test_noise_of_a_true_probability_is_not_zero_and_shrinks():
    rng = np.random.default_rng(0)
    small, large = (measure.calibration_noise(rng.random(n), seed=1) for n in (100, 10_000))
    # sd of a bin's share is about .4 / sqrt(n / 10), its mean size .8 of that: .10 and .010
    assert small.value == pytest.approx(0.1, rel=0.15)
    assert large.value == pytest.approx(0.01, rel=0.15)
    assert small.low < small.value < small.high
    p = np.array([0.9, 0.2, 0.6])
    drawn = np.random.default_rng(4).random((500, 3)) < p
    assert measure.calibration_noise(p, seed=4, bins=2).value == pytest.approx(
        np.mean([truth.calibration_error(p, line.astype(float), 2) for line in drawn])
    )


# --- the judge --------------------------------------------------------------------------------------------------------


def test_what_is_measured_of_two_classes():
    codes = CODES.clip(0, 1)
    found = Judge(codes, 2, WEIGHTS)(SCORES[:, None], log_odds=True)
    assert_same(found[0], of(measure.auc, SCORES, codes == 1))
    assert_same(found[1], of(measure.accuracy, (SCORES > 0) == codes))
    assert_same(found[2], of(measure.balanced_accuracy, (SCORES > 0) == codes, codes))
    assert_same(Judge.plain(codes, 2).chance(), [0.5, 8 / 14, 0.5])  # eight of fourteen rows are of class 1


def test_what_is_measured_of_three_classes():
    logits = LOGITS
    common = logits + 100 * TARGETS[:, None]  # a softmax does not see it
    judge = Judge(CODES, 3, WEIGHTS)
    assert judge.metrics == ("auc", "accuracy", "balanced_accuracy")
    found = judge(logits, log_odds=True)
    np.testing.assert_allclose(judge(common, log_odds=True), found, atol=1e-9)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert_same(found[0], of(measure.macro_auc, p, CODES))
    assert_same(found[1], of(measure.accuracy, logits.argmax(1) == CODES))
    assert not np.allclose(judge(common, log_odds=False)[0], found[0], equal_nan=True)
    np.testing.assert_array_equal(judge(logits, log_odds=False)[0], of(measure.macro_auc, logits, CODES))
    assert_same(judge.chance(), [0.5, 6 / 14, 1 / 3])


def test_what_is_measured_of_numbers():
    judge = Judge(TARGETS, 0, WEIGHTS)
    found = judge(SCORES[:, None], log_odds=False)
    assert judge.metrics == ("spearman", "r_squared")
    assert_same(found, [of(measure.spearman, SCORES, TARGETS), of(measure.r_squared, SCORES, TARGETS)])
    assert_same(judge.chance(), [0, 0])
