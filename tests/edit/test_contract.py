"""The promises of every edit, old and new: read from the registry, so that no member escapes."""

import json
from pathlib import Path

import pytest
import torch

import workbench as wb
from tests.edit.models import TEXTS, bits, direction, model_of, same
from tests.tiny import tiny, tiny_sets
from workbench import edit
from workbench.attribute.parts import UNITS
from workbench.core.delta import Delta, applied, apply, undo
from workbench.core.registry import edit as registry

MEMBERS = [member.name for member in registry]
# for each member: what it is told and with which options; and the options with which it changes nothing
SETS = "two sets"
CASES = {
    "ablate_heads": ([(1, 2), (2, 0)], {"kind": "mean", "texts": TEXTS}, None),
    "ablate_layers": ([1], {"part": "attn"}, None),
    "ablate_neurons": ([(1, 2), (2, 30)], {}, None),
    "ablate_value_vectors": ([(1, 2), (2, 30)], {"kind": "noise"}, {"std": 0.0}),
    "dampen": (SETS, {"alpha": 1.2}, {"strength": 0.0}),
    "orthogonalize": ("direction", {}, {"strength": 0.0}),
    "steer": ("direction", {"unit": "residual", "texts": TEXTS}, {"strength": 0.0}),
    "surgery": ("direction", {"fraction": 0.1}, {"strength": 0.0}),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def told(name, dtype):
    """A model and what stands before the options."""
    where = CASES[name][0]
    if where == SETS:
        return tiny(dtype), tiny_sets()
    # an architecture whose means are hooks and whose embeddings are not tied
    return model_of("phi3", dtype), (direction(site="resid_post") if where == "direction" else where,)


def made(name, model, where, **options):
    return registry[name].function(model, *where, **(CASES[name][1] | options))


def test_every_member_has_a_case_a_test_file_and_a_public_name():
    assert sorted(CASES) == MEMBERS
    here = Path(__file__).parent
    for member in registry:
        module = member.function.__module__.rpartition(".")[2]
        assert (here / f"test_{module}.py").exists(), f"{member.name} has no test file tests/edit/test_{module}.py"
        assert member.name in edit.__all__
        assert getattr(edit, member.name) is member.function
        assert member.about["where"] in ("sets", "direction", "places")
        wanted = (*UNITS, "layer") if member.about["where"] == "places" else ("",)
        assert member.about["unit"] in wanted, f"@edit of {member.name}: unit says what its places are, so that studies find them"
        assert all(default is not member.function for default in member.options.values())
        assert not [key for key, default in member.options.items() if repr(default).startswith("<class 'inspect._empty'")]


@DTYPES
@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.filterwarnings("ignore:orthogonalize.*rounding to torch.bfloat16")
def test_computing_changes_no_bit_and_applying_is_undone_to_the_bit(name, dtype):
    model, where = told(name, dtype)
    before, ids = bits(model), torch.tensor([[2, 3, 4, 5], [5, 4, 3, 2]])
    with torch.no_grad():
        logits = model.hf(ids).logits
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
    found = made(name, model, where)
    assert not found.is_empty
    assert same(model, before)
    assert model.ledger == []
    for _ in range(2):  # twice: undoing leaves a model that takes it again
        with applied(model, found), torch.no_grad():
            assert not torch.equal(model.hf(ids).logits, logits)
        assert same(model, before)
        with torch.no_grad():
            assert torch.equal(model.hf(ids).logits, logits)
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


@pytest.mark.parametrize("name", [name for name in MEMBERS if CASES[name][2]])
def test_zero_strength_is_an_empty_change(name):
    model, where = told(name, torch.float32)
    found = made(name, model, where, **CASES[name][2])
    assert found.is_empty
    assert found.changes == {}


@pytest.mark.parametrize("name", MEMBERS)
def test_the_same_call_gives_the_same_bits_and_a_file_gives_them_back(name, tmp_path):
    model, where = told(name, torch.float32)
    one, two = made(name, model, where), made(name, model, where)
    assert one.id == two.id
    one.save(tmp_path / "d.safetensors")
    again = Delta.load(tmp_path / "d.safetensors")
    assert again.id == one.id
    assert again.provenance.as_dict() == json.loads(json.dumps(one.provenance.as_dict(), allow_nan=False))
    apply(model, again)
    undo(model, again)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_provenance_says_how_it_was_made(name):
    model, where = told(name, torch.float32)
    about = made(name, model, where).provenance
    assert about.method == name
    assert about.model == model.fingerprint()
    assert about.dtype == "torch.float32"
    if CASES[name][0] == SETS:
        return
    declared = set(registry[name].options) - {"texts", "seed", "batch_tokens"}
    assert declared <= set(about.options) | {"direction"}, "an option that changes the numbers is not recorded"
    assert about.seed == 0
    assert {"n_parameters", "share", "delta_norm", "weight_norm", "ratio", "by", "why"} <= set(about.notes)
    assert about.notes["why"]


@pytest.mark.parametrize("name", [name for name in MEMBERS if "control" in registry[name].options])
def test_controls_are_as_large_and_other_changes(name):
    model, where = told(name, torch.float32)
    more = {"layers": [1]} if name == "orthogonalize" else {}
    mine, place, change = (made(name, model, where, control=c, **more) for c in ("", "place", "change"))
    assert len({mine.id, place.id, change.id}) == 3
    assert made(name, model, where, control="change", seed=1, **more).id != change.id
    sizes = [edit.size(model, delta) for delta in (mine, place, change)]
    assert sizes[0].n_parameters == sizes[1].n_parameters == sizes[2].n_parameters
    assert sizes[0].features == sizes[1].features == sizes[2].features
    assert set(change.changes) == set(mine.changes)
    if name != "orthogonalize":  # what another direction has in the weights is what it has
        for parameter, one in mine.changes.items():
            assert change.changes[parameter].norm() == pytest.approx(one.norm(), rel=1e-5)
    for one, two in zip(mine.hooks, change.hooks, strict=True):
        assert float(one.values.norm()) == pytest.approx(float(two.values.norm()), rel=1e-5)
    assert change.provenance.options["control"] == "change"
    assert place.provenance.options["control"] == "place"
    assert place.provenance.options["edited"] != mine.provenance.options.get("edited") if name != "surgery" else True


def test_edits_stack_and_come_back_in_reverse_order():
    model = model_of("phi3", torch.bfloat16)
    before, d = bits(model), direction(site="resid_post")
    stack = []
    for step in (
        lambda: edit.surgery(model, d, fraction=0.2),
        lambda: edit.steer(model, d, strength=2.0),
        lambda: edit.ablate_neurons(model, [(1, 2)], kind="mean", texts=TEXTS),
        lambda: edit.surgery(model, d, fraction=0.2),
    ):
        stack.append(step())
        apply(model, stack[-1])
    assert len({delta.provenance.model for delta in stack}) == 4  # each belongs to the model as it then was
    for delta in reversed(stack):
        undo(model, delta)
    assert same(model, before)


def test_a_delta_with_hooks_is_not_exported(tmp_path):
    model = model_of("phi3")
    found = edit.steer(model, direction(site="resid_post"))
    with pytest.raises(wb.core.errors.InputError, match="by a hook, which no checkpoint can hold"):
        found.export(model, tmp_path / "out")
