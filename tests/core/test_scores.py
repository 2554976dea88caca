"""Scores: exact choices in every scope against a sort of Python lists, several sizes at once, files, tables, refusals."""

import pytest
import torch

import workbench as wb
from tests.reference import selection
from workbench.core import scopes, topk
from workbench.core.errors import DataError, InputError, NumericsError, ShapeError, UnknownNameError
from workbench.core.records import Provenance
from workbench.core.scopes import SCOPES, highest, quota

ABOUT = Provenance("test", "f" * 64)
SHAPES = {
    "embed.weight": (7, 5),
    "layers.0.up.weight": (6, 4),
    "layers.0.norm.weight": (9,),
    "layers.1.up.weight": (3, 11),
    "head.bias": (4,),
}
SHAPES_OF_ALL_KINDS = {"empty": (3, 0), **SHAPES, "layers.0.late": (2, 3, 5), "none": (0, 4), "one": ()}


def some(shapes, *, seed=0, decimals=1, dtype=torch.float32):
    """Normal scores; with one decimal many are equal."""
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=g).round(decimals=decimals).to(dtype) for n, s in shapes.items()}


@pytest.fixture
def scores():
    return wb.Scores(some(SHAPES, decimals=9), ABOUT)


@pytest.fixture(params=[topk.CHUNK, 16], ids=["one chunk", "chunks of 16"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(topk, "CHUNK", request.param)
    monkeypatch.setattr(scopes, "CHUNK", request.param)


def positions(mask):
    return {(name, i) for name in mask for i in mask[name].flatten().nonzero().squeeze(-1).tolist()}


def groups(tensors, scope, transposed):
    if scope == "row":
        return selection.rows(tensors, transposed)
    keys = {"global": lambda n: "", "tensor": lambda n: n, "layer": lambda n: ".".join(n.split(".")[:2]) if n[0] == "l" else n}
    found = {}
    for name, t in tensors.items():
        found.setdefault(keys[scope](name), []).extend((name, i) for i in range(t.numel()))
    return list(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 13, 62, 105, 135, 136])
@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_equals_a_sort(chunk, scope, count, dtype):
    tensors = some(SHAPES_OF_ALL_KINDS, dtype=dtype)  # 136 scores with many ties
    transposed = frozenset({"layers.0.up.weight", "layers.1.up.weight"})
    mask = wb.Scores(tensors, ABOUT, transposed).mask(count=count, scope=scope)
    assert mask.count == count
    assert list(mask) == list(tensors)
    truth = selection.by_row if scope == "row" else selection.by_group
    assert positions(mask) == truth(tensors, groups(tensors, scope, transposed), count)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 5), (4, 4), (2, 64)])
def test_patterns_equal_a_sort(chunk, n, m):
    tensors = some(SHAPES_OF_ALL_KINDS)
    transposed = frozenset({"layers.0.up.weight"})
    mask = wb.Scores(tensors, ABOUT, transposed).mask(scope=f"{n}:{m}")
    assert positions(mask) == selection.n_of_m(tensors, n, m, transposed)


def test_a_transposed_matrix_chooses_what_the_other_storage_would(scores):
    names = frozenset({"layers.0.up.weight"})
    stored = {n: t.T.contiguous() if n in names else t for n, t in scores.tensors.items()}
    for options in ({"fraction": 0.37, "scope": "row"}, {"scope": "2:4"}):
        plain, turned = scores.mask(**options), wb.Scores(stored, ABOUT, names).mask(**options)
        assert all(torch.equal(turned[n].T if n in names else turned[n], plain[n]) for n in plain)


def test_two_of_four_by_hand():
    row = torch.tensor([[1.0, 4.0, 4.0, 4.0, 0.0, -1.0, -2.0, -2.0, 9.0, 8.0, 9.0]])
    # of 1 4 4 4 the first two 4s; of 0 -1 -2 -2 the first two; of the last three, 2 * 3 // 4 = 1: the first 9
    assert wb.Scores({"w": row}, ABOUT).mask(scope="2:4")["w"].int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0]]


def test_row_shares_by_hand(scores):
    # .2 of 105 is 21. Rows: 7 of 5 (1 each), 6 of 4 (.8 -> 0), 9 (1.8 -> 1), 3 of 11 (2.2 -> 2), 4 (.8 -> 0): 14. The other
    # seven go to rows 3, 6, 8, 11, 13, 16 and 18 of 18, where r * 7 / 18 passes a whole number
    mask = scores.mask(0.2, scope="row")
    assert list(mask.counts().values()) == [9, 3, 1, 7, 1]
    assert mask["embed.weight"].sum(1).tolist() == [1, 1, 2, 1, 1, 2, 1]


@pytest.mark.parametrize("scope", ["global", "row", "2:4"])
def test_equal_scores_cannot_be_told_apart(scope):
    flat = wb.Scores({"a": torch.zeros(3, 4), "b": torch.zeros(8)}, ABOUT)
    with pytest.raises(InputError, match="choice by position"):
        flat.mask(None if ":" in scope else 0.5, scope=scope)
    assert wb.Scores({"a": torch.zeros(1)}, ABOUT).mask(count=1).count == 1, "one weight can be chosen"


def test_quota_by_hand():
    # 7 / 16 of 5, 1, 0, 10: 2, 0, 0, 4, and the one that is left goes to the first
    assert quota([5, 1, 0, 10], 7) == [3, 0, 0, 4]
    # 15 / 16: 4, 0, 0, 9; two are left; the empty group takes none
    assert quota([5, 1, 0, 10], 15) == [5, 1, 0, 9]
    assert quota([0, 3, 3], 3) == [0, 2, 1]
    assert quota([], 0) == []


def test_highest_of_each_row_by_hand():
    rows = torch.tensor([[0.0, -0.0, 1.0], [2.0, 3.0, 3.0]])
    assert highest(rows, 2).tolist() == [[True, False, True], [False, True, True]]  # the two zeros are equal: the first
    assert highest(rows, 0).any().item() is False
    assert highest(rows, 3).all().item() is True


@pytest.mark.parametrize("fraction", [0.013, 0.1, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("scope", SCOPES)
def test_the_count_is_hit_exactly(scores, fraction, scope):
    assert scores.mask(fraction, scope=scope).count == round(fraction * 105)


def test_global_takes_the_highest(scores):
    mask = scores.mask(count=20)
    chosen = torch.cat([scores[n][mask[n]] for n in scores])
    left = torch.cat([scores[n][~mask[n]] for n in scores])
    assert len(chosen) == 20
    assert chosen.min() > left.max()


def test_tensor_shares_by_hand(scores):
    # 7, 4.8, 1.8, 6.6, .8 rounded down, and one more for the first three
    assert list(scores.mask(0.2, scope="tensor").counts().values()) == [8, 5, 2, 6, 0]


def test_layer_scope_joins_a_layers_tensors(scores):
    mask = scores.mask(0.5, scope="layer")
    layer = {n: c for n, c in mask.counts().items() if n.startswith("layers.0")}
    assert sum(layer.values()) == 17  # 33 weights: 16 and one of the remainder


@pytest.mark.parametrize("scope", SCOPES)
def test_masks_are_single_masks_in_the_order_given(scores, scope):
    fractions = [0.5, 0.02, 1.0, 0.5]
    several = scores.masks(fractions, scope=scope)
    assert several == [scores.mask(fraction, scope=scope) for fraction in fractions]
    assert [mask.provenance.options["fraction"] for mask in several] == fractions
    assert scores.masks([], scope=scope) == []


@pytest.mark.parametrize("scope", ["global", "layer", "tensor"])
def test_masks_read_the_scores_once_for_all_sizes(scores, scope, monkeypatch):
    seen = []
    plain = topk.order_key
    monkeypatch.setattr(topk, "order_key", lambda chunk: seen.append(chunk.numel()) or plain(chunk))
    scores.mask(0.1, scope=scope)
    once = sum(seen)
    seen.clear()
    scores.masks([0.1, 0.3, 0.6, 0.8], scope=scope)
    # a group whose share of one size is 0 needs no second pass for it: three passes at most, two at least
    assert 2 * 105 <= once <= sum(seen) <= 3 * 105


def test_files(scores, tmp_path):
    mask = scores.mask(0.3)
    turned = wb.Scores(scores.tensors, ABOUT, frozenset({"embed.weight"}))
    turned.save(tmp_path / "scores.safetensors")
    back = wb.Scores.load(tmp_path / "scores.safetensors")
    assert list(back) == list(scores)
    assert all(torch.equal(back[n], scores[n]) for n in scores)
    assert back.provenance == scores.provenance
    assert back.transposed == {"embed.weight"}
    assert back.mask(0.3) == mask
    assert back.mask(0.3, scope="row") != scores.mask(0.3, scope="row")
    with pytest.raises(InputError, match="holds scores, expected a mask"):
        wb.Mask.load(tmp_path / "scores.safetensors")


def test_loaded_scores_are_mapped_not_read(tmp_path):
    # resident memory grows by far less than the file until the tensor is touched
    import psutil

    wb.Scores({"w": torch.ones(20_000_000)}, ABOUT).save(tmp_path / "s")
    before = psutil.Process().memory_info().rss
    loaded = wb.Scores.load(tmp_path / "s")
    grown = psutil.Process().memory_info().rss - before
    assert grown < 20_000_000, f"grew by {grown / 1e6:.0f} MB on opening an 80 MB file"
    assert float(loaded["w"].sum()) == 20_000_000


def test_table(chunk):
    tensors = some({"h.0.up": (7, 5), "none": (0,)})
    frame = wb.Scores(tensors, ABOUT).by_module().set_index("parameter")
    values = tensors["h.0.up"].double()
    row = frame.loc["h.0.up"]
    assert (row["weights"], row["min"], row["max"]) == (35, float(values.min()), float(values.max()))
    # float64 sums of 35 numbers in another order
    assert row["mean"] == pytest.approx(float(values.mean()), rel=1e-12, abs=1e-15)
    assert row["std"] == pytest.approx(float(values.std(correction=0)), rel=1e-12)
    assert frame.loc["none", ["mean", "std", "min", "max"]].isna().all()


def test_coverage_is_said_when_it_is_below_one(scores):
    assert scores.coverage is None
    assert repr(scores) == "Scores('test', 105 weights in 5 tensors)"
    part = wb.Scores(scores.tensors, Provenance("test", "f" * 64, notes={"coverage": 0.8731}))
    assert part.coverage == 0.8731
    assert repr(part) == "Scores('test', 105 weights in 5 tensors, 87.31% of the model's weights)"
    assert "87.31%" in part._repr_html_()
    whole = wb.Scores(scores.tensors, Provenance("test", "f" * 64, notes={"coverage": 1.0}))
    assert repr(whole) == repr(scores)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, InputError, "give fraction or count"),
        ({"fraction": 0.5, "count": 3}, InputError, "give fraction or count"),
        ({"fraction": 1.5}, InputError, "fraction is 1.5, expected above 0 and at most 1"),
        ({"fraction": 0.0}, InputError, "fraction is 0.0, expected above 0"),
        ({"fraction": float("nan")}, InputError, "fraction is nan, expected above 0"),
        ({"fraction": 0.004}, InputError, "fraction 0.004 of 105 weights is none"),
        ({"count": 106}, InputError, "count is 106, expected 1 to 105"),
        ({"count": 0}, InputError, "count is 0, expected 1 to 105"),
        ({"fraction": 0.1, "scope": "layers"}, UnknownNameError, "Did you mean 'layer'"),
        ({"scope": "2:4", "fraction": 0.5}, InputError, "says how many weights by itself"),
        ({"scope": "2:4", "count": 5}, InputError, "says how many weights by itself"),
        ({"scope": "5:4"}, InputError, "expected N:M with 1 <= N <= M"),
        ({"scope": "0:4"}, InputError, "expected N:M with 1 <= N <= M"),
        ({"scope": "2:"}, UnknownNameError, "Known: 2:4, global, layer, row, tensor"),
    ],
)
def test_bad_requests(scores, options, error, match):
    with pytest.raises(error, match=match):
        scores.mask(**options)


def test_bad_scores(scores):
    with pytest.raises(InputError, match="only; use Scores.mask"):
        scores.masks([0.5], scope="2:4")
    with pytest.raises(InputError, match="float64"):
        wb.Scores({"w": torch.zeros(2, dtype=torch.float64)}, ABOUT)
    with pytest.raises(DataError, match="there is no tensor"):
        wb.Scores({}, ABOUT)
    with pytest.raises(ShapeError, match=r"norm.weight, which is \(9,\); expected a matrix"):
        wb.Scores(scores.tensors, ABOUT, frozenset({"layers.0.norm.weight"}))
    with pytest.raises(UnknownNameError, match="Did you mean 'embed.weight'"):
        wb.Scores(scores.tensors, ABOUT, frozenset({"embed.weights"}))


@pytest.mark.parametrize("options", [{"fraction": 0.5, "scope": s} for s in SCOPES] + [{"scope": "2:4"}])
def test_nan_is_refused_in_every_scope(options):
    bad = wb.Scores({"a": torch.ones(3), "w": torch.tensor([[1.0, 2.0], [3.0, float("nan")]])}, ABOUT)
    with pytest.raises(NumericsError, match="the scores of w hold NaN, first at flat position 3"):
        bad.mask(**options)
