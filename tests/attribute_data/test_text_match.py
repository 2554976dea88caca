"""BM25 against a loop over words, by hand, and random numbers that belong to a pair."""

import math

import numpy as np
import pytest
import torch

from tests.attribute_data.plain import examples
from tests.reference import influence as slow
from tests.tiny import tiny, tiny_sets
from workbench.attribute.data import random, text_match
from workbench.attribute.data.text_match import words
from workbench.core.errors import InputError


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_against_a_loop(k1, b):
    query, train = tiny_sets()
    found = text_match(tiny(), query, train, k1=k1, b=b).values
    documents = [words(row) for row in train]
    expected = [slow.bm25(words(row), documents, k1=k1, b=b) for row in query]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_by_hand():
    """Rows "sky blue" and "sky sky sky green"; lengths 2 and 4, mean 3; query "Blue, sky".

    idf(blue) = ln(1 + (2 - 1 + 0.5) / 1.5) = ln 2, idf(sky) = ln(1 + 0.5 / 2.5) = ln 1.2.
    Row 0: L/mean = 2/3, discount 1 (0.5 + 0.5 * 2/3) = 5/6: both words tf 1: 2 / (11/6) = 12/11.
    Row 1: discount 0.5 + 0.5 * 4/3 = 7/6: sky tf 3: 6 / (25/6) = 36/25.
    """
    query, train = examples("query", ("Blue,", "sky")), examples("train", ("sky", "blue"), ("sky sky", "sky green"))
    found = text_match(tiny(), query, train, k1=1.0, b=0.5).values
    assert found[0].tolist() == pytest.approx([12 / 11 * (math.log(2) + math.log(1.2)), 36 / 25 * math.log(1.2)], rel=1e-12)


def test_no_word_in_common_is_zero_and_case_does_not_matter():
    query, train = examples("query", ("SKY", "?!")), examples("train", ("sky", "blue"), ("grass", "green"), ("...", "--"))
    found = text_match(tiny(), query, train).values[0]
    assert found[0] > 0
    assert found[1:].tolist() == [0.0, 0.0]


def test_words_twice_in_the_query_count_twice():
    train = examples("train", ("sky", "blue"), ("grass", "green"))
    once, twice = (text_match(tiny(), examples("query", ("sky", r)), train).values for r in ("no", "sky no"))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-12)


def test_random_numbers_belong_to_a_pair_and_a_seed():
    model, (query, train) = tiny(), tiny_sets()
    found = random(model, query, train, seed=3)
    assert np.array_equal(found.values, random(model, query, train, seed=3).values)
    assert not np.array_equal(found.values, random(model, query, train).values)
    many = random(model, query, examples("train", *[("sky", "blue")] * 4000)).values
    # of 12,000 uniform numbers: mean 1/2 with standard error 0.0026, standard deviation 12^-1/2
    assert abs(many.mean() - 0.5) < 0.012
    assert abs(many.std() - 12**-0.5) < 0.01
    assert abs(np.corrcoef(many[0], many[1])[0, 1]) < 0.07  # standard error 0.016


def test_what_is_refused():
    model, (query, train) = tiny(torch.float32), tiny_sets()
    with pytest.raises(InputError, match="k1 is -1"):
        text_match(model, query, train, k1=-1.0)
    with pytest.raises(InputError, match="b is 2"):
        text_match(model, query, train, b=2.0)
