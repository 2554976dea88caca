"""The numbers of a comparison: means over seeds with intervals over rows and seeds, distances in bands, the chosen rate."""

import numpy as np
import pytest

from tests.reference import compare as truth
from workbench.core.errors import DataError
from workbench.core.statistics import bootstrap
from workbench.evaluate.model_utility import harmonic_mean
from workbench.study import compare_numbers
from workbench.study.compare_choice import choose
from workbench.study.compare_grid import hold_out
from workbench.study.compare_numbers import distance, distance_in_bands, mean, over_seeds


def sample(seeds=3, rows=9, parts=3):
    return np.random.default_rng(0).normal(size=(seeds, rows, parts))


def loop(statistic):
    """A statistic of rows of three numbers, for the reference."""
    return lambda rows: statistic(*zip(*rows, strict=True))


@pytest.mark.parametrize(
    ("statistic", "slow"),
    [
        (distance, loop(lambda arm, gold, second: truth.ks(arm, gold))),
        (distance_in_bands, loop(truth.bands)),
    ],
)
def test_distances_equal_the_loop(monkeypatch, statistic, slow):
    monkeypatch.setattr(compare_numbers, "RESAMPLES", 40)
    values = sample()
    found = over_seeds(statistic, values, seed=5)
    want = truth.over_seeds(slow, [values.tolist()], resamples=40, seed=5, bound=1.0 if statistic is distance else np.inf)
    assert found[:3] == pytest.approx(want, rel=1e-12)
    assert found.n == 9


def test_utility_equals_the_loop(monkeypatch):
    monkeypatch.setattr(compare_numbers, "RESAMPLES", 40)
    rng = np.random.default_rng(1)
    samples = [rng.uniform(0.2, 1, size=(2, rows, 3)) for rows in (5, 7)]
    found = over_seeds(lambda *drawn: harmonic_mean(np.concatenate([d.mean(axis=1) for d in drawn], axis=1)), *samples)

    def slow(*drawn):
        return truth.harmonic([truth.mean(part) for one in drawn for part in zip(*one, strict=True)])

    assert found[:3] == pytest.approx(truth.over_seeds(slow, [s.tolist() for s in samples], resamples=40, seed=0), rel=1e-12)
    assert found.n == 12


def test_distances_by_hand():
    # arm 1 2 3 4 against 3 4 5 6: half of the arm lies below all of the other, D = 1/2; 3 5 5 6 against 3 4 5 6: at 4, 1/4 and
    # 2/4, D = 1/4; so two bands. The retrained model itself: 0 bands; the second one: 1.
    gold, second = [3.0, 4.0, 5.0, 6.0], [3.0, 5.0, 5.0, 6.0]
    for arm, d, bands in (([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), (gold, 0.0, 0.0), (second, 0.25, 1.0)):
        rows = np.array([arm, gold, second]).T[None]
        assert distance(rows)[0] == d
        assert distance_in_bands(rows)[0] == bands


def test_a_distance_lies_in_its_interval():
    """Resampling widens a D, most of all a small one: the central share of the resamples lies above it."""
    draw = np.random.default_rng(0).normal(size=(2, 80))
    rows = np.stack([draw[0] + 0.1 * draw[1], draw[0], draw[0] + 0.3], axis=1)
    central = bootstrap(distance, rows)
    assert central.value < central.low  # else the case shows nothing
    for statistic in (distance, distance_in_bands):
        found = over_seeds(statistic, rows[None])
        assert found.low <= found.value <= found.high
    assert over_seeds(distance, rows[None]).high - over_seeds(distance, rows[None]).low > 0


def test_the_order_of_rows_and_of_seeds_does_not_matter_to_the_value():
    values = sample(3, 20)
    expected = over_seeds(distance_in_bands, values).value
    assert over_seeds(distance_in_bands, values[::-1]).value == pytest.approx(expected, rel=1e-12)
    assert over_seeds(distance_in_bands, values[:, ::-1]).value == pytest.approx(expected, rel=1e-12)


def test_intervals_are_over_rows_and_seeds():
    rows = np.random.default_rng(0).normal(size=(1, 30))
    one = over_seeds(mean, rows)
    alike = over_seeds(mean, np.repeat(rows, 3, axis=0))  # three seeds that agree add no information, and no doubt
    assert alike[:3] == pytest.approx(one[:3], rel=1e-12)
    apart = over_seeds(mean, np.concatenate([rows - 1, rows, rows + 1]))
    assert apart.value == pytest.approx(one.value, abs=1e-12)  # rounding of a mean of numbers near 1
    assert apart.high - apart.low > 2 * (one.high - one.low)
    steady = over_seeds(mean, np.array([[1.0, 1.0], [3.0, 3.0]]))  # rows say nothing: 1, 2 or 3, a quarter of the draws at each end
    assert steady[:3] == (2.0, 1.0, 3.0)


def test_the_same_rows_are_drawn_for_every_arm():
    rng = np.random.default_rng(3)
    arm = rng.normal(size=(3, 25))
    # a constant shift of all rows and seeds shifts the bounds alike, with other draws it could not
    shifted = over_seeds(mean, arm + 2)
    assert np.array(shifted[:3]) - 2 == pytest.approx(np.array(over_seeds(mean, arm)[:3]), abs=1e-12)


def test_nothing_is_no_estimate():
    for empty in (np.empty((0, 3)), np.empty((2, 0))):
        with pytest.raises(DataError, match="expected at least one seed and one row each"):
            over_seeds(mean, empty)


@pytest.mark.parametrize(
    ("found", "rate"),
    [
        ([(1e-4, 0.2, 9, True), (3e-4, 0.5, 8, True), (1e-3, 0.4, 8, True)], 3e-4),
        ([(1e-4, 0.5, 9, True), (3e-4, 0.5, 9, True), (1e-3, None, None, None)], 1e-4),  # equal: the smaller rate; not finite
        ([(1e-4, 0.2, 16, False), (3e-4, 0.3, 8, True), (1e-3, 0.9, 0.4, True)], 3e-4),  # 0.4 steps: 5 of 100 rows were met
        ([(1e-4, 0.9, 16, False), (3e-4, 0.3, 8, True)], 3e-4),  # at a smaller cost
        ([(3e-4, 0.3, 6.5, True), (1e-3, 0.9, 0.4, True)], 3e-4),  # neither took an epoch: the one that met more rows
        ([(1e-4, 0.9, 16, False), (3e-4, 0.3, 6.5, True), (1e-3, 0.4, 6.5, True)], 3e-4),
        ([(1e-4, 0.2, 16, False), (3e-4, 0.3, 16, False)], 3e-4),  # none spent the budget
        ([(1e-4, None, None, None), (3e-4, None, None, None)], None),
    ],
)
def test_the_rate_is_chosen_by_what_the_validation_rows_forget_in_an_epoch_or_more(found, rate):
    trials = [
        {"lr": lr, "validation_nll": nll} | ({} if nll is None else {"steps": steps, "reached": reached})
        for lr, nll, steps, reached in reversed(found)
    ]
    assert choose(trials, 8) == rate == truth.best_rate(found, 8)


def test_validation_rows_are_held_out(forget):
    fitting, validation = hold_out(forget, 4)
    assert (len(fitting), len(validation)) == (6, 4)
    assert sorted([*fitting.ids, *validation.ids]) == sorted(forget.ids)
    again = hold_out(forget, 4)
    assert again[1].ids == validation.ids
