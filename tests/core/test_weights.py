"""Scores and Mask: bits packed and back, exact counts in every scope, controls, files, refusals."""

import pytest
import torch

import workbench as wb
from workbench.core.errors import InputError, MismatchError, ShapeError, UnknownNameError
from workbench.core.records import Provenance
from workbench.core.weights import layer_of, pack, unpack

ABOUT = Provenance("test", "f" * 64)


@pytest.fixture
def scores():
    g = torch.Generator().manual_seed(0)
    names = ("embed.weight", "layers.0.up.weight", "layers.0.norm.weight", "layers.1.up.weight", "head.bias")
    shapes = ((7, 5), (6, 4), (9,), (3, 11), (4,))
    return wb.Scores({n: torch.randn(s, generator=g) for n, s in zip(names, shapes, strict=True)}, ABOUT)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 65])
def test_eight_bits_a_byte(n):
    bits = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5
    packed = pack(bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == (n + 7) // 8
    assert torch.equal(unpack(packed, (n,)), bits)


def test_pack_by_hand():
    # lowest bit first: 1 + 4 + 128 = 133, then 2
    assert pack(torch.tensor([1, 0, 1, 0, 0, 0, 0, 1, 0, 1], dtype=torch.bool)).tolist() == [133, 2]


@pytest.mark.parametrize("fraction", [0.0, 0.013, 0.1, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("scope", ["global", "layer", "tensor"])
def test_the_count_is_hit_exactly(scores, fraction, scope):
    assert scores.mask(fraction, scope=scope).count == round(fraction * 105)


def test_global_takes_the_highest(scores):
    mask = scores.mask(count=20)
    chosen = torch.cat([scores[n][mask[n]] for n in scores])
    left = torch.cat([scores[n][~mask[n]] for n in scores])
    assert len(chosen) == 20
    assert chosen.min() > left.max()


def test_tensor_scope_takes_its_share_of_each(scores):
    assert list(scores.mask(0.2, scope="tensor").counts().values()) == [
        8,
        5,
        2,
        6,
        0,
    ]  # 7, 4.8, 1.8, 6.6, .8 rounded down, and one more for the first three
    mask = scores.mask(0.2, scope="tensor")
    for name in list(scores)[:4]:
        assert scores[name][mask[name]].min() > scores[name][~mask[name]].max()


def test_layer_scope_joins_a_layers_tensors(scores):
    mask = scores.mask(0.5, scope="layer")
    layer = {n: c for n, c in mask.counts().items() if n.startswith("layers.0")}
    assert sum(layer.values()) == 17  # 33 weights: 16 and one of the remainder
    joined = torch.cat([scores[n].flatten() for n in layer])
    assert torch.equal(torch.cat([mask[n].flatten() for n in layer]), joined >= joined.topk(17).values.min())


def test_layer_of():
    assert layer_of("model.layers.12.mlp.up_proj.weight") == "model.layers.12"
    assert layer_of("lm_head.weight") == "lm_head.weight"


def test_matched_random_has_the_same_count_in_every_tensor(scores):
    mask = scores.mask(0.3)
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


def test_inverse(scores):
    mask = scores.mask(0.3)
    assert (~mask).count == 105 - mask.count
    assert ~~mask == mask


def test_files(scores, tmp_path):
    mask = scores.mask(0.3)
    mask.save(tmp_path / "mask.safetensors")
    assert wb.Mask.load(tmp_path / "mask.safetensors") == mask
    scores.save(tmp_path / "scores.safetensors")
    back = wb.Scores.load(tmp_path / "scores.safetensors")
    assert list(back) == list(scores)
    assert all(torch.equal(back[n], scores[n]) for n in scores)
    assert back.provenance == scores.provenance
    assert back.mask(0.3) == mask
    with pytest.raises(InputError, match="holds scores, expected a mask"):
        wb.Mask.load(tmp_path / "scores.safetensors")


def test_a_mask_takes_one_bit_a_weight_on_disk(tmp_path):
    n = 800_000
    wb.Mask.of({"w": torch.zeros(n, dtype=torch.bool)}, ABOUT).save(tmp_path / "m")
    assert n / 8 <= (tmp_path / "m").stat().st_size < n / 8 + 1000


def test_loaded_scores_are_mapped_not_read(tmp_path):
    # resident memory grows by far less than the file until the tensor is touched
    import psutil

    wb.Scores({"w": torch.ones(20_000_000)}, ABOUT).save(tmp_path / "s")
    before = psutil.Process().memory_info().rss
    loaded = wb.Scores.load(tmp_path / "s")
    grown = psutil.Process().memory_info().rss - before
    assert grown < 20_000_000, f"grew by {grown / 1e6:.0f} MB on opening an 80 MB file"
    assert float(loaded["w"].sum()) == 20_000_000


def test_tables(scores):
    assert scores.by_module()["weights"].sum() == 105
    assert scores.mask(0.2).by_module()["chosen"].sum() == 21
    assert "<table" in scores._repr_html_()
    assert "<table" in scores.mask(0.2)._repr_html_()
    assert len(scores.plot().patches) == 5


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, InputError, "give fraction or count"),
        ({"fraction": 1.5}, InputError, "fraction is 1.5, expected 0 to 1"),
        ({"count": 106}, InputError, "count is 106, expected 0 to 105"),
        ({"fraction": 0.1, "scope": "layers"}, UnknownNameError, "Did you mean 'layer'"),
    ],
)
def test_bad_requests(scores, options, error, match):
    with pytest.raises(error, match=match):
        scores.mask(**options)


def test_other_peoples_masks(scores):
    mask = scores.mask(0.3)
    shapes = {n: tuple(scores[n].shape) for n in scores}
    mask.check("f" * 64, shapes)
    with pytest.raises(MismatchError, match="made for model ffffffffffff"):
        mask.check("0" * 64, shapes)
    with pytest.raises(ShapeError, match="head.bias"):
        mask.check("f" * 64, shapes | {"head.bias": (5,)})
    with pytest.raises(UnknownNameError, match="embed.weight"):
        mask.check("f" * 64, {k: v for k, v in shapes.items() if k != "embed.weight"})
    with pytest.raises(UnknownNameError, match="Did you mean 'embed.weight'"):
        mask["embed.weights"]
    with pytest.raises(InputError, match="float64"):
        wb.Scores({"w": torch.zeros(2, dtype=torch.float64)}, ABOUT)
