"""A change of weights: applied, undone to the same bits, saved small, refused elsewhere."""

import pytest
import torch

import workbench as wb
from workbench.core import change as change_module
from workbench.core.change import Columns, Dense, Indices, LowRank, Rows, add, smallest
from workbench.core.delta import applied, apply, undo
from workbench.core.errors import InputError, MismatchError, NumericsError, ShapeError, UndoError, UnknownNameError
from workbench.core.records import Provenance

NAME = "model.layers.1.mlp.down_proj.weight"
OTHER = "model.norm.weight"


def bits(model):
    return {n: p.detach().clone() for n, p in model.hf.named_parameters()}


def same(one, two):
    return all(torch.equal(one[n].view(torch.uint8), two[n].view(torch.uint8)) for n in one)


def forms(shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g)  # noqa: E731
    return {
        "rows": Rows(torch.tensor([3, 1]), r(2, shape[1]), shape),
        "columns": Columns(torch.tensor([0, 5, 2]), r(shape[0], 3), shape),
        "indices": Indices(torch.tensor([7, 0, 30]), r(3), shape),
        "low_rank": LowRank(r(shape[0], 2), r(2, shape[1]), shape),
        "dense": Dense(r(*shape)),
    }


def delta(model, changes):
    return wb.Delta(changes, Provenance("test", model.base_fingerprint()))


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def model(request, root):
    return wb.load(root / "data/models/stories260K", dtype=request.param)


@pytest.mark.parametrize("form", ["rows", "columns", "indices", "low_rank", "dense"])
def test_apply_adds_once_rounded_and_undo_restores_the_bits(model, form):
    before = bits(model)
    change = forms(before[NAME].shape)[form]
    d = delta(model, {NAME: change})
    apply(model, d)
    expected = (before[NAME].double() + change.dense().double()).float().to(model.dtype)
    now = bits(model)
    # float32(w) + d rounded to the model's dtype; from float64 it may round twice, by at most one unit in the last place
    torch.testing.assert_close(now[NAME].float(), expected.float(), rtol=2**-7 if model.dtype != torch.float32 else 1e-6, atol=1e-7)
    touched = change.dense() != 0
    assert torch.equal(now[NAME][~touched], before[NAME][~touched])
    undo(model, d)
    assert same(before, bits(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["rows", "columns", "indices", "low_rank", "dense"])
def test_slices_are_added_block_by_block_and_a_zero_changes_no_bit(monkeypatch, form, dtype):
    monkeypatch.setattr(change_module, "_BLOCK", 40)  # two rows of 17 at a time, the last block shorter; columns of 23 one by one
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(23, 17, generator=source).to(dtype)
    weight[weight.abs() < 0.2] = -0.0
    change = forms((23, 17))[form]
    if form == "rows":
        change = Rows(torch.tensor([3, 22, 0, 9, 1]), torch.randn(5, 17, generator=source), (23, 17))
    for tensor in change.tensors().values():
        if tensor.is_floating_point() and form != "low_rank":
            tensor.view(-1)[::2] = 0.0
            tensor.view(-1)[1::4] = -0.0
    before, dense = weight.clone(), change.dense()
    change.add_to(weight)
    # w + d in float32 (float64 of a float64 weight), rounded once; where d is 0.0 or -0.0, the very bits, those of -0.0 too
    sum_ = (before.to(torch.promote_types(dtype, torch.float32)) + dense).to(dtype)
    want = torch.where(dense == 0, before, sum_)
    assert torch.equal(weight.view(torch.uint8), want.view(torch.uint8))
    assert change_module.kept(change, before).data_ptr() != before.data_ptr()


def test_overlapping_edits_come_back_in_reverse_order(model):
    before = bits(model)
    made = forms(before[NAME].shape)
    stack = [delta(model, {NAME: made[form]}) for form in ("rows", "columns", "low_rank", "indices")]
    states = []
    for d in stack:
        states.append(bits(model))
        apply(model, d)
    for d, state in zip(reversed(stack), reversed(states), strict=True):
        undo(model, d)
        assert same(state, bits(model))
    assert same(before, bits(model))
    assert model.ledger == []


def test_subtracting_would_not_restore_the_bits(root):
    # the reason for the ledger: w + d - d differs from w for many weights
    model = wb.load(root / "data/models/stories260K", dtype="bfloat16")
    w = bits(model)[NAME]
    d = forms(w.shape)["dense"].values.to(torch.bfloat16)
    assert float(((w + d - d) != w).float().mean()) > 0.2


def test_undo_out_of_order_names_the_edit_on_top(stories):
    made = forms(stories.shapes()[NAME])
    first = delta(stories, {NAME: made["rows"]})
    second = wb.Delta({NAME: made["columns"]}, Provenance("the upper one", stories.base_fingerprint()))
    apply(stories, first)
    apply(stories, second)
    with pytest.raises(UndoError, match="the upper one"):
        undo(stories, first)
    undo(stories, second)
    with pytest.raises(UndoError, match="not applied"):
        undo(stories, second)


def test_applied_restores_after_an_exception(stories):
    before = bits(stories)
    with pytest.raises(ZeroDivisionError), applied(stories, delta(stories, {NAME: forms(before[NAME].shape)["dense"]})):
        assert not same(before, bits(stories))
        raise ZeroDivisionError
    assert same(before, bits(stories))


def test_fingerprint_follows_the_ledger(stories):
    before = stories.fingerprint()
    d = delta(stories, {NAME: forms(stories.shapes()[NAME])["rows"]})
    with applied(stories, d):
        edited = stories.fingerprint()
        assert edited != before
        on_top = wb.Delta({OTHER: Dense(torch.ones(64))}, Provenance("on top", edited))
        with applied(stories, on_top):
            assert stories.fingerprint() not in (before, edited)
    assert stories.fingerprint() == before
    with pytest.raises(MismatchError, match="belongs to model"):  # made on the edited model, which is gone
        apply(stories, on_top)


def test_another_model_is_refused(stories, slm):
    with pytest.raises(MismatchError, match="Load the checkpoint it was computed on"):
        apply(slm, delta(stories, {NAME: forms(stories.shapes()[NAME])["rows"]}))


def test_one_checkpoint_has_one_fingerprint_in_both_dtypes(root):
    path = root / "data/organism/full"  # stored in bfloat16
    assert wb.load(path, dtype="bfloat16").fingerprint() == wb.load(path, dtype="float32").fingerprint()


def test_a_changed_weight_changes_the_fingerprint(stories):
    before = stories.fingerprint()
    with torch.no_grad():
        stories.hf.model.norm.weight[3] += 0.5
    assert stories.fingerprint() != before


def test_changes_behind_an_applied_edit_are_noticed(stories):
    d = delta(stories, {OTHER: Dense(torch.ones(64))})
    apply(stories, d)
    with torch.no_grad():
        stories.hf.model.norm.weight[3] += 0.5
    with pytest.raises(MismatchError, match="changed by something else"):
        stories.fingerprint()


@pytest.mark.parametrize("form", ["rows", "columns", "indices", "low_rank", "dense"])
def test_save_and_load(stories, tmp_path, form):
    change = forms(stories.shapes()[NAME])[form]
    d = delta(stories, {NAME: change})
    d.save(tmp_path / "d.safetensors")
    back = wb.Delta.load(tmp_path / "d.safetensors")
    assert type(back.changes[NAME]) is type(change)
    assert torch.equal(back.changes[NAME].dense(), change.dense())
    assert back.provenance == d.provenance
    assert back.id == d.id


def test_file_size_follows_what_is_touched(stories, tmp_path):
    shape = stories.shapes()["model.embed_tokens.weight"]
    for k in (1, 100):
        d = delta(stories, {"model.embed_tokens.weight": Rows(torch.arange(k), torch.ones(k, shape[1]), shape)})
        d.save(tmp_path / f"{k}")
    one, hundred = ((tmp_path / str(k)).stat().st_size for k in (1, 100))
    assert hundred - one == pytest.approx(99 * 4 * (shape[1] + 1), abs=64)  # float32 values and an int32 index a row
    assert hundred < 4 * shape[0] * shape[1] / 3


def test_compose_is_the_sum(stories):
    shape = stories.shapes()[NAME]
    made, more = forms(shape), forms(shape, seed=1)
    for form in made:
        both = delta(stories, {NAME: made[form]}).compose(delta(stories, {NAME: more["low_rank"], OTHER: Dense(torch.ones(64))}))
        torch.testing.assert_close(both.changes[NAME].dense(), made[form].dense() + more["low_rank"].dense())
        assert torch.equal(both.changes[OTHER].dense(), torch.ones(64))
    assert isinstance(add(made["low_rank"], more["low_rank"]), LowRank)


def test_export_is_a_checkpoint_with_the_change(stories, tmp_path):
    before = bits(stories)
    d = delta(stories, {NAME: forms(before[NAME].shape)["columns"]})
    d.export(stories, tmp_path / "edited")
    edited = wb.load(tmp_path / "edited")
    with applied(stories, d):
        assert same(bits(stories), bits(edited))
        assert stories.tokenizer.get_vocab() == edited.tokenizer.get_vocab()
    assert same(before, bits(stories))


def test_scaled_by_zero_is_empty_and_by_minus_one_negates(stories):
    d = delta(stories, {NAME: forms(stories.shapes()[NAME])["rows"]})
    assert d.scaled(0).is_empty
    assert torch.equal(d.scaled(-1).changes[NAME].dense(), -d.changes[NAME].dense())


@pytest.mark.parametrize("form", ["rows", "columns", "indices", "low_rank", "dense"])
def test_norm_is_that_of_the_dense_form(form):
    change = forms((9, 11))[form]
    assert change.norm() == pytest.approx(float(change.dense().double().norm()), rel=1e-6)
    assert change.norm() > 0


def test_the_smallest_form_is_chosen():
    full = torch.zeros(20, 30)
    full[4] = 1.0
    assert isinstance(smallest(full), Rows)
    assert isinstance(smallest(full.T.contiguous()), Columns)
    full[4] = 0.0
    full[4, 7] = 1.0
    assert isinstance(smallest(full), Indices)
    assert isinstance(smallest(torch.ones(20, 30)), Dense)
    for case in (full, full.T, torch.ones(20, 30), torch.arange(5.0)):
        assert torch.equal(smallest(case.contiguous()).dense(), case)


def test_by_layer_and_moved(stories):
    shape = stories.shapes()[NAME]
    d = delta(stories, {NAME: Rows(torch.tensor([2]), torch.ones(1, shape[1]), shape)})
    layers = {row["layer"]: row for row in d.by_layer(stories)}
    weights = [p.detach().double().square().sum() for n, p in stories.hf.named_parameters() if n.startswith("model.layers.1.")]
    assert layers["model.layers.1"]["delta_norm"] == pytest.approx(shape[1] ** 0.5)
    assert layers["model.layers.1"]["weight_norm"] == pytest.approx(float(sum(weights)) ** 0.5)
    assert layers["model.layers.0"]["ratio"] == 0.0
    assert d.moved(stories) == pytest.approx(shape[1] / 260_032)


def test_bad_deltas_are_refused(stories):
    with pytest.raises(NumericsError, match="values"):
        delta(stories, {OTHER: Dense(torch.tensor([float("nan")]))})
    with pytest.raises(ShapeError, match="expected"):
        Rows(torch.tensor([0, 1]), torch.ones(1, 5), (4, 5))
    with pytest.raises(ShapeError, match="without repeats"):
        Rows(torch.tensor([1, 1]), torch.ones(2, 5), (4, 5))
    with pytest.raises(ShapeError, match="runs to 9"):
        Columns(torch.tensor([9]), torch.ones(4, 1), (4, 5))
    with pytest.raises(UnknownNameError, match="model.norm.weight"):
        apply(stories, delta(stories, {"model.norm.weigth": Dense(torch.ones(64))}))
    with pytest.raises(ShapeError, match="the model's is"):
        apply(stories, delta(stories, {OTHER: Dense(torch.ones(65))}))


def test_an_interrupted_apply_leaves_nothing_behind(stories):
    before = bits(stories)

    class Breaks(Dense):
        def add_to(self, weight):
            weight.zero_()
            raise MemoryError

    with pytest.raises(MemoryError):
        apply(stories, delta(stories, {NAME: forms(before[NAME].shape)["rows"], OTHER: Breaks(torch.ones(64))}))
    assert same(before, bits(stories))
    assert stories.ledger == []


def test_an_edit_is_applied_once(stories, tmp_path):
    d = delta(stories, {OTHER: Dense(torch.ones(64))})
    d.save(tmp_path / "d")
    with applied(stories, d):
        for twin in (d, wb.Delta.load(tmp_path / "d")):
            with pytest.raises(UndoError, match="applied to this model already"):
                apply(stories, twin)


def test_where_the_difference_is_zero_the_bits_stay():
    weight = torch.tensor([[-0.0, 1.0], [2.0, -0.0]])
    Dense(torch.tensor([[0.0, 1.0], [0.0, 0.0]])).add_to(weight)
    assert torch.signbit(weight).tolist() == [[True, False], [False, True]]
    assert weight[0, 1] == 2.0


def test_changes_made_under_an_edit_are_not_forgotten_by_undo(stories):
    before = stories.fingerprint()
    with applied(stories, delta(stories, {OTHER: Dense(torch.ones(64))})), torch.no_grad():
        stories.hf.model.embed_tokens.weight[3] += 0.5
    assert stories.fingerprint() != before


def test_export_overwrites_nothing(stories, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        delta(stories, {OTHER: Dense(torch.ones(64))}).export(stories, tmp_path)
    assert (tmp_path / "mine").read_text() == "x"


def test_a_change_of_zero_weights_has_no_ratio(stories):
    with torch.no_grad():
        stories.hf.model.norm.weight.zero_()
    changed = {row["layer"]: row["ratio"] for row in delta(stories, {OTHER: Dense(torch.ones(64))}).by_layer(stories)}
    left = {row["layer"]: row["ratio"] for row in delta(stories, {}).by_layer(stories)}
    assert (changed[OTHER], left[OTHER]) == (None, 0.0)
