import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.evaluate.tables import random_answers, table
from tests.reference import membership as slow
from workbench.core.errors import DataError, InputError, UnknownNameError
from workbench.evaluate.membership import FROM_TABLE, membership, membership_of, memberships
from workbench.evaluate.min_k import min_k
from workbench.evaluate.roc import auc, found_below


def easier(n, *, seed, by=0.5):
    """Answers as of a model that saw them: every token is likelier."""
    return [[{**t, "logprob": by * t["logprob"]} for t in answer] for answer in random_answers(n, seed=seed)]


def test_by_hand():
    # members 1 2 4, others 3 4 5: of 9 pairs the other is higher in 3 + 3 + 1, equal in 1: 7.5 / 9
    members, others = np.array([1.0, 2, 4]), np.array([3.0, 4, 5])
    assert auc(members[None], others[None])[0] == pytest.approx(7.5 / 9, rel=1e-15)
    assert found_below(members, others, allowed=0.0) == pytest.approx(2 / 3)  # below 3
    assert found_below(members, others, allowed=0.34) == pytest.approx(2 / 3)  # below 4, which the member 4 is not
    assert found_below(members, others, allowed=0.7) == 1.0  # below 5


@pytest.mark.parametrize("seed", range(5))
def test_reference(seed):
    draw = np.random.default_rng(seed)
    members, others = draw.integers(0, 9, size=(6, 7)).astype(float), draw.integers(2, 12, size=(6, 11)).astype(float)
    got = auc(members, others)
    for i in range(6):
        assert got[i] == pytest.approx(slow.auc(members[i].tolist(), others[i].tolist()), rel=1e-12)
        truth = np.repeat([0, 1], [7, 11])
        assert got[i] == pytest.approx(roc_auc_score(truth, np.concatenate([members[i], others[i]])), rel=1e-12)
        for allowed in (0.01, 0.05, 0.2, 0.5):
            want = slow.found_below(members[i].tolist(), others[i].tolist(), allowed)
            assert found_below(members[i], others[i], allowed=allowed) == pytest.approx(want, rel=1e-12)


def test_orientation():
    """A model to which its members are likely has an AUC above 1/2, by every score; of two like sets it is near 1/2."""
    members, others, like = table(easier(80, seed=0)), table(random_answers(80, seed=1)), table(random_answers(80, seed=2))
    for score in ("nll", "min_k"):
        assert membership(members, others, score=score).auc.value > 0.7
        assert membership(others, members, score=score).auc.value < 0.3
        found = membership(like, others, score=score)
        assert found.auc.low < 0.5 < found.auc.high
        assert found.floor == 0.5


def test_two_sets_exchanged_give_one_minus_the_auc_and_order_does_not_matter():
    a, b = np.random.default_rng(0).normal(size=30), np.random.default_rng(1).normal(1, size=20)
    found, turned = membership_of(a, b), membership_of(b, a)
    assert found.auc.value == pytest.approx(1 - turned.auc.value, rel=1e-12)
    assert membership_of(a[::-1], b[::-1]).auc.value == found.auc.value
    assert membership_of(np.exp(a), np.exp(b)).auc.value == found.auc.value  # any monotone map
    assert (found.members, found.others, found.auc.n) == (30, 20, 50)


def test_interval_holds_the_truth_about_as_often_as_it_says():
    """N(0, 1) against N(1, 1): AUC = Phi(1 / sqrt 2) = 0.7602. Of 200 intervals 0.95 hold it, +- 0.03 (2 standard errors)."""
    held = []
    for seed in range(200):
        draw = np.random.default_rng(seed)
        found = membership_of(draw.normal(0, 1, 40), draw.normal(1, 1, 40), seed=seed).auc
        held.append(found.low <= 0.7602 <= found.high)
    assert 0.90 <= np.mean(held) <= 0.98


def test_complete_separation_has_an_interval():
    # 4 pairs that share no row, all in order: Wilson 4 / (4 + 1.96^2) = 0.5101
    found = membership_of(np.arange(4.0), np.arange(10.0, 16.0)).auc
    assert (found.value, found.high, found.n) == (1.0, 1.0, 10)
    assert found.low == pytest.approx(4 / (4 + 1.959964**2), rel=1e-6)
    assert membership_of(np.arange(10.0, 16.0), np.arange(4.0)).auc.value == 0.0


def test_options_reach_the_score():
    members, others = table(easier(30, seed=0)), table(random_answers(30, seed=1))
    got = membership(members, others, score="min_k", options={"k": 0.1, "end": False})
    want = membership_of(min_k(members, k=0.1, end=False), min_k(others, k=0.1, end=False), score="min_k")
    assert got == want
    assert got != membership(members, others)


def test_all_scores_at_once():
    members, others = table(easier(30, seed=0)), table(random_answers(30, seed=1))
    other_model = table(random_answers(30, seed=0)), table(random_answers(30, seed=1))
    found = memberships(members, others)
    assert {row.metric for row in found} == {f"{kind}_{score}" for kind in ("auc", "tpr_01", "tpr_05") for score in FROM_TABLE}
    assert found["auc_min_k", "forget"].value == membership(members, others).auc.value
    assert "30 members, 30 others" in found["auc_nll", "forget"].note
    norms = np.arange(30.0), np.arange(30.0) + 5
    full = memberships(members, others, reference=other_model, gradient_norms=norms, split="rows", options={"min_k": {"k": 0.1}})
    assert len(full) == 18
    # the members were easier for the model than for the other one, the others the same: all members lie below 0, all others at it
    assert full["auc_reference_nll_difference", "rows"].value == 1.0
    assert full["auc_gradient_norm", "rows"].value == pytest.approx(slow.auc(*(n.tolist() for n in norms)), rel=1e-12)


def test_refused():
    given = table(random_answers(3))
    with pytest.raises(UnknownNameError, match="unknown score of membership 'min_kk'. Did you mean 'min_k'"):
        membership(given, given, score="min_kk")
    with pytest.raises(InputError, match="gradient_norm needs the model; give its values of both sets to `membership_of`"):
        membership(given, given, score="gradient_norm")
    with pytest.raises(InputError, match="pass reference=\\(members, others\\)"):
        membership(given, given, score="reference_nll_difference")
    with pytest.raises(UnknownNameError, match="unknown option of min_k 'kk'"):
        membership(given, given, options={"kk": 0.2})
    with pytest.raises(UnknownNameError, match="score of membership with options 'mink'"):
        memberships(given, given, options={"mink": {}})
    with pytest.raises(DataError, match="there are no others"):
        membership_of(np.ones(3), np.ones(0))
    with pytest.raises(DataError, match="1 of 3 members are NaN or infinite"):
        membership_of(np.array([1.0, float("nan"), 2]), np.ones(3))
