"""Ablated heads: zero against patching, means against one row at a time, the bias against the hook."""

import pytest
import torch

from tests.edit.models import FLOAT32, ROWS, TEXTS, logits, model_of
from tests.reference import edits as truth
from tests.reference.tiny_models import tokens
from tests.reference.units import ARCHITECTURES, weights_of
from workbench import edit
from workbench.core.delta import Delta, applied
from workbench.core.errors import InputError
from workbench.core.records import Provenance
from workbench.trace.changes import activation_change
from workbench.trace.hooks import patch

ALL = ["llama", "gpt2", "gpt_neox", "phi3", "gemma2", "opt"]
PLACES = [(1, 2), (1, 0), (2, 3)]


def width(name):
    return 16 if name == "gemma2" else 8


def features(name, heads):
    d = width(name)
    return [j for head in heads for j in range(d * head, d * head + d)]


@pytest.mark.parametrize("name", ALL)
def test_zero_is_patching_z_to_zero(name):
    model = model_of(name, torch.float32)  # where w + (-w) is zero to the bit; a float64 weight keeps 1e-8 of itself

    def zero(heads):
        def function(z):
            z = z.clone()
            z[..., features(name, heads)] = 0
            return z

        return function

    with patch(model, {"blocks.1.attn.hook_z": zero([0, 2]), "blocks.2.attn.hook_z": zero([3])}):
        want = logits(model, tokens())
    found = edit.ablate_heads(model, PLACES)
    with applied(model, found):
        assert torch.equal(logits(model, tokens()), want)
    assert found.provenance.notes["by"] == "weights"
    assert found.n_touched == 3 * width(name) * 32


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_the_columns_are_those_of_the_head_written_by_hand(name):
    model = model_of(name)
    found = edit.ablate_heads(model, [(1, 2)])
    ((parameter, change),) = found.changes.items()
    touched = {(parameter, i, j) for i, j in change.dense().nonzero().tolist()}
    assert touched == ARCHITECTURES[name](1, 2)["o"] <= weights_of(name, "head", 1, 2)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch_tokens", [4, 4096])
def test_the_mean_is_that_of_one_row_at_a_time(name, batch_tokens):
    model = model_of(name)
    module = truth.ATTN_OUT[name].format(1)
    z = truth.mean(model.hf, truth.inputs, module, ROWS)[features(name, [0, 2])]
    found = edit.ablate_heads(model, PLACES, kind="mean", texts=TEXTS, batch_tokens=batch_tokens)
    if name in ("phi3", "gemma2"):
        assert found.provenance.notes["by"] == "hooks"
        assert found.hooks[0].index.tolist() == features(name, [0, 2])
        torch.testing.assert_close(found.hooks[0].values.double(), z, **FLOAT32)
    else:
        weight = model.hf.get_parameter(f"{module}.weight").detach()
        columns = (weight.T if name == "gpt2" else weight)[:, features(name, [0, 2])]
        torch.testing.assert_close(found.changes[f"{module}.bias"].dense().double(), columns @ z, **FLOAT32)
        assert found.provenance.notes["by"] == "weights"


@pytest.mark.parametrize("kind", ["mean", "resample"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt"])
def test_the_bias_does_what_the_hook_does(name, kind):
    model = model_of(name)
    by_bias = edit.ablate_heads(model, PLACES, kind=kind, texts=TEXTS, seed=3)
    index = {1: features(name, [0, 2]), 2: features(name, [3])}
    held = {}
    for n in index:
        module = truth.ATTN_OUT[name].format(n)
        if kind == "mean":
            held[n] = truth.mean(model.hf, truth.inputs, module, ROWS)[index[n]]
        else:
            at = by_bias.provenance.notes["token"]
            held[n] = truth.inputs(model.hf, module, ROWS[int(at["text"])])[at["position"]][index[n]]
    sites = {n: f"blocks.{n}.attn.hook_z" for n in index}
    hooks = tuple(activation_change(model, sites[n], "set", held[n].float(), index=torch.tensor(index[n])) for n in index)
    with applied(model, Delta({}, Provenance("by hand", model.fingerprint()), hooks)):
        want = logits(model, tokens())
    with applied(model, by_bias):
        torch.testing.assert_close(logits(model, tokens()), want, **FLOAT32)


def test_control_place_takes_other_heads_of_the_same_layers():
    found = edit.ablate_heads(model_of("llama"), PLACES, control="place", seed=2)
    edited = [tuple(p) for p in found.provenance.options["edited"]]
    assert [layer for layer, _ in edited] == [1, 1, 2]
    assert {h for layer, h in edited if layer == 1} == {1, 3}  # the only two others
    assert edited[2][1] != 3


def test_refusals():
    model = model_of("llama")
    with pytest.raises(InputError, match=r"head \(0, 4\) does not exist; layer 0 has heads 0 to 3"):
        edit.ablate_heads(model, [(0, 4)])
    with pytest.raises(InputError, match=r"head \(0, 1\) is named twice"):
        edit.ablate_heads(model, [(0, 1), (0, 1)])
    with pytest.raises(InputError, match="places is empty; name at least one head"):
        edit.ablate_heads(model, [])
    with pytest.raises(InputError, match="ablate_heads: kind='resample' takes means over a declared set"):
        edit.ablate_heads(model, [(0, 1)], kind="resample")
