"""Exact top-k: against a full sort, with ties, signs, zeros and halves."""

import pytest
import torch

from tests.reference.numerics import top_k
from workbench.core.errors import InputError, NumericsError
from workbench.core.topk import choose, high_histogram, order_key


def chosen(tensors, k, **options):
    found = dict(choose(tensors, k, **options))
    return {(name, i) for name, bits in found.items() for i in bits.flatten().nonzero().squeeze(-1).tolist()}


def scores(dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    return {
        "a": torch.randn(17, 5, generator=g).to(dtype),
        "b": torch.cat([torch.zeros(20), -torch.zeros(9), torch.full((11,), 0.25)]).to(dtype),
        "c": (torch.randn(3, 4, 5, generator=g) * 1e-30).to(dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 7, 40, 80, 120, 184, 185])
def test_equals_a_full_sort(dtype, k):
    tensors = scores(dtype)
    assert chosen(tensors, k) == top_k(tensors, k)


def test_all_equal_scores_take_the_first_ones():
    tensors = {"a": torch.ones(3), "b": torch.ones(4)}
    assert chosen(tensors, 5) == {("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)}


def test_keys_keep_the_order_of_the_floats():
    values = torch.tensor([-float("inf"), -3.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1.0000001, float("inf")])
    key = order_key(values)
    assert key[3] == key[4]
    assert torch.equal(key.sort().values, key)
    assert len(key.unique()) == len(values) - 1


def test_one_histogram_serves_several_k():
    tensors = scores()
    high = high_histogram(tensors.values())
    assert [chosen(tensors, k, high=high) == chosen(tensors, k) for k in (3, 50, 150)] == [True] * 3


def test_zero_is_nothing():
    assert chosen(scores(), 0) == set()


def test_too_many_are_refused():
    with pytest.raises(InputError, match="k is 186, but there are 185 scores"):
        chosen(scores(), 186)


def test_nan_is_refused():
    with pytest.raises(NumericsError, match="NaN"):
        chosen({"a": torch.tensor([1.0, float("nan")])}, 1)
