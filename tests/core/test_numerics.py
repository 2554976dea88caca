"""The label shift, the reductions and their errors."""

import math

import numpy as np
import pytest
import torch

from tests.reference import numerics as truth
from workbench.core.errors import NumericsError, ShapeError
from workbench.core.numerics import (
    Forward,
    answer_forward,
    answer_logits,
    answer_logprobs,
    isolated_rng,
    mean_nll,
    permutation,
    sequence_logprob,
    token_mean,
)


def case(dtype=torch.float64):
    logits = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    tokens = torch.tensor([[1, 2, 3, 4, 0, 1], [0, 0, 2, 2, 1, 4], [4, 3, 2, 1, 0, 0]])
    answer = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    return logits, tokens, answer


def test_answer_logprobs_by_hand():
    # one row, vocabulary of two; position 1 is the answer and is predicted by the logits at position 0: (ln 3, ln 1)
    logits = torch.tensor([[[math.log(3), 0.0], [9.0, -9.0]]], dtype=torch.float64)
    found = answer_logprobs(logits, torch.tensor([[1, 0]]), torch.tensor([[False, True]]))
    assert found[0].tolist() == pytest.approx([0.0, math.log(3 / 4)])


def test_answer_logprobs_equal_a_loop():
    logits, tokens, answer = case()
    expected = truth.answer_logprobs(logits.numpy(), tokens.numpy(), answer.numpy())
    np.testing.assert_allclose(answer_logprobs(logits, tokens, answer).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    logits, tokens, answer = case(dtype)
    expected = truth.answer_logprobs(logits.double().numpy(), tokens.numpy(), answer.numpy())
    found = answer_logprobs(logits, tokens, answer)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)  # float32's own precision


def test_uniform_model_gives_one_over_vocabulary():
    _, tokens, answer = case()
    found = answer_logprobs(torch.zeros(3, 6, 5), tokens, answer)
    assert torch.allclose(found[answer], torch.tensor(-math.log(5)))


def test_reductions_by_hand():
    logprob = torch.tensor([[0.0, -1.0, -2.0, -3.0], [0.0, 0.0, -4.0, 0.0]])
    passed = Forward(logprob, torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0]], dtype=torch.bool))
    assert sequence_logprob(passed).tolist() == [-6.0, -4.0]
    # (1 + 2 + 3) / 3 and 4 / 1; the mean over all tokens of the batch would be 10 / 4
    assert mean_nll(passed).tolist() == [2.0, 4.0]


def test_a_pass_keeps_its_logits_if_asked():
    logits, tokens, answer = case()
    assert answer_forward(logits, tokens, answer)[2:] == (None, None)
    passed = answer_forward(logits, tokens, answer, keep_logits=True)
    assert torch.equal(passed.logits, answer_logits(logits, answer))
    assert passed.target.tolist() == [3, 4, 0, 0, 2, 0]
    torch.testing.assert_close(passed.logits.log_softmax(-1)[range(6), passed.target], passed.logprob[answer], rtol=1e-12, atol=0)
    last = passed.part(1, 3)
    assert torch.equal(last.logits, passed.logits[3:])
    assert last.target.tolist() == [0, 2, 0]
    assert Forward(passed.logprob, passed.mask).part(0, 2).logits is None


def test_token_means_by_hand():
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0]], dtype=torch.bool)
    assert token_mean(torch.tensor([1.0, 2.0, 6.0, 5.0]), mask).tolist() == [3.0, 5.0]
    with pytest.raises(ShapeError, match="row 1 of the batch has no answer token"):
        token_mean(torch.tensor([1.0]), torch.tensor([[True], [False]]))


def test_answer_at_position_zero_is_refused():
    logits, _, answer = case()
    answer[1, 0] = True
    with pytest.raises(ShapeError, match="starts at position 0"):
        answer_logits(logits, answer)


def test_no_answer_is_refused():
    with pytest.raises(ShapeError, match="row 1 of the batch has no answer"):
        mean_nll(Forward(torch.zeros(2, 3), torch.tensor([[0, 1, 0], [0, 0, 0]], dtype=torch.bool)))


def test_nan_names_the_row():
    logits, tokens, answer = case()
    logits[2, 4] = float("nan")
    with pytest.raises(NumericsError, match="row 2"):
        answer_logprobs(logits, tokens, answer)


def test_permutation_is_fixed_by_the_seed():
    assert permutation(6, 3) == permutation(6, 3)
    assert sorted(permutation(6, 3)) == list(range(6))
    assert permutation(6, 3) != permutation(6, 4)


def test_isolated_rng_leaves_the_global_generator():
    torch.manual_seed(5)
    first = torch.rand(2)
    torch.manual_seed(5)
    with isolated_rng(0):
        torch.rand(7)
    assert torch.equal(torch.rand(2), first)
