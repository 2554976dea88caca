import numpy as np
import pytest

from tests.evaluate.tables import random_answers, table
from tests.reference import membership as slow
from workbench.core.errors import DataError, InputError
from workbench.evaluate.leak import privleak, privleak_estimate, s_mia
from workbench.evaluate.membership import membership


def test_by_hand():
    # MUSE's AUCs are 0 (memorized) and 1/2 (retrained): (0 - 1/2) / (1/2) = -100 %
    assert privleak(1.0, 0.5) == -100.0
    assert privleak(0.0, 0.5) == 100.0  # members are avoided: MUSE's 1 against 1/2
    assert privleak(0.52, 0.52) == 0.0
    # MUSE News: target -99.81 at a retrained AUC of .4772 in its orientation
    assert privleak(1 - 0.0009, 1 - 0.4772) == pytest.approx(-99.81, abs=0.005)
    # 1 - |0.9 - 0.6| / 0.6 = 1/2; clipped at 0
    assert s_mia(0.9, 0.6) == pytest.approx(0.5, rel=1e-12)
    assert s_mia(1.0, 0.4) == 0.0
    assert s_mia(0.6, 0.6) == 1.0


@pytest.mark.parametrize("auc", [0.0, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("retrained", [0.2, 0.47, 0.6])
def test_reference(auc, retrained):
    assert privleak(auc, retrained) == pytest.approx(slow.privleak(auc, retrained), rel=1e-9, abs=1e-9)
    assert s_mia(auc, retrained) == pytest.approx(slow.s_mia(auc, retrained), rel=1e-12)


def easier(n, *, seed):
    return [[{**t, "logprob": 0.25 * t["logprob"]} for t in answer] for answer in random_answers(n, seed=seed)]


def test_estimate():
    members, others = table(random_answers(40, seed=0)), table(random_answers(50, seed=1))
    known = table(easier(40, seed=0))
    found = privleak_estimate(known, others, members, others)
    want = privleak(membership(known, others).auc.value, membership(members, others).auc.value)
    assert found.value == pytest.approx(want, rel=1e-12)
    assert found.low < found.value < found.high < 0
    assert found.n == 90
    # retrained against itself is 0, and stays so in every resample: rows carry both models' scores
    assert privleak_estimate(members, others, members, others)[:3] == (0, 0, 0)
    # found by id, in whatever order the other model read them
    order = np.random.default_rng(0).permutation(40)
    assert privleak_estimate(known, others, members.take(order), others) == found


def test_refused():
    members, others = table(random_answers(4, seed=0)), table(random_answers(4, seed=1))
    with pytest.raises(DataError, match="privleak: the retrained model's AUC is 1"):
        privleak(0.5, 1.0)
    with pytest.raises(DataError, match="s_mia: the retrained model's AUC is 0"):
        s_mia(0.5, 0.0)
    with pytest.raises(InputError, match="privleak: auc is 52.0, expected an AUC from 0 to 1"):
        privleak(52.0, 0.5)
    with pytest.raises(DataError, match="1 ids are missing there"):
        privleak_estimate(members, others, members.take([0, 1, 2]), others)
