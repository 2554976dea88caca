"""Mask: set operations on packed bits, agreement, the matched control, files, refusals."""

from math import prod

import pytest
import torch

import workbench as wb
from workbench.core import mask as mask_module
from workbench.core.errors import DataError, InputError, MismatchError, ShapeError, UnknownNameError
from workbench.core.records import Provenance

ABOUT = Provenance("test", "f" * 64)
SHAPES = {"a": (7, 5), "layers.0.b": (6, 4), "layers.0.c": (9,), "layers.1.b": (3, 11), "d": (4,)}


def some(seed=0, *, shapes=SHAPES, method="test", p=0.3):
    g = torch.Generator().manual_seed(seed)
    return wb.Mask.of({n: torch.rand(s, generator=g) < p for n, s in shapes.items()}, Provenance(method, "f" * 64))


def chosen(mask):
    return {(name, i) for name in mask for i in mask[name].flatten().nonzero().squeeze(-1).tolist()}


def test_operations_are_those_of_sets():
    a, b = some(1), some(2)
    everything = {(n, i) for n, s in SHAPES.items() for i in range(prod(s))}
    assert chosen(a & b) == chosen(a) & chosen(b)
    assert chosen(a | b) == chosen(a) | chosen(b)
    assert chosen(~a) == everything - chosen(a)
    assert (~a).count == 105 - a.count
    assert ~~a == a
    assert ~(a & b) == ~a | ~b
    assert ~(a | b) == ~a & ~b
    assert (a | ~a).count == 105
    assert (a & ~a).count == 0


def test_a_parameter_of_one_side_only_is_frozen_on_the_other():
    a, b = some(1), some(2, shapes={"e": (5,), "a": (7, 5)})
    assert list(a & b) == ["a"]
    assert list(a | b) == ["a", "layers.0.b", "layers.0.c", "layers.1.b", "d", "e"]
    assert chosen(a & b) == chosen(a) & chosen(b)
    assert chosen(a | b) == chosen(a) | chosen(b)
    assert (a | b).shapes == {**SHAPES, "e": (5,)}
    nothing = a & some(3, shapes={"e": (5,)})
    assert repr(nothing) == "Mask(0 of 0 weights, 'test and test')"
    assert "0 of 0 weights" in nothing._repr_html_()
    with pytest.raises(DataError, match="lists no weight"):
        nothing.plot()


def test_the_provenance_says_of_what():
    a, b = some(1, method="wagle"), some(2, method="snip")
    both = ~(a & b) | a
    assert both.provenance.method == "(not (wagle and snip)) or wagle"
    assert (a & b).provenance.options == {"left": a.provenance.as_dict(), "right": b.provenance.as_dict()}
    assert both.provenance.model == "f" * 64


def test_jaccard_by_hand():
    a = wb.Mask.of({"v": torch.tensor([1, 1, 0, 0, 1], dtype=torch.bool)}, ABOUT)
    b = wb.Mask.of({"v": torch.tensor([1, 0, 1, 0, 1], dtype=torch.bool), "w": torch.tensor([True, False])}, ABOUT)
    # shared: positions 0 and 4. Either: 0, 1, 2, 4, and the one of w, which a leaves frozen
    assert a.jaccard(b) == b.jaccard(a) == 2 / 5
    assert a.jaccard(a) == 1
    assert a.jaccard(~a) == 0


def test_jaccard_is_a_ratio_of_sets():
    a, b = some(1), some(2)
    assert a.jaccard(b) == len(chosen(a) & chosen(b)) / len(chosen(a) | chosen(b))


def test_no_weights_agree_on_nothing():
    empty = some(p=0.0)
    assert empty.jaccard(some()) == 0
    with pytest.raises(DataError, match="neither mask chooses a weight"):
        empty.jaccard(empty)


@pytest.mark.parametrize("operation", [lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a.jaccard(b)])
def test_masks_that_do_not_belong_together(operation):
    other = wb.Mask.of({"a": torch.ones(7, 5, dtype=torch.bool)}, Provenance("test", "0" * 64))
    with pytest.raises(MismatchError, match="one was made for model ffffffffffff, the other for 000000000000"):
        operation(some(), other)
    turned = wb.Mask.of({"a": torch.ones(5, 7, dtype=torch.bool)}, ABOUT)
    with pytest.raises(ShapeError, match=r"a is \(7, 5\) in one, \(5, 7\) in the other"):
        operation(some(), turned)


def test_counts():
    mask = some()
    assert mask.counts() == {n: int(mask[n].sum()) for n in SHAPES}
    assert mask.count == sum(mask.counts().values())
    assert mask.n_weights == 105
    assert mask.by_module()["chosen"].tolist() == list(mask.counts().values())
    assert mask.by_module()["share"].tolist() == [c / prod(SHAPES[n]) for n, c in mask.counts().items()]


def test_matched_random_has_the_same_count_in_every_tensor():
    mask = some()
    other = mask.matched_random(seed=1)
    assert other.counts() == mask.counts()
    assert other != mask
    assert other == mask.matched_random(seed=1)
    assert other != mask.matched_random(seed=2)


def test_matched_random_is_uniform():
    mask = wb.Mask.of({"w": torch.arange(40) < 10}, ABOUT)
    hits = torch.stack([mask.matched_random(seed=i)["w"] for i in range(400)]).double().mean(0)
    # each position is hit with p = 1/4; sd over 400 draws is .022, five of them are .11
    assert (hits - 0.25).abs().max() < 0.11


def test_files(tmp_path):
    mask = some() & some(1)
    mask.save(tmp_path / "mask.safetensors")
    back = wb.Mask.load(tmp_path / "mask.safetensors")
    assert back == mask
    assert back.provenance == mask.provenance
    assert list(back) == list(mask)


def test_a_mask_takes_one_bit_a_weight_on_disk(tmp_path):
    n = 800_000
    wb.Mask.of({"w": torch.zeros(n, dtype=torch.bool)}, ABOUT).save(tmp_path / "m")
    assert n / 8 <= (tmp_path / "m").stat().st_size < n / 8 + 1000


def test_bytes_that_do_not_fit_the_shape():
    with pytest.raises(ShapeError, match="w has 2 bytes, expected 1 for its 8 weights"):
        wb.Mask({"w": torch.zeros(2, dtype=torch.uint8)}, {"w": (8,)}, ABOUT)
    with pytest.raises(InputError, match="w has bits set behind its last weight"):
        wb.Mask({"w": torch.tensor([0b1000_0001], dtype=torch.uint8)}, {"w": (7,)}, ABOUT)


def test_other_peoples_masks():
    mask = some()
    mask.check("f" * 64, SHAPES)
    with pytest.raises(MismatchError, match="made for model ffffffffffff"):
        mask.check("0" * 64, SHAPES)
    with pytest.raises(ShapeError, match="d is"):
        mask.check("f" * 64, SHAPES | {"d": (5,)})
    with pytest.raises(UnknownNameError, match="layers.0.b"):
        mask.check("f" * 64, {k: v for k, v in SHAPES.items() if k != "layers.0.b"})
    with pytest.raises(UnknownNameError, match="Did you mean 'layers.0.b'"):
        mask["layers.0.bb"]


def test_matched_random_in_chunks_is_exact_and_uniform(monkeypatch):
    """Tensors larger than a chunk: the count is hit, every part gets its share, and the seed decides."""
    bits = torch.zeros(40, 25, dtype=torch.bool)
    bits[:10] = True  # 250 of 1,000, all at the front
    about = Provenance("test", "m")
    monkeypatch.setattr(mask_module, "CHUNK", 64)
    drawn = [wb.Mask.of({"w": bits}, about).matched_random(seed=seed)["w"].flatten() for seed in range(60)]
    assert all(int(one.sum()) == 250 for one in drawn)
    assert torch.equal(drawn[0], wb.Mask.of({"w": bits}, about).matched_random(seed=0)["w"].flatten())
    share = torch.stack(drawn).double().mean(0)
    # a position is drawn with probability 1/4: over 60 seeds the standard error is .056, and five of them .28
    assert float((share - 0.25).abs().max()) < 0.28
    front = torch.stack(drawn)[:, :500].sum(1).double()
    # 125 expected in the first half; hypergeometric standard deviation 6.85, of the mean over 60 draws .88
    assert abs(float(front.mean()) - 125) < 4.5
    assert 3 < float(front.std()) < 11, "halves vary as a draw without replacement does"


def test_masks_of_other_models_are_not_equal():
    bits = {"w": torch.eye(3, dtype=torch.bool)}
    assert wb.Mask.of(bits, Provenance("a", "m")) == wb.Mask.of(bits, Provenance("b", "m"))
    assert wb.Mask.of(bits, Provenance("a", "m")) != wb.Mask.of(bits, Provenance("a", "other"))
