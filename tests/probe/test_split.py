"""The split: strata in their share, what belongs together on one side, the same for the same seed."""

import numpy as np
import pytest

from workbench.probe.split import folds, judging_rows, together


def test_what_belongs_together():
    texts = ["a", "b", "a", "c", "d", "e", "f"]
    assert len(set(together(texts).tolist())) == 6
    assert together(texts)[0] == together(texts)[2]
    # group x: b and c; group y: c's is x; "a" joins rows 0 and 2, and with them groups y and z
    found = together(texts, ["y", "x", "z", "x", None, None, "z"])
    assert [len({int(found[i]) for i in rows}) for rows in ([0, 2, 6], [1, 3], [4, 5])] == [1, 1, 2]
    assert len(set(found.tolist())) == 4
    assert sorted(set(found.tolist())) == list(range(4))
    assert len(set(together(["a", "b"], ["a", "a"]).tolist())) == 1
    assert len(set(together(["a", "b"], ["b", "a"]).tolist())) == 2, "a group named like a text is not that text"


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.75])
def test_single_rows_are_stratified_exactly(share):
    strata = np.array([0] * 37 + [1] * 11 + [2] * 5)
    held = judging_rows(strata, np.arange(53), share=share, seed=1)
    for stratum, n in ((0, 37), (1, 11), (2, 5)):
        assert held[strata == stratum].sum() == pytest.approx(share * n, abs=0.5)


def test_groups_stay_whole_and_the_share_is_kept():
    rng = np.random.default_rng(0)
    groups = np.unique(rng.integers(0, 60, 400), return_inverse=True)[1]
    strata = rng.integers(0, 2, 400)
    held = judging_rows(strata, groups, share=0.3, seed=0)
    assert not set(groups[held]) & set(groups[~held])
    for stratum in (0, 1):
        assert held[strata == stratum].mean() == pytest.approx(0.3, abs=0.03)


def test_folds_deal_every_stratum_evenly():
    strata = np.array([0] * 23 + [1] * 10)
    fold = folds(strata, np.arange(33), n=5, seed=0)
    for stratum in (0, 1):
        counts = np.bincount(fold[strata == stratum], minlength=5)
        assert np.ptp(counts) <= 1
    groups = np.arange(33) // 3
    fold = folds(strata, groups, n=4, seed=0)
    assert all(len(set(fold[groups == g].tolist())) == 1 for g in range(11))
    assert np.ptp(np.bincount(fold)) <= 6  # groups of three


def test_the_seed_decides():
    strata, groups = np.arange(40) % 2, np.arange(40)
    for make in (lambda s: judging_rows(strata, groups, share=0.3, seed=s), lambda s: folds(strata, groups, n=3, seed=s)):
        np.testing.assert_array_equal(make(0), make(0))
        assert (make(0) != make(1)).any()
