"""Direct contributions: they sum to the logit difference, and each is what its formula says."""

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from tests.reference import components as truth
from tests.reference.tiny_models import CONFIGS, tiny_model
from tests.tiny import tiny
from workbench.attribute.direct_logits import direct_logit_attribution, frozen_norm
from workbench.core.errors import InputError, ModelError, UnknownNameError
from workbench.load.contrasts import Contrast, Contrasts, encode_contrasts

# These norms compute in float64; the others are float32 in any dtype, which the sum inherits from the model's own number.
EXACT = ("gpt2", "gpt_neox", "gpt_neox_sequential", "gptj", "falcon")


def rows():
    """Prompts of 7, 4 and 6 tokens, the last one's partner of another length."""
    return Contrasts(
        [
            Contrast("a", "what is the color of the sky", "what is the color of the grass", (" blue",), (" green",)),
            Contrast("b", "the sea is very", "the grass is very", (" blue", " and"), (" green",)),
            Contrast("c", "is the sky a sea and", "no sea", (" no", " a", " very"), (" green", " the")),
        ],
        "rows",
    )


def model_of(name):
    return wb.wrap(tiny_model(name), tiny().tokenizer, name=name)


def unembedded(model, site="unembed"):
    """Mean over pairs of the model's own difference of mean logits, before a softcap or scale."""
    seen = {}
    handle = model.sites.module(site).register_forward_hook(lambda m, args, out: seen.update(out=out[0, -1].detach()))
    coded = encode_contrasts(model, rows(), aligned=False)
    found = []
    for row, *answers in zip(coded.clean, coded.correct, coded.incorrect, strict=True):
        model.hf(torch.tensor([row.tokens]))
        found.append(float(truth.mean_logit_difference(seen["out"], *answers)))
    handle.remove()
    return float(np.mean(found))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "opt"])
def test_contributions_sum_to_the_logit_difference(name):
    model = model_of(name)
    found = direct_logit_attribution(model, rows())
    size = np.abs(found.value).sum()
    tolerance = 1e-13 if name in EXACT else 2e-7  # float64's rounding, or float32's (6e-8) in the model's own norm
    assert abs(found.value.sum() - unembedded(model)) <= tolerance * size
    assert found.provenance.notes["largest_gap"] <= 3 * tolerance * size  # of one of three pairs
    assert found.provenance.notes["logit_difference"] == pytest.approx(unembedded(model), rel=1e-12)
    assert len(found) >= 1 + 3 * (4 + 1)  # embedding; heads and MLP of three layers


def test_the_gap_of_a_llama_is_its_float32_norm():
    """With the norms computed in float64 nothing is left of it: the decomposition itself is exact."""
    model = tiny()
    assert direct_logit_attribution(model, rows()).provenance.notes["largest_gap"] > 1e-12
    gain = model.hf.model.norm.weight.detach()
    model.hf.model.norm = nn.RMSNorm(8, eps=model.hf.config.rms_norm_eps, dtype=torch.float64)
    with torch.no_grad():
        model.hf.model.norm.weight.copy_(gain)
    found = direct_logit_attribution(model, rows())
    assert found.provenance.notes["largest_gap"] < 1e-14
    assert abs(found.value.sum() - unembedded(model)) < 1e-14


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_contribution_by_its_formula(name):
    model = tiny() if name == "llama" else model_of("gpt2")
    if name == "gpt2":
        with torch.no_grad():
            model.hf.transformer.ln_f.bias.mul_(0.5).add_(0.1)
    coded = encode_contrasts(model, rows(), aligned=False)
    formula = getattr(truth, f"contributions_{name}")
    pairs = zip(coded.clean, coded.correct, coded.incorrect, strict=True)
    each = [formula(model.hf, row.tokens, *answers) for row, *answers in pairs]
    found = direct_logit_attribution(model, rows())
    expected = {key: np.mean([one[key] for one in each]) for key in each[0]}
    got = {(s, *place): v for s, place, v in zip(found.site, found.places, found.value, strict=True)}
    assert set(got) == set(expected)
    # Llama: the scale is fitted to the norm's float32 output (averaged over 8 features)
    rtol = 1e-6 if name == "llama" else 1e-9
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=rtol, abs=1e-12), key


def test_which_rows_there_are():
    """A bias that does not exist, or is zero, has no row; heads come per query head, also on shared key-value heads."""
    llama = direct_logit_attribution(tiny(), rows())
    assert set(llama.site) == {"embed", "attn.hook_z", "mlp_out"}
    assert llama.values.shape == (2, 4)
    gptj = direct_logit_attribution(model_of("gptj"), rows())
    assert set(gptj.site) == {"embed", "attn.hook_z", "mlp_out", "ln_final.bias", "unembed.bias"}
    assert "attn.o.bias" in direct_logit_attribution(model_of("gpt2"), rows()).site


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_batches_order_and_the_other_prompt(name):
    model = model_of(name)
    plain = direct_logit_attribution(model, rows())
    other = direct_logit_attribution(model, rows().take([2, 0, 1]), batch_tokens=1)
    rtol = 1e-5 if name == "llama" else 1e-9  # float32 norms, float64 rounding
    np.testing.assert_allclose(other.value, plain.value, rtol=rtol, atol=1e-9 if name == "llama" else 1e-13)
    swapped = Contrasts([Contrast(r.id, r.corrupted, r.clean, r.correct, r.incorrect) for r in rows()], "swapped")
    corrupted = direct_logit_attribution(model, rows(), prompt="corrupted")
    np.testing.assert_array_equal(corrupted.value, direct_logit_attribution(model, swapped).value)
    assert not np.allclose(corrupted.value, plain.value)


def test_half_precision_says_how_much_is_rounding():
    model = wb.wrap(tiny_model("llama", dtype=torch.bfloat16), tiny().tokenizer)
    found = direct_logit_attribution(model, rows())
    exact = direct_logit_attribution(wb.wrap(tiny_model("llama"), tiny().tokenizer), rows())
    size = np.abs(exact.value).sum()
    assert 1e-6 * size < found.provenance.notes["largest_gap"] < 0.08 * size  # bfloat16 has 8 bits: 4e-3 a rounding


def test_a_norm_is_read_by_hand():
    """gain (2, 0.5, -1, 3), bias (1, 0, 0, -1); x = (1, 3, 5, 7) has mean 4 and variance (9 + 1 + 1 + 9)/4 = 5."""
    norm = nn.LayerNorm(4, eps=0.25, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 0.5, -1.0, 3.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, 0.0, -1.0]))
    x = torch.tensor([[1.0, 3.0, 5.0, 7.0]], dtype=torch.float64)
    found = frozen_norm(norm, x, norm(x).detach(), name="norm", tolerance=1e-12)
    assert found.centered
    torch.testing.assert_close(found.bias, norm.bias.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.scale * found.gain, norm.weight.detach()[None] / 5.25**0.5, rtol=1e-12, atol=0)
    # <u, J x'> with J = diag(gain) C / sqrt(5.25) and u = e_0: 2 (x'_0 - mean) / sqrt(5.25); x' = (4, 0, 0, 0): 2 * 3
    v = found.transpose(torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64))
    assert float(v[0] @ torch.tensor([4.0, 0.0, 0.0, 0.0], dtype=torch.float64)) == pytest.approx(6 / 5.25**0.5, rel=1e-12)


def test_what_is_no_norm_is_refused():
    model = model_of("gpt2")
    model.hf.transformer.ln_f = nn.Sequential(nn.LayerNorm(32, dtype=torch.float64), nn.Tanh())
    with pytest.raises(ModelError, match=r"'transformer.ln_f' \(Sequential\) is not a layer norm or RMS norm with a fixed gain"):
        direct_logit_attribution(model, rows())


def test_a_stream_with_multipliers_is_refused():
    model = model_of("gpt2")
    handle = model.hf.transformer.h[1].register_forward_hook(lambda m, args, out: out * 0.5)
    with pytest.raises(ModelError, match="the residual stream, from what the blocks add, is missed by"):
        direct_logit_attribution(model, rows())
    handle.remove()
    handle = model.hf.transformer.h[1].attn.register_forward_hook(lambda m, args, out: (out[0] * 0.5, *out[1:]))
    with pytest.raises(ModelError, match="attn_out of layer 1, from its output projection, is missed by"):
        direct_logit_attribution(model, rows())
    handle.remove()
    handle = model.hf.lm_head.register_forward_hook(lambda m, args, out: out * 0.5)
    with pytest.raises(ModelError, match="M, from the contributions, is missed by"):
        direct_logit_attribution(model, rows())
    handle.remove()


def test_nothing_is_left_behind():
    model = tiny()
    direct_logit_attribution(model, rows())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    with pytest.raises(UnknownNameError, match="unknown prompt 'cleen'. Did you mean 'clean'"):
        direct_logit_attribution(model, rows(), prompt="cleen")
    model.hf.train()
    with pytest.raises(InputError, match="training mode"):
        direct_logit_attribution(model, rows())
