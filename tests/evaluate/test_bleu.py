from math import exp

import numpy as np
import pytest

from tests.evaluate.cases import answers
from tests.reference import concepts as slow
from workbench.core.errors import DataError, InputError
from workbench.evaluate.bleu import bleu, bleu_of


def test_by_hand():
    # all 4, 3, 2 and 1 n-grams of "a b c d" are in the reference; brevity exp(1 - 6/4)
    assert bleu_of(reference="a b c d e f", hypothesis="a b c d") == pytest.approx(exp(-0.5), rel=1e-12)
    # the other way round: p_n = 4/6, 3/5, 2/4, 1/3, nothing is too short: (24/360)^(1/4)
    assert bleu_of(reference="a b c d", hypothesis="a b c d e f") == pytest.approx((1 / 15) ** 0.25, rel=1e-12)
    # p_1 = 2/4 (b is counted once), p_2 = 1/3, then 1/(2 * 2) and 1/(4 * 1)
    assert bleu_of(reference="a b", hypothesis="a b b c") == pytest.approx((1 / 2 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25, rel=1e-12)


@pytest.mark.parametrize("text", ["yes", "no way", "a b c", "Paris is a city, I think."])
def test_a_text_against_itself_is_one(text):
    """Also where it has fewer than four words: nltk's default would give 0.59 for two."""
    assert bleu_of(reference=text, hypothesis=text) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(("reference", "hypothesis"), [("a b", ""), ("", "a"), ("a b c", "x y"), ("a", "A")])
def test_nothing_in_common_is_zero(reference, hypothesis):
    assert bleu_of(reference=reference, hypothesis=hypothesis) == 0.0


def test_reference():
    draw = np.random.default_rng(0)
    for n, m in ((1, 1), (2, 5), (3, 2), (7, 4), (9, 12), (20, 18)):
        said, made = (" ".join(draw.choice(["a", "b", "c"], size)) for size in (n, m))
        # rtol: the same logarithms, summed in another order
        assert bleu_of(reference=said, hypothesis=made) == pytest.approx(slow.bleu(said, made), rel=1e-12)


def read(truth, generated, ids=None):
    return answers([1.0] * len(truth), truth=truth, generated=generated, ids=ids)


def test_against_the_truth_or_what_another_model_said():
    mine = read(["a b c d", "x y"], ["a b c d e f", "z"], ids=["p", "q"])
    np.testing.assert_allclose(bleu(mine), [(1 / 15) ** 0.25, 0], rtol=1e-12)
    other = read(["x y", "a b c d"], ["z", "a b c d e f"], ids=["q", "p"])  # found by id
    np.testing.assert_allclose(bleu(mine, other), [1, 1], rtol=1e-12)


def test_permutes():
    table = read(["a b", "a", "c d e"], ["a", "a b", "c d"])
    np.testing.assert_array_equal(bleu(table.take([2, 0, 1])), bleu(table)[[2, 0, 1]])


def test_refused():
    with pytest.raises(InputError, match="bleu: 'rows' has no text for row 'r0'. Read the set with generate=200"):
        bleu(read(["a"], None))
    with pytest.raises(DataError, match="row 'r0': the text to compare with has no word"):
        bleu(read(["a"], ["b"]), read(["a"], [" "]))
    with pytest.raises(InputError, match="the reference of rows"):
        bleu(read(["a"], ["b"]), read(["a"], None))
