import numpy as np
import pytest

from tests.evaluate.cases import answers
from tests.reference import concepts as slow
from workbench.evaluate.rouge_l_f import rouge_l_f, rouge_l_f_of


def test_by_hand():
    # "the cat on the mat" of 6 and 7 words: 2 * 5 / 13
    said, made = "the cat sat on the mat", "The cat is on the mat now."
    assert rouge_l_f_of(reference=said, hypothesis=made) == pytest.approx(10 / 13, rel=1e-12)
    assert rouge_l_f_of(reference="he runs", hypothesis="he is running") == pytest.approx(
        4 / 5, rel=1e-12
    )  # runs = running: 2 of 2 and 3


def test_reference():
    draw = np.random.default_rng(1)  # words of up to three letters are not stemmed
    for n, m in ((1, 3), (4, 4), (9, 5)):
        said, made = draw.choice(["a", "bo", "cat"], n), draw.choice(["a", "bo", "cat"], m)
        expected = slow.rouge_l_f(list(said), list(made))
        assert rouge_l_f_of(reference=" ".join(said), hypothesis=" ".join(made)) == pytest.approx(expected, rel=1e-12)


def test_equal_texts_are_one_in_any_script_and_silence_is_zero():
    assert rouge_l_f_of(reference="巴黎。", hypothesis="巴黎。") == 1.0
    assert rouge_l_f_of(reference="巴黎。", hypothesis="Paris") == 0.0
    assert rouge_l_f_of(reference="a b", hypothesis="") == 0.0


def test_without_the_stemmer():
    # "he runs" and "he is running" share "he": 2 * 1 / 5; of a table, as MUSE's code
    assert rouge_l_f_of(reference="he runs", hypothesis="he is running", stemmer=False) == pytest.approx(2 / 5, rel=1e-12)
    table = answers([1.0], truth=["he runs"], generated=["he is running"])
    np.testing.assert_allclose(rouge_l_f(table, stemmer=False), [2 / 5], rtol=1e-12)
    np.testing.assert_allclose(rouge_l_f(table), [4 / 5], rtol=1e-12)


def test_of_a_table():
    table = answers([1.0, 1.0], truth=["a b", "c"], generated=["a", "c"])
    np.testing.assert_allclose(rouge_l_f(table), [2 / 3, 1], rtol=1e-12)
    np.testing.assert_array_equal(rouge_l_f(table, table), [1, 1])
