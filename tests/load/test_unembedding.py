import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

import workbench as wb
from tests.reference.tiny_models import CONFIGS, tiny_model
from tests.tiny import tiny
from workbench.core.errors import ModelError, UnknownNameError
from workbench.load.unembedding import final_norm, readable, unembedding


def model_of(name, dtype=torch.float64):
    return wb.wrap(tiny_model(name, dtype=dtype), tiny().tokenizer, name=name)


@pytest.mark.parametrize("name", CONFIGS)
def test_gain_and_centering_are_those_of_the_norm(name):
    """f(x) - f(-x) = 2 readable(x) / scale, with scale = rms of what the norm divides: x, or x less its mean.

    rtol: several norms compute in float32 inside.
    """
    model = model_of(name)
    x = 50 * torch.randn(5, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 7
    norm = model.sites.module("ln_final")
    centers = "LayerNorm" in type(norm).__name__
    seen = x - x.mean(-1, keepdim=True) if centers else x
    expected = (norm(x) - norm(-x)) / 2 * seen.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(readable(model, x, norm="final_norm_gain"), expected.detach(), rtol=1e-5, atol=1e-5)
    assert final_norm(model)[1] == centers


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_differences_of_readings_are_differences_of_logits(name):
    """At a fixed scale: for two vectors of one scale the logit lens differs by W_U (readable(x) - readable(y)) / scale."""
    model = model_of(name)
    x = 30 * torch.randn(model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = x.flip(0)  # the same rms, the same mean
    centers = final_norm(model)[1]
    scale = (x - x.mean() if centers else x).square().mean().sqrt()
    read = readable(model, torch.stack([x, y]), norm="final_norm_gain") @ unembedding(model).T
    lens = model.sites.module("unembed")(model.sites.module("ln_final")(torch.stack([x, y])))
    torch.testing.assert_close((read[0] - read[1]) / scale, (lens[0] - lens[1]).detach(), rtol=1e-5, atol=1e-5)


def test_raw_is_the_vector_itself_widened():
    model = model_of("llama", torch.bfloat16)
    x = torch.randn(3, model.d_model).bfloat16()
    assert torch.equal(readable(model, x, norm="raw"), x.float())


def test_half_precision_norms_are_asked_without_rounding():
    model = model_of("gemma2", torch.bfloat16)
    weight = model.sites.module("ln_final").weight.detach().double()
    torch.testing.assert_close(final_norm(model)[0], 1 + weight, rtol=1e-6, atol=1e-6)  # the norm computes in float32


def test_an_odd_width():
    model = model_of("llama")
    odd = tiny_model("llama").model.norm.__class__(7).double()
    with torch.no_grad():
        odd.weight.copy_(torch.arange(1.0, 8.0))
    model.hf.model.norm = odd
    model.hf.config.hidden_size = 7
    torch.testing.assert_close(final_norm(model)[0], torch.arange(1.0, 8.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_unembedding():
    tied, untied = model_of("gpt2"), model_of("llama")
    assert unembedding(tied).data_ptr() == tied.hf.transformer.wte.weight.data_ptr()
    assert unembedding(untied).data_ptr() == untied.hf.lm_head.weight.data_ptr()


def test_refused():
    with pytest.raises(UnknownNameError, match="unknown norm 'final'. Did you mean 'final_norm_gain'"):
        readable(tiny(), torch.zeros(1, 8), norm="final")
    config = OPTConfig(
        vocab_size=50, hidden_size=32, word_embed_proj_dim=16, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"\(50, 16\) does not read the residual stream of width 32 directly; OPTForCausalLM puts"):
        unembedding(wb.wrap(OPTForCausalLM(config), tiny().tokenizer))
