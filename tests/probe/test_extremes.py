import numpy as np
import pytest
import torch

from tests.reference import concepts as slow
from workbench.core.errors import InputError, NumericsError, ShapeError
from workbench.probe import extremes as module
from workbench.probe.extremes import extremes


def draw(n, m, d, *, seed=0, integers=False):
    source = torch.Generator().manual_seed(seed)
    make = (
        (lambda *s: torch.randint(-2, 3, s, generator=source).float()) if integers else lambda *s: torch.randn(*s, generator=source)
    )
    return make(n, d), make(m, d)


def by_sort(rows, columns, k):
    product = rows.float() @ columns.float().T + 0.0
    top, bottom = (product.sort(dim=1, descending=down, stable=True) for down in (True, False))
    return top.indices[:, :k], top.values[:, :k], bottom.indices[:, :k], bottom.values[:, :k]


@pytest.mark.parametrize(("m", "k"), [(1, 1), (5, 5), (31, 3), (64, 20), (1000, 7), (1000, 1), (97, 97)])
@pytest.mark.parametrize("tile", [(1024, 4096), (3, 64), (2, 32)])
def test_small_integers_full_of_ties_against_the_loop(m, k, tile, monkeypatch):
    """Exact in float32, so that ids, ties and values must all agree: ragged last blocks, several tiles, one column."""
    monkeypatch.setitem(module.TILE, "cpu", tile)
    rows, columns = draw(7, m, 3, integers=True)
    found = extremes(rows, columns, k=k)
    for i, (top, bottom) in enumerate(slow.extremes(rows.numpy(), columns.numpy(), k)):
        assert found.top_ids[i].tolist() == [j for j, _ in top]
        assert found.top[i].tolist() == [x for _, x in top]
        assert found.bottom_ids[i].tolist() == [j for j, _ in bottom]
        assert found.bottom[i].tolist() == [x for _, x in bottom]


@pytest.mark.parametrize("tile", [(1024, 4096), (100, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_real_numbers_against_a_stable_sort(tile, dtype, monkeypatch):
    monkeypatch.setitem(module.TILE, "cpu", tile)
    rows, columns = (x.to(dtype) for x in draw(130, 1500, 16))
    ids, values, low_ids, low_values = by_sort(rows, columns, 20)
    found = extremes(rows, columns, k=20)
    # another tiling may round a product's last bit otherwise, so that neighbors change places: values, and ids where clear
    torch.testing.assert_close(found.top, values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.bottom, low_values, rtol=1e-5, atol=1e-6)
    for got, expected, sorted_values in ((found.top_ids, ids, values), (found.bottom_ids, low_ids, low_values)):
        gaps = sorted_values.diff(dim=1).abs()
        clear = (torch.nn.functional.pad(gaps, (1, 0), value=1.0) > 1e-4) & (
            torch.nn.functional.pad(gaps, (0, 1), value=0.0) > 1e-4
        )
        assert clear.float().mean() > 0.9
        assert torch.equal(got[clear].long(), expected[clear])


def test_half_precision_is_multiplied_in_float32():
    rows, columns = (x.bfloat16() for x in draw(3, 200, 64))
    exact = rows.double() @ columns.double().T
    # rtol: float32 rounding; a bfloat16 product would be off by 1e-2
    torch.testing.assert_close(extremes(rows, columns, k=4).top.double(), exact.topk(4).values, rtol=1e-5, atol=1e-5)


def test_rows_that_tie_everywhere():
    """A zero vector: all products are 0, and -0 is no smaller."""
    rows = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    columns = torch.tensor([[-1.0, 2.0]]).expand(300, -1).clone()
    columns[::2] *= -1
    found = extremes(rows, columns, k=3)
    assert found.top_ids.tolist() == [[0, 1, 2], [0, 2, 4]]
    assert found.bottom_ids.tolist() == [[0, 1, 2], [1, 3, 5]]
    assert found.top[0].tolist() == found.bottom[0].tolist() == [0.0, 0.0, 0.0]
    assert not np.signbit(found.bottom.numpy()[0]).any()


def test_zeros_of_either_sign_tie():
    keys = module._keys(torch.tensor([0.0, -0.0, -0.0]), torch.tensor([2, 0, 1]))
    assert keys.argsort().tolist() == [1, 2, 0]
    assert (keys >> 32).unique().numel() == 1


def test_permuting_columns_permutes_ids():
    rows, columns = draw(6, 333, 9)
    order = torch.randperm(333, generator=torch.Generator().manual_seed(3))
    one, other = extremes(rows, columns, k=11), extremes(rows, columns[order], k=11)
    assert torch.equal(order[other.top_ids.long()].int(), one.top_ids)
    torch.testing.assert_close(other.bottom, one.bottom, rtol=1e-6, atol=1e-6)


def test_refused():
    rows, columns = draw(2, 10, 4)
    for k in (0, 11):
        with pytest.raises(InputError, match=f"k is {k}, expected 1 to 10"):
            extremes(rows, columns, k=k)
    with pytest.raises(ShapeError, match="rows have 4 features, columns 3"):
        extremes(rows, columns[:, :3], k=1)
    rows[1, 2] = torch.inf
    with pytest.raises(NumericsError, match="the products: "):
        extremes(rows, columns, k=2)
