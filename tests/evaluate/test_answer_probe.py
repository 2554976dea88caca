"""The probe of right answers: its objective against Newton's method, its AUC by hand, and rows that judge never train."""

import numpy as np
import pytest

from tests.reference import traces as slow
from workbench.evaluate.answer_probe import first_answers, held_out, shuffled, within_auc

QUESTION = np.repeat(np.arange(6), [3, 4, 2, 3, 4, 3])


def answers(seed=0, d=3, gap=1.0):
    """Features that differ between right and false answers along the first axis, and the truth."""
    truth = first_answers(QUESTION)
    x = np.random.default_rng(seed).normal(size=(len(QUESTION), d)) * [1, 5, 0.1]
    x[truth, 0] += gap
    return x, truth


def test_auc_by_hand():
    """Right 2 of false 1 3: 1/2. Right 0 of false 0: a tie, 1/2. Right 5 of false 1 2 5: (1 + 1 + 1/2) / 3."""
    scores = np.array([2.0, 1, 3, 0, 0, 5, 1, 2, 5])
    question = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    np.testing.assert_allclose(within_auc(scores, first_answers(question), question), [0.5, 0.5, 2.5 / 3], rtol=1e-12)


def test_auc_against_the_loop():
    scores = np.random.default_rng(0).integers(0, 4, len(QUESTION)).astype(float)
    truth = shuffled(QUESTION, count=1, seed=1)[0]
    found = within_auc(scores, truth, QUESTION)
    for i in range(6):
        mine = i == QUESTION
        assert found[i] == pytest.approx(slow.within_auc(scores[mine & truth][0], scores[mine & ~truth]))


def test_adding_a_number_to_all_scores_of_a_question_changes_nothing():
    scores = np.random.default_rng(0).normal(size=len(QUESTION))
    truth = first_answers(QUESTION)
    moved = scores + np.random.default_rng(1).normal(size=6)[QUESTION]
    np.testing.assert_allclose(within_auc(moved, truth, QUESTION), within_auc(scores, truth, QUESTION), rtol=1e-12)


def test_held_out_scores_against_newton():
    x, truth = answers()
    fold = QUESTION % 3
    found = held_out(x, truth, fold, C=0.5)
    for held in range(3):
        f = slow.probe(x[fold != held], truth[fold != held], 0.5)
        # L-BFGS stops at a gradient of 1e-6, so scores near 1 are off by about that much
        np.testing.assert_allclose(found[fold == held], f(x[fold == held]), atol=1e-4)


def test_what_is_judged_does_not_train():
    x, truth = answers()
    fold = QUESTION % 3
    found = held_out(x, truth, fold, C=0.5)
    changed = x.copy()
    changed[fold == 1] *= -3
    again = held_out(changed, truth, fold, C=0.5)
    f = slow.probe(x[fold != 1], truth[fold != 1], 0.5)
    np.testing.assert_allclose(again[fold == 1], f(changed[fold == 1]), atol=1e-4)
    assert np.abs(again[fold == 0] - found[fold == 0]).max() > 0.01


def test_a_feature_that_does_not_vary_is_left_out():
    x, truth = answers()
    wider = np.column_stack([x, np.ones(len(x))])
    np.testing.assert_allclose(held_out(wider, truth, QUESTION % 3, C=0.5), held_out(x, truth, QUESTION % 3, C=0.5), atol=1e-6)


def test_random_truths():
    """One a question, drawn from all of its answers alike, by the seed."""
    drawn = shuffled(QUESTION, count=4000, seed=0)
    assert all((np.bincount(QUESTION, truth) == 1).all() for truth in drawn)
    share = np.mean(drawn, axis=0)
    np.testing.assert_allclose(share, 1 / np.bincount(QUESTION)[QUESTION], atol=0.04)  # 5 standard errors of 4000 draws
    assert (shuffled(QUESTION, count=3, seed=0)[2] == drawn[2]).all()
