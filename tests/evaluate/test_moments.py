import numpy as np
import pytest
import torch

import workbench.evaluate.moments as moments
from workbench.evaluate.moments import Columns

LN2 = float(np.log(2))


def write(logits, target, row=None):
    columns = Columns(len(target), torch.device("cpu"))
    every = torch.arange(len(target))
    columns.write(every, logits, every if row is None else torch.tensor(row), torch.tensor(target))
    return columns.numpy()


def test_by_hand():
    # p = (1/2, 1/4, 1/4), logits shifted by 3. mean = 1/2 ln 1/2 + 1/2 ln 1/4 = -3/2 ln 2.
    # deviations from it: +1/2 ln 2 and -1/2 ln 2, so variance = (ln 2)^2 / 4
    logits = torch.tensor([[1 / 2, 1 / 4, 1 / 4]]).log() + 3
    got = write(logits, [0, 1, 2], row=[0, 0, 0])
    np.testing.assert_allclose(got["logprob"], [-LN2, -2 * LN2, -2 * LN2], rtol=1e-6)  # float32
    np.testing.assert_array_equal(got["top"], [0, 0, 0])
    np.testing.assert_array_equal(got["rank"], [0, 1, 1])  # an equal token is not more likely
    np.testing.assert_allclose(got["mean"], [-1.5 * LN2] * 3, rtol=1e-6)
    np.testing.assert_allclose(got["variance"], [LN2**2 / 4] * 3, rtol=1e-6)


def test_a_vocabulary_entry_of_probability_zero():
    # -inf logits (a padded vocabulary): the moments are those of the other two, p = (1/2, 1/2)
    got = write(torch.tensor([[0.0, 0.0, float("-inf")]]), [1])
    np.testing.assert_allclose([got["mean"][0], got["variance"][0]], [-LN2, 0], atol=1e-7)


def test_a_nearly_uniform_model_keeps_its_variance():
    # logits +-1e-3 on 1,000 tokens: mean -6.9, variance 1e-6. E[x^2] - mean^2 would lose it: float32 resolves 48 to 4e-6
    logits = torch.full((1, 1000), 1e-3)
    logits[:, ::2] *= -1
    got = write(logits, [0])
    np.testing.assert_allclose(got["variance"], 1e-6, rtol=1e-3)  # ln p of about 7 is itself rounded to 5e-7


@pytest.mark.parametrize("chunk", [1, 20, 10_000])
def test_chunks_do_not_matter(chunk, monkeypatch):
    logits = torch.randn(7, 10, generator=torch.Generator().manual_seed(0)) * 4
    target, row = [3, 1, 4, 1, 5, 9, 2, 6], [0, 1, 2, 3, 4, 5, 6, 0]
    whole = write(logits, target, row)
    monkeypatch.setitem(moments.CHUNK, "cpu", chunk)
    for name, value in write(logits, target, row).items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_half_precision_is_widened_before_the_softmax():
    # in bfloat16 (8 bits) the log-softmax itself would be off by about 1e-2
    logits = (torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 5).bfloat16()
    target = [0, 10, 20, 30, 40]
    want = logits.double().log_softmax(-1)[range(5), target]
    np.testing.assert_allclose(write(logits, target)["logprob"], want.numpy(), rtol=1e-5)
