"""Which training rows did it: blame is an influence, training confirms its sign, and training repeats without the blamed."""

import numpy as np
import pandas as pd
import pytest

from tests.study.planted import (
    FORGET,
    LIES,
    RECIPE,
    RETAIN,
    changed_to,
    dots,
    fine_tuned,
    gradient,
    knows_by_heart,
    moved_a_little,
    nll,
    slow_influences,
)
from tests.tiny import tiny
from workbench.core.delta import Delta, applied
from workbench.core.records import Provenance
from workbench.study import diagnose_counter
from workbench.study.diagnose import diagnose
from workbench.study.diagnose_data import agreement, blame
from workbench.study.diagnose_rows import compare


@pytest.fixture
def model():
    return tiny()


@pytest.fixture
def delta(model):
    return moved_a_little(model)


@pytest.fixture(scope="module")
def taught():
    return knows_by_heart()


@pytest.fixture(autouse=True)
def slow(monkeypatch):
    """Influences by their definition."""
    slow_influences(monkeypatch)


def test_blame_is_minus_the_influence_at_both_ends(model, delta):
    found = blame(model, delta, FORGET, {"learned": RETAIN, "unlearned": FORGET}, method="dots")
    ends = [dots(model, FORGET, rows).values.mean(0) for rows in (RETAIN, FORGET)]
    after = changed_to(model, delta)
    ends_after = [dots(after, FORGET, rows).values.mean(0) for rows in (RETAIN, FORGET)]
    for source, rows, sign, first, last in zip(("learned", "unlearned"), (RETAIN, FORGET), (-1, 1), ends, ends_after, strict=True):
        mine = found[found["source"] == source].set_index("id").loc[rows.ids]
        np.testing.assert_allclose(mine["at_before"], sign * first, rtol=1e-9)
        np.testing.assert_allclose(mine["at_after"], sign * last, rtol=1e-9)
        np.testing.assert_allclose(mine["blame"], sign * (first + last) / 2, rtol=1e-9)
    assert found["blame"].is_monotonic_decreasing
    assert found["asked"].tolist() == (found["source"] == "unlearned").tolist()
    turned = blame(model, delta, FORGET[::-1], {"unlearned": FORGET, "learned": RETAIN[::-1]}, method="dots")
    np.testing.assert_allclose(turned["blame"], found["blame"], rtol=1e-9)
    once = blame(model, delta, FORGET, {"learned": RETAIN}, method="dots", options={"checkpoints": []})
    np.testing.assert_array_equal(once["blame"], once["at_before"])
    assert once["at_after"].isna().all()


def test_training_confirms_the_sign_of_blame(model):
    nothing = Delta({}, Provenance("none", model.fingerprint()))
    query = FORGET[:1]
    start = nll(model, query[0])
    for source, step in (("learned", -1e-4), ("unlearned", 1e-4)):  # down the row's loss, or up
        found = blame(model, nothing, query, {source: RETAIN}, method="dots")
        for _, line in found.iterrows():
            row = next(row for row in RETAIN if row.id == line["id"])
            flat, moved, at = step * gradient(model, row), {}, 0
            for name, p in model.hf.named_parameters():
                moved[name] = flat[at : at + p.numel()].view_as(p).float()
                at += p.numel()
            with applied(model, Delta.of(moved, Provenance("step", model.fingerprint()))):
                rise = nll(model, query[0]) - start
            assert rise == pytest.approx(1e-4 * line["blame"], rel=0.05)  # second order is 1e-4 of curvature


def test_agreement_by_hand():
    frame = pd.DataFrame({"source": "learned", "id": list("abcd"), "blame": [4.0, 3, 2, 1], "text_match": [9.0, 1, 7, 0]})
    found = agreement(frame, 2)
    assert found.common == 1  # {a, b} and {a, c}
    assert found.chance == 1.0
    assert found.spearman == pytest.approx(0.8)  # ranks 4 3 2 1 and 4 2 3 1: 1 - 6 * 2 / (4 * 15)
    assert np.isnan(agreement(frame.assign(text_match=1.0), 2).spearman)


def test_a_recipe_is_replayed_and_repeated_without_rows(taught, monkeypatch):
    model, trained = taught, []
    once = fine_tuned(model, LIES)
    delta = once.scaled(1.5)  # more than the recipe does, so the replay gives back a part
    monkeypatch.setattr(
        diagnose_counter, "_fitted", lambda model, rows, recipe: (trained.append(rows.ids), fine_tuned(model, rows))[1]
    )
    found = diagnose(model, delta, FORGET, train=LIES, recipe=RECIPE, top=1, seeds=(0, 1))
    assert found.replay is not None
    assert trained[0] == LIES.ids
    lines = found.counterfactual[found.counterfactual["about"] == "rows"]
    assert lines["case"].tolist() == ["blamed", "nearest in words", "random", "random"]
    assert lines["n"].tolist() == [1] * 4
    assert lines["names"].iloc[0] == [found.blame["id"].iloc[0]]
    for gone, left in zip(lines["names"], trained[1:], strict=True):
        assert left == [one for one in LIES.ids if one not in gone]
    at = [FORGET.ids.index(one) for one in found.judged]
    replayed = compare(model, once, FORGET).change
    real = compare(model, delta, FORGET).change
    assert found.replay.reproduced.value == pytest.approx(replayed[at].mean() / real[at].mean(), abs=1e-5)  # float32 Deltas
    assert found.replay.reproduced.value < 0.95
    assert found.replay.correlation == pytest.approx(np.corrcoef(replayed, real)[0, 1], abs=1e-5)
    for gone, value in zip(lines["names"], lines["gone"], strict=True):
        kept = LIES.take(i for i, one in enumerate(LIES.ids) if one not in gone)
        left = compare(model, fine_tuned(model, kept), FORGET).change[at].mean()
        assert value == pytest.approx(1 - left / replayed[at].mean(), abs=1e-5)
