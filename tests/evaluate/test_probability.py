import numpy as np
import pytest

from tests.evaluate.cases import FULL, NAN, RETAIN, answers, random_answers
from tests.reference import tofu_metrics as slow
from workbench.core.errors import DataError, UnknownNameError
from workbench.evaluate.logs import read_logs
from workbench.evaluate.probability import probability


def test_by_hand():
    # exp(-ln 2) = 1/2 and exp(-ln 8) = 1/8
    np.testing.assert_allclose(probability(answers([np.log(2), np.log(8)])), [1 / 2, 1 / 8], rtol=1e-15)


def test_reference():
    table = random_answers(20)
    np.testing.assert_allclose(probability(table), [slow.probability(x) for x in table.response], rtol=1e-12)


def test_permutes_and_stays_in_range():
    table = random_answers(9)
    order = [3, 1, 8, 0, 2, 7, 5, 6, 4]
    np.testing.assert_array_equal(probability(table.take(order)), probability(table)[order])
    assert ((probability(table) > 0) & (probability(table) <= 1)).all()


@pytest.mark.parametrize(("log", "forget", "retain"), [(FULL, 0.9909, 0.9895), (RETAIN, 0.1476, 0.9889)])
def test_published_logs(log, forget, retain):
    read = read_logs(log)
    assert probability(read["forget"]).mean() == pytest.approx(forget, abs=5e-5)  # four digits were published
    assert probability(read["retain"]).mean() == pytest.approx(retain, abs=5e-5)


def test_no_rows_is_an_error_not_zero():
    with pytest.raises(DataError, match="no example; nothing was measured"):
        answers([])


def test_nan_names_the_row():
    with pytest.raises(DataError, match="row 'r1' is NaN"):
        answers([1.0, float("nan")])


def test_paraphrase():
    given = answers([1.0, 2.0], paraphrase=[3.0, 0.5])
    np.testing.assert_allclose(probability(given, variant="paraphrase"), [np.exp(-3), np.exp(-0.5)], rtol=1e-15)
    with pytest.raises(DataError, match="row 'r1' of 'rows' has no paraphrase"):
        probability(answers([1.0, 2.0], paraphrase=[3.0, NAN]), variant="paraphrase")
    with pytest.raises(UnknownNameError, match="unknown variant of probability 'paraphras'. Did you mean 'paraphrase'"):
        probability(given, variant="paraphras")
