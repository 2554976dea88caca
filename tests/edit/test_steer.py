"""Steering: what is added where, in which unit, and the bias against the hook."""

import pytest
import torch
import transformers

import workbench as wb
from tests.edit.models import CLOSE, FLOAT32, ROWS, TEXTS, direction, logits, model_of
from tests.reference import edits as truth
from tests.reference.tiny_models import CONFIGS, tokens
from tests.trace.test_views import tokenizer
from workbench import edit
from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError, ModelError, ShapeError, UnknownNameError
from workbench.trace.hooks import capture, patch

MODELS = ["llama", "gpt2", "gpt_neox", "phi3", "gemma2"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out", "mlp_in"])
def test_the_vector_is_added_at_every_position(name, site):
    model, d = model_of(name), direction(site=site)
    place = f"blocks.1.{site}"
    with patch(model, {place: lambda x: x + 2.5 * d.vector.double()}):
        want = logits(model, tokens())
    found = edit.steer(model, d, strength=2.5)
    with applied(model, found):
        torch.testing.assert_close(logits(model, tokens()), want, **FLOAT32)
    assert float((want - logits(model, tokens())).abs().max()) > 0.1
    assert (found.provenance.notes["by"], len(found.hooks)) == ("hooks", 1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_at_resid_mid_the_stream_itself_moves(name):
    model, d = model_of(name), direction(site="resid_mid")
    names = ["blocks.1.resid_mid", "blocks.1.resid_post", "blocks.1.mlp_out"]

    def read():
        with capture(model, names) as acts, torch.no_grad():
            model.hf(tokens())
        return [acts[n] for n in names]

    mid, post, mlp = read()
    with applied(model, edit.steer(model, d, strength=2.5)):
        mid_after, post_after, mlp_after = read()
    want = (2.5 * d.vector.double()).expand_as(mid)
    torch.testing.assert_close(mid_after - mid, want, **FLOAT32)
    torch.testing.assert_close(post_after - post - (mlp_after - mlp), want, **FLOAT32)  # it is kept beside what the MLP adds


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post"])
def test_the_unit_of_the_residual_is_its_mean_norm_over_the_texts(site):
    model, d = model_of("llama"), direction(site=site)
    path, read = {
        "resid_pre": ("model.layers.1", truth.inputs),
        "resid_mid": ("model.layers.1.post_attention_layernorm", truth.inputs),
        "resid_post": ("model.layers.1", truth.outputs),
    }[site]
    norms = torch.cat([read(model.hf, path, row).norm(dim=1) for row in ROWS])
    for batch_tokens in (4, 4096):
        found = edit.steer(model, d, strength=-0.5, unit="residual", texts=TEXTS, batch_tokens=batch_tokens)
        assert found.provenance.notes["mean_norm"] == pytest.approx(float(norms.mean()), rel=1e-9)  # float64 sums
        torch.testing.assert_close(found.hooks[0].values, (-0.5 * norms.mean() * d.vector).float())
    assert found.provenance.notes["tokens"] == 10


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "falcon", "opt"])
@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_the_bias_does_what_the_hook_does(name, site):
    if site == "resid_mid" and name in ("gpt_neox", "falcon"):
        pytest.skip("parallel attention and MLP have no resid_mid")
    model, d = model_of(name), direction(site=site)
    hook, bias = (edit.steer(model, d, strength=2.5, how=how) for how in ("hooks", "bias"))
    (parameter,) = bias.changes
    layer = "0" if site == "resid_pre" else "1"
    assert f".{layer}." in parameter
    assert parameter.endswith("bias")
    with applied(model, hook):
        want = logits(model, tokens())
    with applied(model, bias):
        torch.testing.assert_close(logits(model, tokens()), want, **FLOAT32)
    assert bias.provenance.notes["by"] == "weights"
    assert bias.hooks == ()


def test_where_a_bias_would_not_be_exact_it_is_refused_with_the_reason():
    with pytest.raises(ModelError, match=r"blocks.0.resid_pre: only the embeddings are written before layer 0"):
        edit.steer(model_of("gpt2"), direction(site="resid_pre", layer=0), how="bias")
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.down_proj of Phi3ForCausalLM has no bias to hold the vector"):
        edit.steer(model_of("phi3"), direction(site="resid_post"), how="bias")
    with pytest.raises(ModelError, match=r"blocks.1.mlp_in: no bias is added there; it works for resid_post"):
        edit.steer(model_of("gpt2"), direction(site="mlp_in"), how="bias")
    config = transformers.Gemma2Config(**{**CONFIGS["gemma2"]().to_dict(), "attention_bias": True})
    with torch.random.fork_rng():
        model = wb.wrap(transformers.Gemma2ForCausalLM(config).double(), tokenizer(bos_token="w1", eos_token="w2"))
    with pytest.raises(
        ModelError, match=r"a norm .model.layers.1.post_attention_layernorm. follows model.layers.1.self_attn.o_proj"
    ):
        edit.steer(model, direction(site="resid_mid"), how="bias")


def test_what_no_rule_foresees_is_measured():
    model = model_of("gpt2")
    block = model.hf.transformer.h[1]
    handle = block.mlp.register_forward_hook(lambda m, args, out: 2 * out)  # something between the bias and the stream
    with pytest.raises(ModelError, match=r"how='bias' would not be exact in GPT2LMHeadModel: with the bias, logits differ"):
        edit.steer(model, direction(site="resid_post"), strength=5.0, how="bias")
    handle.remove()


def test_directions_of_neurons_and_heads_steer_them():
    for site, width in (("mlp.post", 48), ("attn.hook_z", 32)):
        model, d = model_of("gpt2"), direction(site=site, width=width)
        with patch(model, {f"blocks.1.{site}": lambda x, d=d: x + 3 * d.vector.double()}):
            want = logits(model, tokens())
        with applied(model, edit.steer(model, d, strength=3.0)):
            torch.testing.assert_close(logits(model, tokens()), want, **FLOAT32)
        with pytest.raises(ShapeError, match=f"has 31 features, blocks.1.{site} has {width}"):
            edit.steer(model, direction(site=site, width=31))


@pytest.mark.parametrize("site", ["mlp.pre", "mlp.pre_linear"])
def test_a_part_of_a_fused_projection_is_steered_and_measured_alone(site):
    model, d = model_of("phi3"), direction(site=site, width=48)
    place = f"blocks.1.{site}"
    part = slice(0, 48) if site == "mlp.pre" else slice(48, 96)  # Phi-3 gate_up_proj: gate first
    every = torch.cat([truth.outputs(model.hf, "model.layers.1.mlp.gate_up_proj", row)[:, part] for row in ROWS])
    found = edit.steer(model, d, strength=2.0, unit="residual", texts=TEXTS)
    assert found.provenance.notes["mean_norm"] == pytest.approx(float(every.norm(dim=1).mean()), rel=1e-9)
    with patch(model, {place: lambda x: x + 2 * every.norm(dim=1).mean() * d.vector.double()}):
        want = logits(model, tokens())
    with applied(model, found):
        torch.testing.assert_close(logits(model, tokens()), want, **FLOAT32)


def test_controls_keep_the_length():
    model, d = model_of("llama"), direction(site="resid_post")
    mine, place, change = (edit.steer(model, d, strength=2.0, control=c, seed=3) for c in ("", "place", "change"))
    assert mine.hooks[0].site == change.hooks[0].site == "blocks.1.resid_post"
    assert place.hooks[0].site in ("blocks.0.resid_post", "blocks.2.resid_post")
    assert torch.equal(place.hooks[0].values, mine.hooks[0].values)
    assert float(change.hooks[0].values.norm()) == pytest.approx(2.0, rel=1e-6)
    assert abs(float(change.hooks[0].values @ d.vector)) < 1.2  # another direction
    drawn = d.random(seed=3)  # steering along a random direction has another random one as its control
    again = edit.steer(model, drawn, strength=2.0, control="change", seed=3)
    assert abs(float(again.hooks[0].values @ drawn.vector)) < 1.2
    bias = [edit.steer(model, direction(site="resid_pre"), how="bias", control="place", seed=s) for s in range(4)]
    assert {delta.provenance.options["edited"] for delta in bias} == {"blocks.2.resid_pre"}  # layer 0 has no bias before it


def test_refusals():
    model, d = model_of("llama"), direction(site="resid_post")
    with pytest.raises(ShapeError, match=r"the direction has 8 features, blocks.1.resid_post has 32"):
        edit.steer(model, direction(site="resid_post", width=8))
    with pytest.raises(UnknownNameError, match="no module of GPTNeoXForCausalLM reads or writes this alone"):
        edit.steer(model_of("gpt_neox"), direction(site="resid_mid"))
    with pytest.raises(InputError, match="has layers 0 to 2"):
        edit.steer(model, direction(site="resid_post", layer=5))
    with pytest.raises(UnknownNameError, match="unknown unit of strength 'norm'"):
        edit.steer(model, d, unit="norm")
    with pytest.raises(UnknownNameError, match="unknown way to steer 'auto'"):
        edit.steer(model, d, how="auto")
    with pytest.raises(InputError, match="steer: unit='residual' takes means over a declared set; give texts"):
        edit.steer(model, d, unit="residual")
    with pytest.raises(DataError, match="texts is empty"):
        edit.steer(model, d, unit="residual", texts=[])
    with pytest.raises(InputError, match="strength is nan"):
        edit.steer(model, d, strength=float("nan"))
    assert CLOSE["rtol"] < FLOAT32["rtol"]
