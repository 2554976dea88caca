"""Changes of activations: what they compute, that hooks come and go with the edit, and that files keep them."""

import pytest
import torch

from tests.tiny import tiny
from workbench.core.activation import ActivationChange
from workbench.core.delta import Delta, applied, apply, undo
from workbench.core.errors import InputError, ModelError, NumericsError, ShapeError, UndoError, UnknownNameError
from workbench.core.records import Provenance
from workbench.trace.changes import activation_change

IDS = torch.tensor([[2, 3, 4, 5], [9, 8, 7, 6]])


def change(kind="add", index=(0, 2), values=(10.0, 20.0), part=None):
    return ActivationChange(
        kind, "blocks.0.mlp_out", "m", "output", part, torch.tensor(index, dtype=torch.long), torch.tensor(values)
    )


def delta(model, *hooks):
    return Delta({}, Provenance("by hand", model.fingerprint()), tuple(hooks))


def test_by_hand():
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    assert change().apply(x).tolist() == [[[11.0, 2.0, 23.0, 4.0]]]
    assert change("set").apply(x).tolist() == [[[10.0, 2.0, 20.0, 4.0]]]
    # x . v = 0.6 * 1 + 0.8 * 3 = 3; 1 - 3 * 0.6 = -0.8 and 3 - 3 * 0.8 = 0.6
    torch.testing.assert_close(change("project", values=(0.6, 0.8)).apply(x), torch.tensor([[[-0.8, 2.0, 0.6, 4.0]]]))
    # the part is every second feature from 1 on, those that hold 2 and 4; its feature 1 is the last: 4 + 9 = 13
    assert change("add", (1,), (9.0,), part=(1, 4, 2)).apply(x).tolist() == [[[1.0, 2.0, 3.0, 13.0]]]
    assert x.tolist() == [[[1.0, 2.0, 3.0, 4.0]]]


def test_half_precision_is_rounded_once():
    x = torch.tensor([[[256.0, 1.0]]], dtype=torch.bfloat16)  # bfloat16 steps by 2 there: 256 + 0.9 + 0.9 would stay 256
    added = change(index=(0, 1), values=(1.8, 1.0)).apply(x)
    assert added.dtype == torch.bfloat16
    assert added.tolist() == [[[258.0, 2.0]]]


def test_scaling():
    assert change().scaled(0.5).values.tolist() == [5.0, 10.0]
    with pytest.raises(InputError, match="by 'set', which cannot be scaled by 0.5"):
        change("set").scaled(0.5)


@pytest.mark.parametrize(
    ("error", "match", "wrong"),
    [
        (UnknownNameError, "Did you mean 'add'", {"kind": "ad"}),
        (ShapeError, "expected one each", {"values": (1.0,)}),
        (ShapeError, "no repeats", {"index": (1, 1)}),
        (InputError, "no feature.*index=None means all", {"index": (), "values": ()}),
        (InputError, "feature -1 .*counted from 0", {"index": (0, -1)}),
        (InputError, "norm 1.0002; .*divide by the norm", {"kind": "project", "values": (1.0002, 0.0)}),
        (NumericsError, "NaN", {"values": (1.0, float("nan"))}),
    ],
)
def test_refusals(error, match, wrong):
    with pytest.raises(error, match=match):
        change(**wrong)


def test_a_projection_may_be_partial_and_rounded():
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    # s = 0.25 of the first feature: values sqrt(0.25), 1 - 0.25 * 1 = 0.75
    assert change("project", values=(0.5, 0.0)).apply(x)[0, 0, 0] == 0.75
    change("project", values=(1.00005, 0.0))  # a unit vector that was stored in a narrow dtype


def test_a_feature_that_is_not_there_is_named():
    with pytest.raises(ShapeError, match="has 2 features, but the edit changes number 2"):
        change().apply(torch.zeros(1, 1, 2))


def test_hooks_come_and_go_with_the_edit():
    model = tiny()
    before = model.fingerprint()
    plain = model.hf(IDS).logits
    steer = delta(model, activation_change(model, "blocks.1.resid_pre", "add", torch.ones(8)))
    hold = delta(model, activation_change(model, "blocks.0.mlp.post", "set", torch.tensor([0.5]), index=torch.tensor([3])))
    apply(model, steer)
    steered, name = model.hf(IDS).logits, model.fingerprint()
    assert not torch.allclose(steered, plain)
    apply(model, hold)
    assert not torch.allclose(model.hf(IDS).logits, steered)
    assert len({before, name, model.fingerprint()}) == 3
    with pytest.raises(UndoError, match="lies under 1 later"):
        undo(model, steer)
    undo(model, hold)
    assert torch.equal(model.hf(IDS).logits, steered)
    undo(model, steer)
    assert torch.equal(model.hf(IDS).logits, plain)
    assert model.fingerprint() == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_an_exception_takes_the_hooks_away():
    model = tiny()
    with (
        pytest.raises(RuntimeError, match="boom"),
        applied(model, delta(model, activation_change(model, "blocks.0.attn_out", "set", torch.zeros(8)))),
    ):
        raise RuntimeError("boom")
    assert not any(m._forward_hooks for m in model.hf.modules())


def test_a_module_that_is_not_there_leaves_the_model_alone():
    model = tiny()
    there = activation_change(model, "blocks.0.resid_post", "add", torch.ones(8))
    with pytest.raises(ModelError, match="no module 'm' to hook"):
        apply(model, delta(model, there, change()))
    assert not any(m._forward_hooks for m in model.hf.modules())
    assert not model.ledger


def test_a_delta_with_hooks_is_a_value(tmp_path):
    model = tiny()
    one = delta(model, activation_change(model, "blocks.0.resid_post", "add", torch.arange(8.0)))
    two = delta(model, activation_change(model, "blocks.1.attn.hook_z", "set", torch.ones(2), index=torch.tensor([4, 5])))
    both = one.compose(two)
    both.save(tmp_path / "d.safetensors")
    back = Delta.load(tmp_path / "d.safetensors")
    assert back.id == both.id != one.id
    assert [(h.kind, h.site) for h in back.hooks] == [("add", "blocks.0.resid_post"), ("set", "blocks.1.attn.hook_z")]
    with applied(model, both):
        expected = model.hf(IDS).logits
    with applied(model, back):
        assert torch.equal(model.hf(IDS).logits, expected)
    assert not both.is_empty
    assert one.scaled(0.0).is_empty
    assert one.scaled(2.0).hooks[0].values.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]
    assert "2 activation sites by hook" in repr(both)
    assert "blocks.1.attn.hook_z" in both._repr_html_()
    with pytest.raises(InputError, match="which no checkpoint can hold"):
        both.export(model, tmp_path / "out")
