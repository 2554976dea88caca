"""Sites against the arithmetic of the model itself, for every way architectures store weights."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PretrainedConfig, PreTrainedModel

from tests.reference.mlp import rows_times, sum_of_vectors
from tests.reference.tiny_models import CONFIGS, D_MLP, D_MODEL, D_VOCAB, N_HEADS, N_KV_HEADS, tiny_model, tokens
from workbench.core.errors import InputError, ModelError, ShapeError, UnknownNameError
from workbench.load.sites import Sites
from workbench.trace.hooks import capture

PARALLEL = ("gpt_neox", "gptj", "falcon")  # attention and MLP read the same residual stream
UNGATED = ("gpt2", "gpt_neox", "gpt_neox_sequential", "gptj", "falcon")
GROUPED = ("llama", "gemma2", "qwen3", "olmo", "olmo2", "phi3")
NORM_BEHIND = ("gemma2", "olmo2")  # a norm between the sublayer and the residual stream
LAYER = 1

# float64, sums of at most 48 products in another order than BLAS takes.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}

shared_model = cache(tiny_model)  # for tests that only read


@pytest.fixture(scope="module", params=[name for name in CONFIGS if name != "opt"])  # see test_hooks for OPT
def tiny(request):
    """One model of each architecture: name, hf, sites, and all its activations on one batch."""
    hf = tiny_model(request.param)
    model = SimpleNamespace(name=request.param, hf=hf, sites=Sites(hf))
    components = [f"blocks.{LAYER}.{part}" for part in ("attn", "attn.o", "mlp.out", "attn.hook_in")]
    with capture(model, [*model.sites.names(), *components]) as model.acts, torch.no_grad():
        model.logits = hf(tokens()).logits
    return model


def site(tiny, name):
    return tiny.acts[f"blocks.{LAYER}.{name}"].numpy()


def bias_of(tiny, component):
    bias = tiny.sites.module(f"blocks.{LAYER}.{component}").bias
    return None if bias is None else bias.detach().numpy()


# --- names ------------------------------------------------------------------------------------------------------------


def test_paths_are_those_of_transformer_lens(tiny):
    parts = ("", ".mlp.in", ".mlp.out", ".attn", ".attn.o", ".ln1")
    names = ["embed", "ln_final", "unembed", *(f"blocks.{LAYER}{part}" for part in parts)]
    names = [name for name in names if not (tiny.name == "phi3" and name.endswith("mlp.in"))]  # a part of gate_up_proj
    names = [name for name in names if not (tiny.name == "olmo2" and name.endswith("ln1"))]  # has none
    for name in names:
        assert tiny.sites.path(name) == tiny.sites._adapter.translate_transformer_lens_path(name)
        assert tiny.sites.module(name) is tiny.hf.get_submodule(tiny.sites.path(name))


@pytest.mark.parametrize(
    ("architecture", "path"),
    [
        ("llama", "model.layers.1.mlp.down_proj"),
        ("gpt2", "transformer.h.1.mlp.c_proj"),
        ("gpt_neox", "gpt_neox.layers.1.mlp.dense_4h_to_h"),
        ("opt", "model.decoder.layers.1.fc2"),
    ],
)
def test_path_and_parameter_by_hand(architecture, path):
    sites = Sites(shared_model(architecture))
    assert sites.path("blocks.1.mlp.out") == path
    assert sites.parameter("blocks.1.mlp.out") == f"{path}.weight"
    assert sites.parameter("blocks.1.mlp.out", "bias") == f"{path}.bias"


def test_names_are_the_sites_in_forward_order_and_have_the_stated_shape(tiny):
    names = tiny.sites.names()
    absent = {"resid_mid"} if tiny.name in PARALLEL else set()
    absent |= {"mlp.pre_linear"} if tiny.name in UNGATED else set()
    every = ["resid_pre", "attn.hook_z", "attn_out", "resid_mid", "mlp_in"]
    every += ["mlp.pre", "mlp.pre_linear", "mlp.post", "mlp_out", "resid_post"]
    blocks = [f"blocks.{layer}.{short}" for layer in range(3) for short in every if short not in absent]
    assert names == ["embed", *blocks, "ln_final", "unembed"]
    d_head = tiny.sites.head(0, 0, "q").read(tiny.hf).shape[0]
    size = {"d_model": D_MODEL, "d_mlp": D_MLP, "d_vocab": D_VOCAB, "n_heads*d_head": N_HEADS * d_head}
    for name in names:
        assert tiny.sites[name].name == name
        assert tiny.acts[name].shape == (3, 7, size[tiny.sites[name].shape.split()[-1]]), name


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("blocks.2.hook_resid_post", "blocks.2.resid_post"),
        ("blocks.2.hook_resid_mid", "blocks.2.resid_mid"),
        ("blocks.2.hook_mlp_out", "blocks.2.mlp_out"),
        ("blocks.2.mlp.hook_post", "blocks.2.mlp.post"),
        ("blocks.2.mlp.hook_in", "blocks.2.mlp_in"),
        ("ln_final.hook_out", "ln_final"),
    ],
)
def test_transformer_lens_spellings_are_the_same_site(spelling, canonical):
    sites = Sites(shared_model("llama"))
    assert sites[spelling] == sites[canonical]


def test_at_takes_the_layer_apart():
    sites = Sites(shared_model("llama"))
    assert sites.at("hook_resid_post", layer=2) == sites["blocks.2.resid_post"]


def test_a_component_is_the_site_of_its_output():
    sites = Sites(shared_model("llama"))
    assert (sites["blocks.2.mlp.out"].module, sites["blocks.2.mlp.out"].side) == (
        "model.layers.2.mlp.down_proj",
        "output",
    )
    assert sites["blocks.2.mlp.out.hook_in"].side == "input"
    assert sites["blocks.2.attn.hook_q"].module == "model.layers.2.self_attn.q_proj"


def test_tied_weights_have_the_name_they_have_in_named_parameters():
    hf = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA, tie_word_embeddings=True))
    assert Sites(hf).parameter("unembed") == "model.embed_tokens.weight"
    assert "lm_head.weight" not in dict(hf.named_parameters())


LLAMA = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


# --- activations ------------------------------------------------------------------------------------------------------


def test_the_residual_stream_adds_up(tiny):
    acts, previous = tiny.acts, None
    for layer in range(3):
        pre, post = acts[f"blocks.{layer}.resid_pre"], acts[f"blocks.{layer}.resid_post"]
        attn, mlp = acts[f"blocks.{layer}.attn_out"], acts[f"blocks.{layer}.mlp_out"]
        torch.testing.assert_close(post, pre + attn + mlp, **CLOSE)
        if tiny.name not in PARALLEL:
            torch.testing.assert_close(acts[f"blocks.{layer}.resid_mid"], pre + attn, **CLOSE)
        assert previous is None or torch.equal(pre, previous)
        previous = post


def test_the_lens_at_the_last_layer_gives_the_logits(tiny):
    with torch.no_grad():
        lens = tiny.sites.logits(tiny.acts["blocks.2.resid_post"])
    assert torch.equal(lens, tiny.logits)
    assert torch.equal(tiny.acts["unembed"], tiny.logits) == (tiny.name != "gemma2")  # 2 tanh(x / 2) comes after


def test_value_vectors_times_coefficients_are_the_mlp_output(tiny):
    values = tiny.sites.value_vectors(LAYER).read(tiny.hf).numpy()
    assert values.shape == (D_MLP, D_MODEL)
    out = sum_of_vectors(site(tiny, "mlp.post"), values, bias_of(tiny, "mlp.out"))
    np.testing.assert_allclose(site(tiny, "mlp.out"), out, **CLOSE)
    if tiny.name not in NORM_BEHIND:
        np.testing.assert_allclose(site(tiny, "mlp_out"), out, **CLOSE)


def test_rows_times_mlp_input_are_the_pre_activations(tiny):
    x = site(tiny, "mlp_in")
    if tiny.name in UNGATED:
        rows = tiny.sites.in_rows(LAYER).read(tiny.hf).numpy()
        np.testing.assert_allclose(site(tiny, "mlp.pre"), rows_times(x, rows, bias_of(tiny, "mlp.in")), **CLOSE)
        return
    pairs = {"mlp.pre": ("gate", tiny.sites.gate_rows), "mlp.pre_linear": ("in", tiny.sites.up_rows)}
    for name, (component, rows_of) in pairs.items():
        bias = None if tiny.name == "phi3" else bias_of(tiny, f"mlp.{component}")
        rows = rows_of(LAYER).read(tiny.hf).numpy()
        assert rows.shape == (D_MLP, D_MODEL)
        np.testing.assert_allclose(site(tiny, name), rows_times(x, rows, bias), **CLOSE)
    assert tiny.sites.in_rows(LAYER) == tiny.sites.up_rows(LAYER)
    act = tiny.hf.get_submodule(tiny.sites.path(f"blocks.{LAYER}.mlp")).__dict__["_modules"]
    act = act.get("act_fn") or act["activation_fn"]
    post = act(tiny.acts[f"blocks.{LAYER}.mlp.pre"]) * tiny.acts[f"blocks.{LAYER}.mlp.pre_linear"]
    torch.testing.assert_close(tiny.acts[f"blocks.{LAYER}.mlp.post"], post, **CLOSE)


# --- heads ------------------------------------------------------------------------------------------------------------


def test_head_columns_times_z_are_the_attention_output(tiny):
    z = site(tiny, "attn.hook_z")
    d_head = z.shape[-1] // N_HEADS
    bias = bias_of(tiny, "attn.o")
    total = np.zeros((3, 7, D_MODEL)) + (0.0 if bias is None else bias)
    for head in range(N_HEADS):
        columns = tiny.sites.head(LAYER, head, "o").read(tiny.hf).numpy()
        assert columns.shape == (D_MODEL, d_head)
        total += sum_of_vectors(z[..., head * d_head : (head + 1) * d_head], columns.T, None)
    np.testing.assert_allclose(site(tiny, "attn"), total, **CLOSE)
    if tiny.name not in NORM_BEHIND:
        np.testing.assert_allclose(site(tiny, "attn_out"), total, **CLOSE)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_editing_the_rows_of_a_head_changes_this_head_alone(tiny, part):
    """The layout is right if the model itself says so: other heads' z keep their values."""
    if tiny.name == "olmo2" and part != "v":
        pytest.skip("OLMo-2 norms q and k over all heads together, so one head moves the others; see the test by hand")
    head, name = 2, f"blocks.{LAYER}.attn.hook_z"
    where = tiny.sites.head(LAYER, head, part)
    assert where.read(tiny.hf).shape == (tiny.acts[name].shape[-1] // N_HEADS, D_MODEL)
    saved = where.read(tiny.hf)
    where.view(tiny.hf).mul_(-1.7)
    with capture(tiny, [name]) as acts, torch.no_grad():
        tiny.hf(tokens())
    where.view(tiny.hf).copy_(saved)
    moved = (acts[name] - tiny.acts[name]).view(3, 7, N_HEADS, -1).abs().amax((0, 1, 3)) > 1e-6
    group = {2, 3} if tiny.name in GROUPED else {0, 1, 2, 3} if tiny.name == "falcon" else {2}
    assert set(moved.nonzero().flatten().tolist()) == ({2} if part == "q" else group)


def expected_rows(name, hf, head, part):
    """[d_head, d_model] of one head, written from the architecture's own attention code."""
    which = "qkv".index(part)
    kv = head if part == "q" else head * N_KV_HEADS // N_HEADS
    if name == "gpt2":
        return hf.transformer.h[LAYER].attn.c_attn.weight.T.unflatten(0, (3, N_HEADS, -1))[which, head]
    if name.startswith("gpt_neox"):
        return hf.gpt_neox.layers[LAYER].attention.query_key_value.weight.unflatten(0, (N_HEADS, 3, -1))[head, which]
    if name == "phi3":
        rows = hf.model.layers[LAYER].self_attn.qkv_proj.weight.split([D_MODEL, D_MODEL // 2, D_MODEL // 2])[which]
    else:
        rows = getattr(hf.model.layers[LAYER].self_attn, f"{part}_proj").weight
    return rows.unflatten(0, (N_HEADS if part == "q" else N_KV_HEADS, -1))[kv]


@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize("head", range(N_HEADS))
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "olmo", "olmo2", "phi3"])
def test_rows_of_a_head_by_hand(name, head, part):
    hf = shared_model(name)
    got = Sites(hf).head(LAYER, head, part).read(hf)
    assert torch.equal(got, expected_rows(name, hf, head, part))


def test_neurons_of_an_mlp_without_a_module_of_its_own():
    hf = tiny_model("opt")
    sites = Sites(hf)
    layer = hf.model.decoder.layers[1]
    assert torch.equal(sites.in_rows(1).read(hf), layer.fc1.weight)
    assert torch.equal(sites.value_vectors(1).read(hf), layer.fc2.weight.T)
    assert (sites["blocks.1.mlp_in"].module, sites["blocks.1.mlp_out"].module) == (
        "model.decoder.layers.1.fc1",
        "model.decoder.layers.1.fc2",
    )


def test_rows_of_the_query_reproduce_the_query_projection():
    """q of head 1 of a Llama: rows times the normed residual stream, plus the bias."""
    hf = tiny_model("llama")
    model = SimpleNamespace(hf=hf, sites=Sites(hf))
    with capture(model, ["blocks.1.ln1", "blocks.1.attn.hook_q"]) as acts, torch.no_grad():
        hf(tokens())
    where = model.sites.head(1, 1, "q")
    bias = hf.model.layers[1].self_attn.q_proj.bias[where.indices()]
    q = rows_times(acts["blocks.1.ln1"].numpy(), where.read(hf).numpy(), bias.detach().numpy())
    np.testing.assert_allclose(acts["blocks.1.attn.hook_q"][..., where.indices()].numpy(), q, **CLOSE)


# --- slices -----------------------------------------------------------------------------------------------------------


def slices(tiny):
    gated = [] if tiny.name in UNGATED else [tiny.sites.gate_rows(LAYER), tiny.sites.up_rows(LAYER)]
    heads = [tiny.sites.head(LAYER, 1, part) for part in "qkvo"]
    return [tiny.sites.value_vectors(LAYER), tiny.sites.in_rows(LAYER), *heads, *gated]


def test_a_slice_can_be_written_as_indices_of_the_hf_parameter(tiny):
    for where in slices(tiny):
        parameter = dict(tiny.hf.named_parameters())[where.parameter]
        picked = parameter.index_select(where.dim, where.indices())
        assert torch.equal(where.read(tiny.hf), picked.T if where.transposed else picked)
        assert torch.equal(where.of(parameter.detach() + 1), where.read(tiny.hf) + 1)
        assert where.of(torch.ones_like(parameter, dtype=torch.bool)).shape == where.read(tiny.hf).shape


def test_view_shares_memory_and_read_does_not(tiny):
    for where in slices(tiny):
        before = where.read(tiny.hf)
        where.view(tiny.hf).add_(1.0)
        assert torch.equal(where.read(tiny.hf), before + 1.0)
        where.view(tiny.hf).copy_(before)


def test_of_refuses_a_tensor_of_another_parameter():
    where = Sites(shared_model("llama")).value_vectors(0)
    with pytest.raises(ShapeError, match=r"shape \(48, 32\), but model.layers.0.mlp.down_proj.weight has \(32, 48\)"):
        where.of(torch.zeros(48, 32))


# --- errors, and leaving the model alone ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "name", "error", "message"),
    [
        ("llama", "blocks.1.resid_pots", UnknownNameError, "Did you mean 'blocks.1.resid_post'"),
        ("llama", "resid_post", UnknownNameError, "needs a layer: 'blocks.0.resid_post'"),
        ("llama", "blocks.3.resid_post", InputError, "LlamaForCausalLM has layers 0 to 2"),
        ("llama", "blocks.-1.resid_post", InputError, "'blocks.-1.resid_post': LlamaForCausalLM has layers 0 to 2"),
        ("llama", "blocks.1.hook_mlp_in", UnknownNameError, "'blocks.1.resid_mid' here; .* is 'blocks.1.mlp_in'"),
        ("llama", "hook_in", UnknownNameError, "unknown site 'hook_in'"),
        ("gpt_neox", "blocks.1.resid_mid", UnknownNameError, "GPTNeoXForCausalLM reads or writes this alone"),
        ("gpt2", "blocks.1.mlp.pre_linear", UnknownNameError, "ungated MLPs no pre_linear.*It has: embed, blocks.1"),
        ("gpt_neox", "blocks.1.attn.hook_q", ModelError, "interleaved by head.*sites.head"),
    ],
)
def test_a_name_that_is_not_there_says_what_is(architecture, name, error, message):
    with pytest.raises(error, match=message):
        Sites(shared_model(architecture))[name]


@pytest.mark.parametrize(
    ("architecture", "ask", "error", "message"),
    [
        ("llama", lambda s: s.head(0, 4, "q"), InputError, "head 4 does not exist; LlamaForCausalLM has heads 0 to 3"),
        ("llama", lambda s: s.head(0, -1, "q"), InputError, "head -1 does not exist"),
        ("llama", lambda s: s.gate_rows(-1), InputError, "has layers 0 to 2"),
        ("llama", lambda s: s.head(3, 0, "q"), InputError, "has layers 0 to 2"),
        ("llama", lambda s: s.head(0, 0, "z"), UnknownNameError, "unknown part of a head 'z'.*k, o, q, v"),
        ("gpt2", lambda s: s.gate_rows(0), ModelError, "gate_rows: the MLP of GPT2LMHeadModel has no gate"),
        ("gpt2", lambda s: s.up_rows(0), ModelError, "up_rows: the MLP of GPT2LMHeadModel has no gate"),
        ("gpt2", lambda s: s.value_vectors(3), InputError, "has layers 0 to 2"),
        ("phi3", lambda s: s.parameter("blocks.0.mlp.gate"), ModelError, "part of the fused module"),
        ("llama", lambda s: s.parameter("blocks.0.mlp"), ModelError, r"\(LlamaMLP\) has no parameter 'weight'"),
    ],
)
def test_weights_that_are_not_there_say_why(architecture, ask, error, message):
    with pytest.raises(error, match=message):
        ask(Sites(shared_model(architecture)))


def test_mixture_of_experts_has_no_neuron_sites_and_says_so():
    config = MixtralConfig(**LLAMA, num_local_experts=2)
    sites = Sites(AutoModelForCausalLM.from_config(config))
    assert "blocks.0.mlp_out" in sites.names()
    assert not [name for name in sites.names() if ".mlp." in name]
    with pytest.raises(ModelError, match=r"no single module 'blocks.0.mlp.out' \(mixture of experts"):
        sites.value_vectors(0)


class OddConfig(PretrainedConfig):
    model_type = "odd"


class OddForCausalLM(PreTrainedModel):
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(2, 2)


def test_an_architecture_without_adapter_says_what_still_works():
    with pytest.raises(ModelError, match=r"no adapter for OddForCausalLM .*'odd'.*HF parameter name still does"):
        Sites(OddForCausalLM(OddConfig())).names()


class LlamaAdapted(PreTrainedModel):
    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.base = AutoModelForCausalLM.from_config(config)


def test_a_wrapped_model_is_refused():
    with pytest.raises(ModelError, match=r"LlamaAdapted has no module 'model.layers'.*Pass the plain"):
        Sites(LlamaAdapted(LlamaConfig(**LLAMA))).names()


def test_asking_changes_nothing(tiny):
    hf = tiny_model(tiny.name)
    before = snapshot(hf)
    sites = Sites(hf)
    asked = SimpleNamespace(name=tiny.name, sites=sites)
    assert sites.names()
    assert slices(asked)
    assert snapshot(hf) == before


def snapshot(hf):
    """Everything a wrapper might change: parameters by name, identity and version, modules, config, random state."""
    return {
        "parameters": [(name, id(p), p._version, p.data_ptr()) for name, p in hf.named_parameters()],
        "modules": [(name, id(m), sorted(m.__dict__), len(m._forward_hooks)) for name, m in hf.named_modules()],
        "config": hf.config.to_dict(),
        "attention": hf.config._attn_implementation,
        "random": torch.get_rng_state().tolist(),
    }
