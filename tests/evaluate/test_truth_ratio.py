import numpy as np
import pytest

from tests.evaluate.cases import FULL, NAN, RETAIN, answers, random_answers
from tests.reference import tofu_metrics as slow
from workbench.core.errors import DataError, InputError
from workbench.evaluate.logs import read_logs
from workbench.evaluate.truth_ratio import (
    score,
    truth_ratio_arithmetic,
    truth_ratio_geometric,
    truth_ratio_score_arithmetic,
    truth_ratio_score_geometric,
)

LN2, LN8 = np.log(2), np.log(8)
BOTH = [(truth_ratio_geometric, "geometric"), (truth_ratio_arithmetic, "arithmetic")]


def test_by_hand():
    # true 1/2, false 1/2 and 1/8: geometric sqrt(1/16) / (1/2) = 1/2; arithmetic (5/16) / (1/2) = 5/8
    table = answers([9.0], paraphrase=[LN2], perturbed=[[LN2, LN8]])
    np.testing.assert_allclose(truth_ratio_geometric(table), [1 / 2], rtol=1e-12)
    np.testing.assert_allclose(truth_ratio_arithmetic(table), [5 / 8], rtol=1e-12)
    # against the response, 1/8: four times as much
    table = answers([LN8], paraphrase=[LN2], perturbed=[[LN2, LN8]])
    np.testing.assert_allclose(truth_ratio_geometric(table, truth="response"), [2], rtol=1e-12)
    np.testing.assert_allclose(truth_ratio_arithmetic(table, truth="response"), [5 / 2], rtol=1e-12)


def test_scores_by_hand():
    ratio = np.array([1 / 4, 1.0, 4.0])
    np.testing.assert_allclose(score(ratio, forget=False), [3 / 4, 0, 0], atol=1e-15)
    np.testing.assert_allclose(score(ratio, forget=True), [1 / 4, 1, 1 / 4], rtol=1e-12)
    assert score(np.array([0.0]), forget=True)[0] == pytest.approx(0.0, abs=1e-300)
    assert score(np.array([0.0]), forget=False)[0] == 1.0


@pytest.mark.parametrize(("metric", "aggregate"), BOTH)
def test_reference(metric, aggregate):
    table = random_answers(20, options=5)
    want = [slow.truth_ratio(p, list(f), aggregate=aggregate) for p, f in zip(table.paraphrase, table.perturbed, strict=True)]
    np.testing.assert_allclose(metric(table), want, rtol=1e-12)


@pytest.mark.parametrize("forget", [True, False])
@pytest.mark.parametrize(
    ("metric", "aggregate"),
    [(truth_ratio_score_geometric, "geometric"), (truth_ratio_score_arithmetic, "arithmetic")],
)
def test_score_reference(metric, aggregate, forget):
    table = random_answers(20)
    ratios = [slow.truth_ratio(p, list(f), aggregate=aggregate) for p, f in zip(table.paraphrase, table.perturbed, strict=True)]
    want = [slow.truth_ratio_score(r, forget=forget) for r in ratios]
    np.testing.assert_allclose(metric(table, forget=forget), want, rtol=1e-12, atol=1e-15)
    assert ((metric(table, forget=forget) >= 0) & (metric(table, forget=forget) <= 1)).all()


def test_ragged_rows_average_their_own_false_answers():
    table = answers([1.0, 1.0], paraphrase=[LN2, LN2], perturbed=[[LN2, NAN], [LN2, LN8]])
    np.testing.assert_allclose(truth_ratio_geometric(table), [1, 1 / 2], rtol=1e-12)
    np.testing.assert_allclose(truth_ratio_arithmetic(table), [1, 5 / 8], rtol=1e-12)


@pytest.mark.parametrize(("metric", "aggregate"), BOTH)
def test_permutes(metric, aggregate):
    table = random_answers(6)
    np.testing.assert_array_equal(metric(table.take([5, 3, 1, 0, 2, 4])), metric(table)[[5, 3, 1, 0, 2, 4]])


def test_published_scores():
    full, retain = read_logs(FULL)["forget"], read_logs(RETAIN)["forget"]
    # tolerance: four digits were published
    assert truth_ratio_score_geometric(full, forget=True).mean() == pytest.approx(0.5160, abs=5e-5)
    assert truth_ratio_score_arithmetic(full, forget=True).mean() == pytest.approx(0.5304, abs=5e-5)
    assert truth_ratio_score_geometric(retain, forget=True).mean() == pytest.approx(0.6740, abs=5e-5)
    assert truth_ratio_score_arithmetic(retain, forget=True).mean() == pytest.approx(0.6797, abs=5e-5)


def test_missing_paraphrase_or_false_answers():
    with pytest.raises(DataError, match=r"1 of 2 rows of 'rows' have no paraphrase, first 'r1'.*truth='response'"):
        truth_ratio_geometric(answers([1.0, 1.0], paraphrase=[1.0, NAN], perturbed=[[1.0], [1.0]]))
    with pytest.raises(DataError, match="no perturbed answer"):
        truth_ratio_arithmetic(answers([1.0], paraphrase=[1.0]))


def test_unknown_truth():
    with pytest.raises(InputError, match="truth is 'answer', expected"):
        truth_ratio_geometric(random_answers(2), truth="answer")
