from zlib import compress

import numpy as np
import pytest

from tests.evaluate.cases import answers
from tests.evaluate.tables import random_answers, table
from tests.reference import memorization as slow
from workbench.core.errors import DataError
from workbench.evaluate.zlib_ratio import zlib_ratio


def test_by_hand():
    # "a" compresses to 9 bytes: 2 of header, 3 of data, 4 of check sum; NLL 1.5 and 3
    assert len(compress(b"a")) == 9
    np.testing.assert_allclose(zlib_ratio(answers([1.5, 3.0], truth=["a", "a"])), [1.5 / 9, 3 / 9], rtol=1e-15)


def test_reference():
    every, texts = random_answers(30), [f"answer number {i}, with an é" for i in range(30)]
    want = [slow.zlib_ratio(a, t) for a, t in zip(every, texts, strict=True)]
    np.testing.assert_allclose(zlib_ratio(table(every, truth=texts)), want, rtol=1e-12)


def test_easy_text_counts_as_less_of_a_member():
    """As probable as the other, but anybody can guess a repetition."""
    easy, hard = "na " * 30, "Jx quivers; 83 zebras vow to dig my plucky foghorn by 7:42."
    one, two = zlib_ratio(answers([1.0, 1.0], truth=[easy, hard]))
    assert one > two


def test_needs_the_text():
    with pytest.raises(DataError, match="zlib_ratio: 'rows' has no true text for row 'r0'"):
        zlib_ratio(answers([1.0]))
