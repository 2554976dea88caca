"""What every metric over answer tokens promises, tried on all of them; their numbers stand in a file each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.cases import answers
from tests.evaluate.tables import END, VALUES, random_answers, shuffled, table, tokens
from workbench.core.errors import DataError, InputError, UnknownNameError
from workbench.evaluate.exact_memorization import exact_memorization
from workbench.evaluate.extraction_strength import extraction_strength
from workbench.evaluate.min_k import min_k
from workbench.evaluate.min_k_plus_plus import min_k_plus_plus
from workbench.evaluate.nll import nll
from workbench.evaluate.perplexity import perplexity
from workbench.evaluate.reference_nll_difference import reference_nll_difference
from workbench.evaluate.spans import spans
from workbench.evaluate.table import NO_END
from workbench.evaluate.zlib_ratio import zlib_ratio

TOKENS_ONLY = (exact_memorization, extraction_strength, min_k, min_k_plus_plus)
EACH = (*TOKENS_ONLY, nll, zlib_ratio)
RANGE = {exact_memorization: (0, 1), extraction_strength: (0, 1), min_k_plus_plus: (-np.inf, np.inf)}


@pytest.fixture(scope="module")
def made():
    return table(random_answers(40), paraphrases=random_answers(40, seed=1))


@pytest.mark.parametrize("metric", EACH, ids=lambda f: f.__name__)
def test_permutes_stays_in_range_and_does_not_see_the_order_of_lines(metric, made):
    values = metric(made)
    low, high = RANGE.get(metric, (0, np.inf))
    assert values.shape == (40,)
    assert ((values >= low) & (values <= high)).all()
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(metric(made.take(order)), values[order])
    np.testing.assert_array_equal(metric(shuffled(made)), values)
    np.testing.assert_array_equal(metric(made.take([5])), values[[5]])  # the other rows do not matter


@pytest.mark.parametrize("metric", EACH, ids=lambda f: f.__name__)
def test_without_the_end_is_the_table_without_that_token(metric, made):
    bare = table([answer[:-1] for answer in random_answers(40)])
    np.testing.assert_array_equal(metric(made, end=False), metric(bare))
    np.testing.assert_array_equal(metric(bare, end=False), metric(bare))  # the last token is not the end-of-text token: it stays
    assert (metric(made, end=False) != metric(made)).any()


@pytest.mark.parametrize("metric", [*TOKENS_ONLY, nll], ids=lambda f: f.__name__)
def test_another_variant_is_the_table_of_that_variant(metric, made):
    np.testing.assert_array_equal(metric(made, variant="paraphrase"), metric(table(random_answers(40, seed=1))))


@pytest.mark.parametrize("metric", [*EACH, perplexity], ids=lambda f: f.__name__)
def test_refused(metric, made):
    with pytest.raises(InputError, match=f"{metric.__name__}: end=False .* does not say which it is"):
        metric(replace(made, end=None), end=False)
    with pytest.raises(DataError, match=f"{metric.__name__}: .*'rows' holds the end-of-text token alone, first 'r1'"):
        metric(table([tokens([1, 1]), tokens([1])]), end=False)
    none = {name: getattr(made, name)[:0] for name in ("row", "variant", "position", *VALUES)}
    empty = replace(made, ids=(), truth=(), generated=(), **none)
    with pytest.raises(DataError, match="nothing was measured"):
        metric(empty)
    if metric is not zlib_ratio:
        with pytest.raises(UnknownNameError, match="unknown variant 'paraphrases'. Did you mean 'paraphrase'"):
            metric(made, variant="paraphrases")
        with pytest.raises(DataError, match="the paraphrase of 1 of 2 rows of 'rows' has no such answer, first 'r1'"):
            metric(table([tokens([1])] * 2, paraphrases=[tokens([1]), None]), variant="paraphrase")


@pytest.mark.parametrize("metric", [*TOKENS_ONLY, perplexity], ids=lambda f: f.__name__)
def test_a_log_has_no_tokens(metric):
    with pytest.raises(InputError, match=f"{metric.__name__}: needs the token table of 'rows', but got Answers"):
        metric(answers([1.0]))


def test_a_tokenizer_without_an_end_leaves_nothing_out():
    given = table([tokens([1, 0, 1])], end=NO_END)
    np.testing.assert_array_equal(spans("x", given, end=False).length, [3])


def test_the_end_inside_an_answer_stays():
    # only the last token is the closing one; the same id before it is a token of the answer
    given = table([[{"token": END}, {"token": 1}, {"token": END}]])
    np.testing.assert_array_equal(spans("x", given, end=False).length, [2])


def test_lowest_counts_at_least_one_and_is_not_fooled_by_floating_point():
    # 0.29 * 100 is 28.999999999999996 in float64: 29 values of 1 to 29, mean 15
    given = table([[{"token": 1}] * 100, [{"token": 1}] * 3])
    values = np.concatenate([np.arange(100, 0, -1), [5.0, 4.0, 6.0]])
    np.testing.assert_array_equal(spans("x", given).lowest(values, 0.29), [15, 4])


def test_every_member_has_a_test_file():
    from workbench.core.registry import metric

    here = Path(__file__).parent
    mine = {m.function.__module__.rsplit(".", 1)[1] for m in metric if m.function in (*EACH, reference_nll_difference, perplexity)}
    assert len(mine) == 8
    for module in mine:
        assert (here / f"test_{module}.py").exists(), module
