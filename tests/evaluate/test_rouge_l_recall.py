import json

import numpy as np
import pytest

from tests.evaluate.cases import FULL, GOLDEN, RETAIN, answers
from tests.reference import tofu_metrics as slow
from workbench.core.errors import DataError, InputError
from workbench.evaluate.logs import read_logs
from workbench.evaluate.rouge_l_recall import rouge_l_recall


def read(*pairs):
    return answers([1.0] * len(pairs), truth=[t for t, _ in pairs], generated=[g for _, g in pairs])


def test_by_hand():
    table = read(
        ("the cat sat on the mat", "the cat is on the mat"),  # the cat on the mat: 5 of 6
        ("The cat.", "cat, the"),  # order counts, case and points do not: 1 of 2
        ("he runs", "he is running and running"),  # the stemmer makes run of both: 2 of 2, however long the text
        ("a b c d", ""),  # nothing generated that could be found: a measured 0
    )
    np.testing.assert_allclose(rouge_l_recall(table), [5 / 6, 1 / 2, 1, 0], rtol=1e-15)


def test_reference():
    # words of up to three letters are not stemmed
    draw = np.random.default_rng(0)
    pairs = [
        (" ".join(draw.choice(["a", "bo", "cat", "d"], n)), " ".join(draw.choice(["a", "bo", "cat", "d"], m)))
        for n, m in ((3, 5), (7, 4), (1, 1), (6, 9))
    ]
    np.testing.assert_allclose(rouge_l_recall(read(*pairs)), [slow.rouge_l_recall(*pair) for pair in pairs], rtol=1e-12)


def test_published_texts_give_the_published_recalls():
    rows = json.loads((GOLDEN / "rouge.json").read_text(encoding="utf-8"))
    got = rouge_l_recall(read(*((row["truth"], row["generated"]) for row in rows)))
    np.testing.assert_allclose(got, [row["rougeL_recall"] for row in rows], rtol=1e-12)


def test_published_means():
    assert rouge_l_recall(read_logs(FULL)["forget"]).mean() == pytest.approx(0.9854, abs=5e-5)
    assert rouge_l_recall(read_logs(RETAIN)["forget"]).mean() == pytest.approx(0.4082, abs=5e-5)


def test_with_and_without_the_stemmer():
    # "he runs" against "he is running": 2 of 2 with stems, 1 of 2 without
    table = read(("he runs", "he is running"))
    np.testing.assert_array_equal(rouge_l_recall(table), [1])
    np.testing.assert_array_equal(rouge_l_recall(table, stemmer=False), [1 / 2])
    # a log's recall is stemmed: without, it is computed from the texts, or refused where there are none
    logged = answers([1.0], truth=["he runs"], generated=["he is running"], recall=[0.9])
    assert rouge_l_recall(logged).tolist() == [0.9]
    assert rouge_l_recall(logged, stemmer=False).tolist() == [0.5]
    with pytest.raises(InputError, match="no generated text for row 'r0'"):
        rouge_l_recall(answers([1.0], recall=[0.9]), stemmer=False)


def test_permutes():
    table = read(("a b c", "a c"), ("x y", "y"), ("k", "k"))
    np.testing.assert_array_equal(rouge_l_recall(table.take([2, 0, 1])), rouge_l_recall(table)[[2, 0, 1]])


def test_nothing_generated_is_an_error_not_zero():
    with pytest.raises(InputError, match=r"no generated text for row 'r0'.*generate=200"):
        rouge_l_recall(answers([1.0], truth=["a"]))
    with pytest.raises(InputError, match="no true text for row 'r0'"):
        rouge_l_recall(answers([1.0], generated=["a"]))


def test_a_truth_without_words_is_an_error():
    with pytest.raises(DataError, match=r"row 'r0'.*no word of a-z or 0-9"):
        rouge_l_recall(read(("巴黎。", "Paris")))
