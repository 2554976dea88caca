"""Rounding to a grid against a search over all grid values, by hand, and its bounds."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.edit.models import bits as bits_of
from tests.edit.models import model_of, same
from tests.reference import attacks as slow
from tests.tiny import tiny
from workbench import edit
from workbench.core.delta import Delta, applied
from workbench.core.errors import InputError, NumericsError, UnknownNameError
from workbench.edit.quantize import round_to_grid

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
SIZES = pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 3), (2, None)])


def by_output(model, name):
    """A weight with one output a row; GPT-2's Conv1D stores its transpose."""
    weight = model.hf.get_parameter(name).detach()
    return weight.T if ".c_" in name else weight


@SIZES
def test_equals_the_search(bits, group):
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[1] = 0
    rounded, step = round_to_grid(rows, bits=bits, group=group)
    truth = torch.tensor([slow.grid(row.tolist(), bits, group) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(rounded, truth, rtol=1e-12, atol=1e-15)  # one product, in another order
    assert (step[1] == 0).all()


def test_by_hand():
    """Three bits: -3 to 3 steps, here of 6 / 3. So 6 5.1 -0.9 1 3 -> 6 6 -0 0 4, the halves 1 / 2 and 3 / 2 to even."""
    rounded, step = round_to_grid(torch.tensor([[6.0, 5.1, -0.9, 1.0, 3.0]]), bits=3)
    assert rounded.tolist() == [[6, 6, 0, 0, 4]]
    assert step.tolist() == [[2] * 5]
    # in groups of 2 the steps are 2, 1/3 and 1
    rounded, step = round_to_grid(torch.tensor([[6.0, 5.1, -0.9, 1.0, 3.0]]), bits=3, group=2)
    assert step[0].tolist() == pytest.approx([2, 2, 1 / 3, 1 / 3, 1])
    assert rounded[0].tolist() == pytest.approx([6, 6, -1, 1, 3])  # -2.7 and 3 steps of 1/3


@DTYPES
@SIZES
def test_no_weight_moves_by_more_than_half_a_step_and_few_values_are_left(dtype, bits, group):
    model = model_of("gpt2", dtype)
    before = bits_of(model)
    found = edit.quantize(model, bits=bits, group=group)
    assert same(model, before)
    levels = 2 ** (bits - 1) - 1
    with applied(model, found):
        for name in found.provenance.options["where"]:
            old = before[name].T if ".c_" in name else before[name]
            new = by_output(model, name)
            for a, b in zip(old, new, strict=True):
                for first in range(0, len(a), group or len(a)):
                    part = slice(first, first + (group or len(a)))
                    # a float64 weight plus a float32 Delta is not the grid value to the last bit
                    apart = 1e-6 if dtype == torch.float64 else 0.0
                    assert int((b[part].sort().values.diff() > apart).sum()) + 1 <= 2**bits - 1
                    step = float(a[part].abs().max()) / levels
                    # half a step, and the rounding of the result to the dtype (of float64, to the Delta's float32)
                    unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
                    assert float((a[part] - b[part]).abs().max()) <= step / 2 + 2 * unit * float(a[part].abs().max())
    assert same(model, before)


def test_a_second_rounding_changes_nothing():
    model = tiny(torch.float32)
    with applied(model, edit.quantize(model, bits=4)):
        again = edit.quantize(model, bits=4)
        moved = max((float(change.dense().abs().max()) for change in again.changes.values()), default=0.0)
        assert moved < 1e-6  # the step is computed from the rounded largest weight: one rounding of float32


def test_more_bits_move_less_and_smaller_groups_too():
    model = tiny()
    norms = [edit.size(model, edit.quantize(model, bits=b)).delta_norm for b in (2, 3, 4, 6, 8)]
    assert all(a > b for a, b in pairwise(norms))
    grouped = [edit.size(model, edit.quantize(model, bits=4, group=g)).delta_norm for g in (None, 4, 2)]
    assert grouped[0] > grouped[1] > grouped[2]


def test_all_linear_weights_but_the_head_and_what_is_named():
    llama, gpt = tiny(), model_of("gpt2")
    linear = edit.quantize(llama).provenance.options["where"]
    assert len(linear) == 2 * 7  # q k v o, gate up down of two layers
    assert not [name for name in linear if "norm" in name or "embed" in name or "lm_head" in name]
    assert len(edit.quantize(gpt).provenance.options["where"]) == 3 * 4  # c_attn, c_proj, c_fc, c_proj of three layers
    assert edit.quantize(llama, ["lm_head.weight"]).provenance.options["where"] == ["lm_head.weight"]
    assert set(edit.quantize(llama, ["model.layers.0.mlp.up_proj.weight"]).changes) == {"model.layers.0.mlp.up_proj.weight"}


def test_a_small_change_is_rounded_away():
    """The attack: what moves weights by less than half a step is gone, but where it crosses a border."""
    model = tiny(torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = model.hf.get_parameter(name).detach()
    plain = edit.quantize(model, [name], bits=4)
    with applied(model, plain):
        kept = weight.clone()
    small = torch.full_like(weight, 1e-6) * (weight.abs() < weight.abs().amax(1, keepdim=True))
    change = Delta.of({name: small}, plain.provenance)
    with applied(model, change), applied(model, edit.quantize(model, [name], bits=4)):
        np.testing.assert_array_equal(weight.numpy(), kept.numpy())


def test_a_file_gives_it_back(tmp_path):
    model = tiny()
    found = edit.quantize(model, bits=4, group=4)
    assert found.provenance.options | {"where": 0} == {"where": 0, "bits": 4, "group": 4}
    assert 0 < found.provenance.notes["largest_error_in_steps"] <= 0.5 + 1e-9
    found.save(tmp_path / "q.safetensors")
    assert Delta.load(tmp_path / "q.safetensors").id == found.id


def test_refusals():
    model = tiny()
    for value in (1, 9, True):
        with pytest.raises(InputError, match="bits is .* expected a whole number from 2 to 8"):
            edit.quantize(model, bits=value)
    with pytest.raises(InputError, match="group is 0, expected a whole number of inputs"):
        edit.quantize(model, group=0)
    with pytest.raises(UnknownNameError, match="unknown weight matrix 'lm_heat.weight'. Did you mean 'lm_head.weight'"):
        edit.quantize(model, ["lm_heat.weight"])
    with pytest.raises(UnknownNameError, match="unknown weight matrix 'model.norm.weight'"):
        edit.quantize(model, ["model.norm.weight"])
    for where in ("lm_head.weight", []):
        with pytest.raises(InputError, match="expected a list of weights"):
            edit.quantize(model, where)
    with torch.no_grad():
        model.hf.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"layers\.0\.mlp\.up_proj\.weight"):
        edit.quantize(model)
