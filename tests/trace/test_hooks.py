"""Capture and patch: what they read and write, and that nothing of them stays."""

from types import SimpleNamespace

import pytest
import torch

from tests.reference.tiny_models import CONFIGS, tiny_model, tokens
from workbench.core.errors import InputError, ModelError, ShapeError, UnknownNameError
from workbench.load.sites import Sites
from workbench.trace.hooks import capture, patch


@pytest.fixture(scope="module", params=[name for name in CONFIGS if name != "opt"])
def tiny(request):
    hf = tiny_model(request.param)
    return SimpleNamespace(name=request.param, hf=hf, sites=Sites(hf))


@pytest.fixture(scope="module")
def llama():
    hf = tiny_model("llama")
    return SimpleNamespace(hf=hf, sites=Sites(hf))


def logits(model):
    with torch.no_grad():
        return model.hf(tokens()).logits


def hooks_left(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


# --- capture ----------------------------------------------------------------------------------------------------------


def test_capture_agrees_with_hidden_states_of_transformers(tiny):
    names = [f"blocks.{layer}.resid_pre" for layer in range(3)] + ["ln_final"]
    with capture(tiny, names) as acts, torch.no_grad():
        states = tiny.hf(tokens(), output_hidden_states=True).hidden_states
    assert list(acts) == names
    for name, state in zip(names, states, strict=True):  # transformers' last hidden state is the normed one
        assert torch.equal(acts[name], state), name


def test_only_what_was_asked_by_the_name_that_was_asked(llama):
    with capture(llama, ["blocks.2.hook_mlp_out", "embed"]) as acts:
        logits(llama)
    assert set(acts) == {"blocks.2.hook_mlp_out", "embed"}


def test_what_is_captured_is_not_what_the_model_computes_in_later():
    """Falcon adds attention to the MLP's output in place; without a copy the capture would hold the sum."""
    hf = tiny_model("falcon")
    model = SimpleNamespace(hf=hf, sites=Sites(hf))
    with capture(model, ["blocks.1.mlp_in", "blocks.1.mlp_out"]) as acts:
        logits(model)
    with torch.no_grad():
        assert torch.equal(acts["blocks.1.mlp_out"], hf.transformer.h[1].mlp(acts["blocks.1.mlp_in"]))


def test_after_several_passes_the_last_one_is_there(llama):
    with capture(llama, ["embed"]) as acts, torch.no_grad():
        llama.hf(tokens())
        llama.hf(tokens()[:2, :4])
    assert torch.equal(acts["embed"], llama.hf.model.embed_tokens(tokens()[:2, :4]).detach())


def test_capture_is_detached_in_the_models_dtype_unless_asked(llama):
    name = "blocks.1.mlp.post"
    with capture(llama, [name]) as plain:
        llama.hf(tokens())
    with capture(llama, [name], dtype=torch.float32, device="cpu", detach=False) as asked:
        llama.hf(tokens())
    assert (plain[name].requires_grad, plain[name].dtype) == (False, torch.float64)
    assert (asked[name].requires_grad, asked[name].dtype, asked[name].device.type) == (True, torch.float32, "cpu")
    assert torch.equal(asked[name], plain[name].float())


def test_gradients_flow_into_a_capture_that_is_not_detached(llama):
    """d (sum of mlp.post) / d gate row 0 is zero for every other neuron's post and not for its own."""
    gate = llama.hf.model.layers[1].mlp.gate_proj.weight
    with capture(llama, ["blocks.1.mlp.post"], detach=False) as acts:
        llama.hf(tokens())
    gradient = torch.autograd.grad(acts["blocks.1.mlp.post"][..., 0].sum(), gate)[0]
    assert gradient[0].abs().min() > 0
    assert not gradient[1:].any()


def test_capture_leaves_the_logits_alone(tiny):
    before = logits(tiny)
    with capture(tiny, tiny.sites.names()):
        assert torch.equal(logits(tiny), before)


def test_a_bare_string_is_refused(llama):
    with pytest.raises(InputError, match=r"Write \['embed'\]"), capture(llama, "embed"):
        pass


def test_a_flattened_activation_is_an_error_not_another_shape():
    hf = tiny_model("opt")
    model = SimpleNamespace(hf=hf, sites=Sites(hf))
    message = r"'blocks.1.mlp.post': 'model.decoder.layers.1.fc2' works on shape \(21, 48\)"
    with pytest.raises(ModelError, match=message), capture(model, ["blocks.1.mlp.post"]):
        logits(model)
    with capture(model, ["blocks.1.resid_post"]) as acts:
        logits(model)
    assert acts["blocks.1.resid_post"].shape == (3, 7, 32)


# --- patch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [lambda x: None, lambda x: x, torch.clone], ids=["none", "identity", "clone"])
def test_a_patch_that_changes_nothing_keeps_every_bit(tiny, same):
    before = logits(tiny)
    with patch(tiny, dict.fromkeys(tiny.sites.names(), same)):
        assert torch.equal(logits(tiny), before)


def test_a_patch_at_any_site_reaches_the_logits(tiny):
    """Sites on both sides of modules, positional and keyword inputs, tensor and tuple outputs."""
    before = logits(tiny)
    for name in tiny.sites.names():
        with patch(tiny, {name: lambda x: 0.5 * x + 0.1}):
            assert not torch.allclose(logits(tiny), before), name
    assert torch.equal(logits(tiny), before)


def test_what_is_patched_in_is_what_the_next_site_reads(tiny):
    """Zero MLP output: the residual stream passes through (in parallel blocks with attention's part added)."""
    names = ["blocks.1.resid_pre", "blocks.1.attn_out", "blocks.1.resid_post"]
    with patch(tiny, {"blocks.1.mlp_out": torch.zeros_like}), capture(tiny, names) as acts:
        logits(tiny)
    pre, attn, post = (acts[name] for name in names)
    torch.testing.assert_close(post, pre + attn, rtol=1e-12, atol=1e-12)  # float64, one addition in another order


@pytest.mark.parametrize("part", ["attn.hook_in", "mlp_in", "mlp.post", "attn.hook_z", "resid_pre", "resid_post"])
def test_a_value_patched_in_is_the_value_captured_inside(tiny, part):
    name = f"blocks.1.{part}"
    value = {}

    def noise(x):
        value["is"] = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
        return value["is"]

    with patch(tiny, {name: noise}), capture(tiny, [name]) as inside:
        logits(tiny)
    assert torch.equal(inside[name], value["is"])


def test_a_capture_around_a_patch_sees_the_original(llama):
    name = "blocks.1.mlp_out"
    with capture(llama, [name]) as clean:
        logits(llama)
    with capture(llama, [name]) as around, patch(llama, {name: torch.zeros_like}), capture(llama, [name]) as inside:
        logits(llama)
    assert torch.equal(around[name], clean[name])
    assert not inside[name].any()


def test_part_of_a_fused_module_is_patched_alone():
    hf = tiny_model("phi3")
    model = SimpleNamespace(hf=hf, sites=Sites(hf))
    names = ["blocks.1.mlp.pre", "blocks.1.mlp.pre_linear", "blocks.1.mlp.post"]
    with capture(model, names) as clean:
        logits(model)
    with patch(model, {"blocks.1.mlp.pre": torch.zeros_like}), capture(model, names) as acts:
        logits(model)
    assert not acts["blocks.1.mlp.pre"].any()
    assert not acts["blocks.1.mlp.post"].any()  # silu(0) = 0
    assert torch.equal(acts["blocks.1.mlp.pre_linear"], clean["blocks.1.mlp.pre_linear"])
    assert clean["blocks.1.mlp.post"].any()


def test_the_result_is_cast_to_the_activations_dtype(llama):
    before = logits(llama)
    name = "blocks.1.resid_post"
    with patch(llama, {name: lambda x: x.float()}), capture(llama, [name]) as acts:
        after = logits(llama)
    assert acts[name].dtype == torch.float64
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)  # float32 rounding of one activation
    assert not torch.equal(after, before)


def test_a_wrong_shape_names_the_site(llama):
    message = r"'blocks.1.mlp.post' returned shape \(3, 48\), but the activation has \(3, 7, 48\)"
    with pytest.raises(ShapeError, match=message), patch(llama, {"blocks.1.mlp.post": lambda x: x[:, 0]}):
        logits(llama)


def test_a_result_that_is_no_tensor_names_the_site(llama):
    with pytest.raises(InputError, match="'embed' returned float"), patch(llama, {"embed": lambda x: 0.0}):
        logits(llama)


# --- nothing stays ----------------------------------------------------------------------------------------------------


def test_hooks_are_gone_on_leaving(llama):
    with patch(llama, {"embed": torch.zeros_like}), capture(llama, ["blocks.0.resid_pre", "blocks.0.resid_post"]):
        assert hooks_left(llama) == 3
    assert hooks_left(llama) == 0


def test_hooks_are_gone_after_an_exception_in_the_body(llama):
    with (
        pytest.raises(RuntimeError, match="stop"),
        capture(llama, llama.sites.names()),
        patch(llama, {"embed": torch.clone}),
    ):
        raise RuntimeError("stop")
    assert hooks_left(llama) == 0


def test_hooks_are_gone_after_an_exception_in_the_forward_pass(llama):
    def fail(x):
        raise RuntimeError("inside")

    before = logits(llama)
    with pytest.raises(RuntimeError, match="inside"), patch(llama, {"blocks.1.mlp_in": fail}):
        logits(llama)
    assert hooks_left(llama) == 0
    assert torch.equal(logits(llama), before)


def test_one_unknown_name_registers_nothing(llama):
    with (
        pytest.raises(UnknownNameError, match="Did you mean 'embed'"),
        capture(llama, ["blocks.0.resid_pre", "embedd"]),
    ):
        pass
    assert hooks_left(llama) == 0
