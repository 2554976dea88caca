"""What a probe is asked: codes of the labels, and rows that train, judge and cross-validate without overlap."""

import numpy as np
import pytest

from workbench.probe.split import folds
from workbench.probe.task import inner_folds, task_of

TEXTS = [f"text number {i}" for i in range(60)]


def asked(labels, groups=None, *, numeric=False, held_out=0.3, seed=0):
    return task_of(TEXTS[: len(labels)], labels, groups, numeric=numeric, positive=None, held_out=held_out, seed=seed)


def test_every_row_trains_or_judges():
    task = asked(["b", "a", "b"] * 20)
    assert task.classes == ("a", "b")
    assert task.truth.tolist() == [1, 0, 1] * 20
    assert sorted([*task.train, *task.held]) == list(range(60))
    assert np.bincount(task.truth[task.held]).tolist() == [6, 12]  # .3 of 20 and of 40


@pytest.mark.parametrize("numeric", [False, True])
def test_folds_are_five_of_the_training_rows(numeric):
    labels = np.linspace(0, 1, 60).tolist() if numeric else [0, 1, 2] * 20
    task = asked(labels, numeric=numeric)
    assert task.classes == (() if numeric else (0, 1, 2))
    assert len(task.inner) == 5
    assert sorted(i for _, judging in task.inner for i in judging) == list(range(len(task.train)))
    for training, judging in task.inner:
        assert sorted([*training, *judging]) == list(range(len(task.train)))


def test_folds_keep_groups_whole_and_are_no_more_than_a_class_has():
    """Ones stand in four groups, of which three train: three folds."""
    groups = [f"one {i % 4}" if i % 3 == 0 else f"zero {i}" for i in range(60)]
    task = asked([int(i % 3 == 0) for i in range(60)], groups, held_out=0.25)
    assert len(task.inner) == 3
    named = task.groups[task.train]
    for training, judging in task.inner:
        assert not set(named[training]) & set(named[judging])


def test_a_fold_without_a_class_is_none():
    """Class 2 stands in groups 0 and 1 alone, which are dealt to one fold: the other could neither teach nor judge it."""
    groups = np.array([2, 1, 3, 1, 2, 1, 1, 3, 0, 2, 1, 2, 3, 1, 2, 2, 1, 0])
    truth = np.array([0, 2, 0, 2, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 1, 0, 2])
    assert folds(truth, groups, n=2, seed=0)[groups == 0][0] == folds(truth, groups, n=2, seed=0)[groups == 1][0]
    assert inner_folds(truth, groups, truth, 0) == []
    alone = np.array([0] * 6 + [1] * 6)
    assert inner_folds(alone, alone, alone, 0) == []  # one group a class: one fold, which would have nothing to learn from
    flat = np.arange(12) // 6  # of numbers there is one stratum; a fold of equal ones cannot be ranked
    assert inner_folds(np.zeros(12, dtype=int), flat, flat.astype(float), 0) == []
