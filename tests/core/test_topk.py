"""Exact top-k: against a full sort, with ties, signs, zeros, halves, chunks, several k, and its memory."""

import subprocess
import sys

import pytest
import torch

from tests.reference.numerics import top_k
from workbench.core import topk
from workbench.core.bits import unpack
from workbench.core.errors import InputError, NumericsError
from workbench.core.topk import choose, choose_each, high_histogram, order_key, thresholds


def positions(tensors, packed):
    assert list(packed) == list(tensors)
    return {(name, i) for name, t in tensors.items() for i in unpack(packed[name], (t.numel(),)).nonzero().squeeze(-1).tolist()}


def scores(dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    return {
        "a": torch.randn(17, 5, generator=g).to(dtype),
        "b": torch.cat([torch.zeros(20), -torch.zeros(9), torch.full((11,), 0.25)]).to(dtype),
        "none": torch.zeros(0, 3, dtype=dtype),
        "near": (1 + 1e-6 * torch.randperm(30, generator=g)).to(dtype),  # all in one bin of the high bits
        "c": (torch.randn(3, 4, 5, generator=g) * 1e-30).to(dtype),
    }


@pytest.fixture(params=[topk.CHUNK, 16], ids=["one chunk", "chunks of 16"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(topk, "CHUNK", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [0, 1, 7, 30, 40, 80, 120, 214, 215])
def test_equals_a_full_sort(chunk, dtype, k):
    tensors = scores(dtype)
    assert positions(tensors, choose(tensors, k)) == top_k(tensors, k)


def test_several_k_at_once(chunk):
    tensors = scores()
    ks = [150, 0, 3, 25, 215, 3]  # in any order, some of one bin, one twice
    each = choose_each(tensors, ks)
    assert [positions(tensors, packed) for packed in each] == [top_k(tensors, k) for k in ks]


def test_one_histogram_serves_several_k(monkeypatch):
    tensors = scores()
    high = high_histogram(tensors)
    expected = [choose(tensors, k) for k in (3, 50)]
    monkeypatch.setattr(topk, "high_histogram", None)  # it would fail if it were called again
    for k, packed in zip((3, 50), expected, strict=True):
        again = choose_each(tensors, [k], high=high)[0]
        assert all(torch.equal(again[name], packed[name]) for name in tensors)


def test_all_equal_scores_take_the_first_ones(chunk):
    tensors = {"a": torch.ones(3, 9), "b": torch.ones(40)}
    assert positions(tensors, choose(tensors, 29)) == {("a", i) for i in range(27)} | {("b", 0), ("b", 1)}


def test_transposed_storage_counts_positions_as_the_shape_says():
    tensors = {"a": torch.arange(6.0).view(2, 3).T}  # [[0, 3], [1, 4], [2, 5]]
    assert positions(tensors, choose(tensors, 2)) == {("a", 3), ("a", 5)}


def test_thresholds_by_hand():
    # 5, 4, 4, 4, 1: the third largest is 4, of whose ties the first two are taken; the key of 4.0 is its bits, 0x40800000
    tensors = {"a": torch.tensor([4.0, 1.0, 4.0, 5.0, 4.0])}
    assert thresholds(tensors, [3, 5, 0]) == [(0x40800000, 2), (0x3F800000, 1), (0x7FFFFFFF, 0)]


def test_keys_keep_the_order_of_the_floats():
    values = torch.tensor([-float("inf"), -3.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1.0000001, float("inf")])
    key = order_key(values)
    assert key[3] == key[4]
    assert torch.equal(key.sort().values, key)
    assert len(key.unique()) == len(values) - 1


@pytest.mark.parametrize("k", [216, -1])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(InputError, match=f"k is {k}, but there are 215 scores"):
        choose(scores(), k)


def test_nan_is_refused_and_named(chunk):
    tensors = {"a": torch.ones(3), "b": torch.ones(50)}
    tensors["b"][37] = float("nan")
    with pytest.raises(NumericsError, match="the scores of b hold NaN, first at flat position 37"):
        choose(tensors, 1)


def test_memory_is_the_packed_bits_and_a_constant():
    # 64M scores: the packed bits are 8 MB. A chunk's keys, bins and comparison are about 20 MB; one int64 a score is 512 MB.
    script = """
import resource, torch
from workbench.core.topk import choose
x = {"w": torch.empty(64_000_000).uniform_(generator=torch.Generator().manual_seed(0))}
choose({"w": x["w"][:3_000_000]}, 5)  # what the first call loads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
choose(x, 10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown = int(done.stdout) / 1024
    assert grown < 60, f"peak memory grew by {grown:.0f} MB"
