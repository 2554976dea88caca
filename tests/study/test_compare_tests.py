"""Masks compared by seed, and what they are held against."""

import math

import numpy as np
import pytest

from tests.reference import compare as truth
from workbench.core.errors import DataError, ShapeError
from workbench.study.compare_plan import Line, twin, without
from workbench.study.compare_tests import paired_seeds, untwinned
from workbench.study.config import MaskPlan
from workbench.study.methods import Method

WAGLE = MaskPlan("wagle", 0.1)
RANDOM = MaskPlan("wagle", 0.1, control="matched_random")


def line(name, called, masks, rates=(1e-3,), **options):
    return Line(Method(name, "unlearn", called, {"objective": called, **options}), masks, rates)


@pytest.mark.parametrize("seeds", [2, 3])
def test_equals_the_closed_form(seeds):
    a, b = np.random.default_rng(seeds).normal(size=(2, seeds, 7)) + np.array([0.8, 0.0])[:, None, None]
    found = paired_seeds(a, b)
    differences = [truth.mean([x - y for x, y in zip(one, two, strict=True)]) for one, two in zip(a, b, strict=True)]
    assert (*found.difference[:3], found.p) == pytest.approx(truth.student(differences), rel=1e-9)
    assert found.difference.n == seeds
    turned = paired_seeds(b, a)
    assert turned.p == pytest.approx(found.p, rel=1e-12)
    assert turned.difference.value == pytest.approx(-found.difference.value, rel=1e-12)


def test_by_hand():
    # differences of three seeds 1, 2, 3: mean 2, s 1, t = 2 sqrt(3); with 2 degrees of freedom p = 1 - sqrt(12 / 14) = 0.0742
    rows = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert paired_seeds(rows, 0 * rows).p == pytest.approx(1 - math.sqrt(12 / 14))


def test_without_spread_or_seeds():
    rows = np.array([[1.0, 2.0], [1.0, 2.0]])
    assert paired_seeds(rows, rows).p == 1
    assert 0 < paired_seeds(rows + 1, rows).p < 1e-100
    assert math.isnan(paired_seeds(rows[:1], rows[:1] + 1).p)


def test_two_runs_of_one_method_are_told_apart_no_more_often_than_said():
    """The same method twice, three seeds each: what a seed decides is shared by all its rows, so rows are no repeats."""
    rng = np.random.default_rng(0)
    easy = rng.normal(size=80)  # what a row has in all runs
    runs = easy + rng.normal(size=(2000, 2, 3, 1)) * 0.3 + rng.normal(size=(2000, 2, 3, 80)) * 0.1
    found = np.mean([paired_seeds(a, b).p <= 0.05 for a, b in runs])
    assert found == pytest.approx(0.05, abs=0.015)  # three standard errors of 2,000 draws at 5 %


def test_what_cannot_be_compared():
    with pytest.raises(ShapeError, match="two arrays .* of one shape"):
        paired_seeds(np.zeros((2, 3)), np.zeros((3, 3)))
    for wrong in (np.full((2, 3), np.nan), np.empty((2, 0))):
        with pytest.raises(DataError, match="empty, or hold a value that is NaN"):
            paired_seeds(wrong, wrong)


def test_a_mask_is_held_against_none_and_its_random_twin():
    other = MaskPlan("wagle", 0.2, control="matched_random")
    npo = line("npo", "npo", {"none": None, "wagle": WAGLE, "random": RANDOM, "other": other})
    assert without([npo], npo, "wagle") == ("npo", "none")
    assert twin([npo], npo, "wagle") == ("npo", "random")
    assert without([npo], npo, "random") == ("npo", "none")
    assert twin([npo], npo, "random") is None
    assert without([npo], npo, "none") is twin([npo], npo, "none") is None


def test_a_mask_of_its_own_is_held_against_methods_that_do_the_same():
    npo = line("npo", "npo", {"none": None})
    fisher = line("fisher", "npo", {"fisher_ratio": MaskPlan("fisher_ratio", 0.05)})
    control = line("control", "npo", {"fisher_ratio-matched_random": MaskPlan("fisher_ratio", 0.05, control="matched_random")})
    gentle = line("gentle", "npo", {"none": None}, retain_weight=2)
    slow = line("slow", "npo", {"none": None}, rates=(1e-4,))
    assert without([gentle, slow, npo, fisher, control], fisher, "fisher_ratio") == ("npo", "none")
    assert twin([npo, fisher, control], fisher, "fisher_ratio") == ("control", "fisher_ratio-matched_random")
    assert without([gentle, slow, fisher], fisher, "fisher_ratio") is None
    assert untwinned([npo, fisher, control]) == []
    assert untwinned([npo, fisher]) == ["fisher, fisher_ratio"]
