"""Ablated attention and MLP blocks: what is added is zero or a constant, in the weights or by a hook."""

import pytest
import torch
import transformers
from torch import nn

import workbench as wb
from tests.edit.models import FLOAT32, ROWS, TEXTS, logits, model_of
from tests.reference import edits as truth
from tests.reference.tiny_models import CONFIGS, tokens
from tests.trace.test_views import tokenizer
from workbench import edit
from workbench.core.delta import applied
from workbench.core.errors import InputError, UnknownNameError
from workbench.trace.hooks import capture, patch

ALL = sorted(set(CONFIGS) - {"gpt_neox_sequential"})
SITES = {"attn": ["attn_out"], "mlp": ["mlp_out"], "both": ["attn_out", "mlp_out"]}


@pytest.mark.parametrize("part", ["attn", "mlp", "both"])
@pytest.mark.parametrize("name", ALL)
def test_zero_is_patching_what_is_added_to_zero(name, part):
    model = model_of(name, torch.float32)  # where w + (-w) is zero to the bit; a float64 weight keeps 1e-8 of itself
    found = edit.ablate_layers(model, [1, 0], part=part)
    assert found.provenance.notes["by"] == "weights"
    if name == "opt" and part != "attn":  # its MLP is flat, where no site can be patched
        with applied(model, found):
            assert not any(p.any() for n in (0, 1) for p in model.sites.module(f"blocks.{n}.mlp.out").parameters())
        return
    with patch(model, {f"blocks.{n}.{site}": torch.zeros_like for n in (0, 1) for site in SITES[part]}):
        want = logits(model, tokens())
    with applied(model, found):
        assert torch.equal(logits(model, tokens()), want)


def test_behind_a_norm_that_adds_a_bias_zero_is_a_hook():
    model = model_of("gemma2", torch.float32)
    norm = nn.LayerNorm(32)
    nn.init.normal_(norm.bias)
    model.hf.model.layers[1].post_attention_layernorm = norm
    found = edit.ablate_layers(model, [1])
    assert found.provenance.notes["by"] == "both"
    assert [hook.site for hook in found.hooks] == ["blocks.1.attn_out"]
    assert list(found.changes) == ["model.layers.1.mlp.down_proj.weight"]
    with applied(model, found), capture(model, ["blocks.1.attn_out", "blocks.1.mlp_out"]) as acts, torch.no_grad():
        model.hf(tokens())
    assert not acts["blocks.1.attn_out"].any()
    assert not acts["blocks.1.mlp_out"].any()
    with pytest.raises(InputError, match=r"a hook holds blocks.1.attn_out at zero, and no other constant has norm 0"):
        edit.ablate_layers(model, [1], control="change")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3", "gemma2"])
@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_a_constant_is_that_of_one_row_at_a_time_by_bias_or_by_hook(name, kind):
    model = model_of(name)
    found = edit.ablate_layers(model, [1], kind=kind, texts=TEXTS, seed=1)
    assert found.provenance.notes["by"] == ("hooks" if name in ("phi3", "gemma2") else "weights")
    held = {}
    for site in SITES["both"]:
        module = model.sites.path(f"blocks.1.{site}")
        if kind == "mean":
            held[site] = truth.mean(model.hf, truth.outputs, module, ROWS)
        else:
            at = found.provenance.notes["token"]
            held[site] = truth.outputs(model.hf, module, ROWS[int(at["text"])])[at["position"]]
    with patch(model, {f"blocks.1.{site}": lambda x, v=value: v.expand_as(x) for site, value in held.items()}):
        want = logits(model, tokens())
    with applied(model, found):
        torch.testing.assert_close(logits(model, tokens()), want, **FLOAT32)


def test_a_norm_behind_a_projection_with_a_bias_needs_the_hook():
    config = transformers.Gemma2Config(**{**CONFIGS["gemma2"]().to_dict(), "attention_bias": True})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = transformers.Gemma2ForCausalLM(config).double()
    model = wb.wrap(hf, tokenizer(bos_token="w1", eos_token="w2"))
    found = edit.ablate_layers(model, [1], part="attn", kind="mean", texts=TEXTS)
    assert found.provenance.notes["by"] == "hooks"
    with applied(model, found), capture(model, ["blocks.1.attn_out"]) as acts, torch.no_grad():
        model.hf(tokens())
    want = truth.mean(model.hf, truth.outputs, "model.layers.1.post_attention_layernorm", ROWS)
    torch.testing.assert_close(acts["blocks.1.attn_out"], want.expand(3, 7, 32), **FLOAT32)


def test_control_place_takes_another_layer():
    model = model_of("llama")
    found = edit.ablate_layers(model, [1], control="place", seed=0)
    assert len(found.provenance.options["edited"]) == 1
    assert found.provenance.options["edited"] != [1]
    with pytest.raises(InputError, match="everything there is was chosen"):
        edit.ablate_layers(model, [0, 1, 2], control="place")


def test_refusals():
    model = model_of("llama")
    with pytest.raises(UnknownNameError, match="unknown part of a layer 'attention'. Did you mean 'attn'"):
        edit.ablate_layers(model, [1], part="attention")
    with pytest.raises(InputError, match="layer 3 does not exist; layers are 0 to 2"):
        edit.ablate_layers(model, [3])
    with pytest.raises(InputError, match="layers is empty"):
        edit.ablate_layers(model, [])
    with pytest.raises(InputError, match="names one twice"):
        edit.ablate_layers(model, [1, 1])
    with pytest.raises(InputError, match="ablate_layers: kind='mean' takes means over a declared set"):
        edit.ablate_layers(model, [1], kind="mean")
