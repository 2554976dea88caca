"""The random counterpart of every form of change, the size of an edit, and the card with both controls."""

import json
import re
import sys

import pytest
import torch

import workbench as wb
from tests.edit.models import TEXTS, bits, direction, model_of, same
from workbench import edit
from workbench.core.activation import ActivationChange
from workbench.core.change import Columns, Dense, Indices, LowRank, Rows
from workbench.core.delta import Delta, applied
from workbench.core.errors import InputError, UnknownNameError
from workbench.core.records import Provenance

SHAPE = (7, 5)


def made(change):
    return Delta({"w": change}, Provenance("by hand", "m"))


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1, shape[0] + 1.0).view(
        -1, *[1] * (len(shape) - 1)
    )


FORMS = {
    "rows": Rows(torch.tensor([4, 1, 6]), random(3, 5), SHAPE),
    "columns": Columns(torch.tensor([2, 0]), random(7, 2), SHAPE),
    "indices": Indices(torch.tensor([3, 30, 8]), random(3), SHAPE),
    "low_rank": LowRank(random(7, 2), random(2, 5), SHAPE),
    "dense": Dense(random(7, 5)),
    "bias": Dense(random(7)),
}


@pytest.mark.parametrize("form", FORMS)
def test_form_place_and_norm_stay_and_the_rest_is_drawn(form):
    mine = FORMS[form]
    one, two, other = (edit.matched_random(made(mine), seed=s).changes["w"] for s in (1, 1, 2))
    assert type(one) is type(mine)
    assert one.shape == mine.shape
    assert one.n_touched == mine.n_touched
    assert torch.equal(one.dense(), two.dense())
    assert not torch.allclose(one.dense(), other.dense())
    assert not torch.allclose(one.dense(), mine.dense())
    assert one.norm() == pytest.approx(mine.norm(), rel=1e-6)  # float32 values
    if form in ("rows", "columns"):
        assert torch.equal(one.index, mine.index)
        along = 1 - mine.dim
        torch.testing.assert_close(one.values.norm(dim=along), mine.values.norm(dim=along))
    if form == "indices":
        assert torch.equal(one.index, mine.index)
    if form == "low_rank":
        assert one.left.shape == mine.left.shape


def test_every_direction_of_a_row_is_as_likely():
    rows = made(Rows(torch.arange(2000), torch.full((2000, 3), 2.0), (2000, 3)))
    units = edit.matched_random(rows, seed=0).changes["w"].values / 12**0.5
    assert float(units.mean(0).abs().max()) < 4 / (3 * 2000) ** 0.5  # components have variance 1/3
    assert float(((units.T @ units) / 2000 - torch.eye(3) / 3).abs().max()) < 0.03


def test_tensors_are_drawn_by_name_whatever_their_order():
    one = Delta({"a": FORMS["rows"], "b": FORMS["dense"]}, Provenance("by hand", "m"))
    two = Delta({"b": FORMS["dense"], "a": FORMS["rows"]}, Provenance("by hand", "m"))
    first, second = (edit.matched_random(d, seed=3) for d in (one, two))
    assert list(second.changes) == ["b", "a"]
    assert all(torch.equal(first.changes[n].dense(), second.changes[n].dense()) for n in "ab")
    assert first.changes["a"].values[0, 0] != first.changes["b"].values[0, 0]


@pytest.mark.parametrize("kind", ["add", "set", "project"])
def test_hooks_keep_kind_place_and_norm(kind):
    index, norm = torch.tensor([3, 1, 8]), 1 if kind == "project" else 3
    values = torch.tensor([1.0, -2, 2]) * norm / 3
    hook = ActivationChange(kind, "blocks.1.mlp.post", "m.mlp", "input", (0, 20, 2), index, values)
    found = edit.matched_random(Delta({}, Provenance("by hand", "m"), (hook,)), seed=1)
    (other,) = found.hooks
    assert (other.kind, other.site, other.module, other.side, other.part) == (kind, hook.site, hook.module, hook.side, hook.part)
    assert torch.equal(other.index, index)
    assert float(other.values.norm()) == pytest.approx(norm, rel=1e-6)
    assert not torch.allclose(other.values, hook.values)
    assert found.provenance.method == "random, as large as by hand"


def test_holding_at_zero_has_no_random_counterpart():
    hook = ActivationChange("set", "blocks.1.mlp_out", "m", "output", None, torch.arange(2), torch.zeros(2))
    with pytest.raises(InputError, match="a hook holds blocks.1.mlp_out at zero, and no other constant has norm 0"):
        edit.matched_random(Delta({}, Provenance("by hand", "m"), (hook,)))


def test_noise_is_not_its_own_control():
    # both were drawn from the same seed's first numbers once, and the control was the edit
    model = model_of("llama")
    mine, other = (edit.ablate_value_vectors(model, [(0, 1)], control=c, seed=3) for c in ("", "change"))
    one, two = (next(iter(d.changes.values())).values for d in (mine, other))
    assert float(torch.nn.functional.cosine_similarity(one, two, dim=0).abs().max()) < 0.7
    mine, other = (edit.surgery(model, direction().random(seed=3), rows=4, control=c, seed=3) for c in ("", "change"))
    name = next(iter(mine.changes))
    one, two = (d.changes[name].values for d in (mine, other))
    assert float(torch.nn.functional.cosine_similarity(one, two, dim=1).abs().max()) < 0.7


def test_size_by_hand():
    model = model_of("gpt2")
    with torch.no_grad():
        weight = model.hf.get_parameter("transformer.h.1.mlp.c_proj.weight")
        weight.zero_()
        weight[7] = 0.5  # a value vector of 32 halves: norm sqrt(8)
        weight[9] = 1.5
    found = edit.size(model, edit.ablate_value_vectors(model, [(1, 7)], kind="zero"))
    total = sum(p.numel() for p in model.hf.parameters())
    assert (found.n_parameters, found.share, found.features) == (32, 32 / total, 0)
    assert found.delta_norm == pytest.approx(8**0.5)
    assert found.weight_norm == pytest.approx((8 + 32 * 2.25) ** 0.5)  # the whole tensor, not only its touched row
    assert found.ratio == pytest.approx((8 / 80) ** 0.5)
    assert found.bytes == 4 * 32 + 4  # float32 values and an int32 index
    (layer,) = found.layers
    assert (layer.layer, layer.n_parameters, layer.ratio) == ("transformer.h.1", 32, pytest.approx((8 / 80) ** 0.5))
    assert str(found) == f"32 weights ({32 / total:.3%} of the model), ||Delta|| / ||W|| 0.316"


def test_size_adds_up_over_layers_and_counts_hooks():
    model = model_of("phi3")
    zero = edit.ablate_neurons(model, [(0, 1), (2, 5), (2, 7)])
    found = edit.size(model, zero)
    by_layer = {row["layer"]: row for row in zero.by_layer(model)}
    assert [one.layer for one in found.layers] == ["model.layers.0", "model.layers.2"]
    for one in found.layers:
        assert one.delta_norm == pytest.approx(by_layer[one.layer]["delta_norm"])
    assert found.delta_norm == pytest.approx(sum(one.delta_norm**2 for one in found.layers) ** 0.5)
    mean = edit.size(model, edit.ablate_neurons(model, [(0, 1), (2, 5), (2, 7)], kind="mean", texts=TEXTS))
    assert (mean.n_parameters, mean.share, mean.ratio, mean.features) == (0, 0.0, None, 3)
    assert str(mean) == "0 weights (0.000% of the model), 3 activation features by hooks"


def test_norms_are_summed_block_by_block_in_float64(monkeypatch):
    module = sys.modules["workbench.edit.size"]  # the package's name `size` is the function
    monkeypatch.setattr(module, "_BLOCK", 7)
    weight = torch.randn(13, 11).bfloat16()
    assert module.square_sum(weight) == pytest.approx(float(weight.double().square().sum()), rel=1e-6)  # squares in float32
    weight[:] = 300.0
    assert module.square_sum(weight.half()) == 13 * 11 * 90_000  # float16 ends at 65,504


@pytest.mark.parametrize(
    ("method", "where", "options"),
    [
        ("surgery", "direction", {"rows": 9, "matrix": "down"}),
        ("ablate_heads", [(1, 2), (2, 0)], {"kind": "mean", "texts": TEXTS}),
        ("ablate-neurons", [(1, 2)], {}),
        ("ablate_value_vectors", [(1, 2)], {"std": 2.0}),
        ("steer", "direction", {"strength": 2.0}),
    ],
)
def test_with_controls_is_the_edit_and_each_control_by_itself(method, where, options):
    model = model_of("phi3")
    place = direction() if where == "direction" else where
    before = bits(model)
    found = edit.with_controls(method, model, place, seed=4, options=options)
    function = getattr(edit, method.replace("-", "_"))
    for arm, control in (("edit", ""), ("place", "place"), ("change", "change")):
        assert found.arms[arm].id == function(model, place, control=control, seed=4, **options).id
        assert found.sizes[arm] == edit.size(model, found.arms[arm])
    assert not found.missing
    assert len({delta.id for delta in found.arms.values()}) == 3
    assert same(model, before)
    text = found._repr_html_()
    for word in ("the edit", "the same elsewhere", "random, as large", "‖Δ‖/‖W‖", "KiB"):
        assert word in text
    assert not re.search(r"<script|http|<img|<link", text)
    json.dumps(found.delta.provenance.as_dict(), allow_nan=False)


def test_a_control_that_does_not_exist_says_why():
    model = model_of("phi3")
    found = edit.with_controls("ablate_heads", model, [(1, h) for h in range(4)])
    assert found.place is None
    assert "everything there is was chosen" in found.missing["place"]
    assert list(found.arms) == ["edit", "change"]
    assert "everything there is was chosen" in found._repr_html_()
    held = edit.with_controls("orthogonalize", model, direction())
    assert "control &#39;place&#39; needs layers" in held._repr_html_()


def test_the_card_escapes_what_comes_from_outside():
    model = model_of("phi3")
    evil = wb.Direction(direction().vector, "resid_post", 1, Provenance("<script>alert(1)</script>", "m"))
    found = edit.with_controls("steer", model, evil)
    assert "<script" not in found._repr_html_()
    assert "<script" not in found.delta._repr_html_()


def test_refusals():
    model = model_of("phi3")
    with pytest.raises(UnknownNameError, match="unknown edit 'surgary'. Did you mean 'surgery'"):
        edit.with_controls("surgary", model, direction())
    with pytest.raises(UnknownNameError, match="unknown option of surgery 'row'. Did you mean 'rows'"):
        edit.with_controls("surgery", model, direction(), options={"row": 3})
    with pytest.raises(InputError, match="rows of surgery is '3'"):
        edit.with_controls("surgery", model, direction(), options={"rows": "3"})
    with pytest.raises(InputError, match="dampen has no place to be done elsewhere"):
        edit.with_controls("dampen", model, None)
    with pytest.raises(InputError, match="seed stands in options"):
        edit.with_controls("surgery", model, direction(), options={"rows": 3, "seed": 1})
    with pytest.raises(InputError, match="control stands in options"):
        edit.with_controls("surgery", model, direction(), options={"rows": 3, "control": "place"})
    with applied(model, edit.surgery(model, direction(), rows=3)), pytest.raises(InputError, match="rows is 999"):
        edit.with_controls("surgery", model, direction(), options={"rows": 999})
