"""TransformerLens and nnsight views: weights shared, and the user's model and tokenizer as they were."""

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import workbench as wb
from tests.reference.tiny_models import D_VOCAB, tiny_model, tokens
from workbench.core.errors import MissingPackageError
from workbench.trace.hooks import capture, patch
from workbench.trace.views import as_bridge, as_nnsight, clone_structure

# float64, the same sums in another order.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
MLP_OUT = {
    "llama": "model.layers.1.mlp.down_proj.weight",
    "gpt2": "transformer.h.1.mlp.c_proj.weight",
    "gpt_neox": "gpt_neox.layers.1.mlp.dense_4h_to_h.weight",
}


def tokenizer(**special):
    """Words w0 ... w49 are ids 0 ... 49; built in memory, so there is no folder or hub name to load it from again."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(D_VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture(params=["llama", "gpt2", "gpt_neox"])
def model(request):
    return SimpleNamespace(name=request.param, hf=tiny_model(request.param), tokenizer=tokenizer(bos_token="w1", eos_token="w2"))


def bridge_of(model):
    """as_bridge, with the warning it gives for GPT-NeoX checked in a test of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="as_bridge: TransformerLens copied 18 parameters of GPTNeoX")
        return as_bridge(model)


def wrapped(model):
    """A fixture's model with sites and a ledger."""
    return wb.wrap(model.hf, model.tokenizer, name=model.name)


VIEWS = pytest.mark.parametrize("view_of", [bridge_of, as_nnsight], ids=["bridge", "nnsight"])


def logits(model):
    with torch.no_grad():
        return model.hf(tokens()).logits


def logits_expected(model, view):
    """The model's own; a bridge runs transformers' eager attention on Llama, whose softmax is float32 in any model."""
    if model.name != "llama" or not hasattr(view, "run_with_cache"):
        return logits(model)
    eager = clone_structure(model.hf)
    eager.set_attn_implementation("eager")
    return logits(SimpleNamespace(hf=eager))


def logits_of(view):
    """Logits on the same batch through the view's own call."""
    if hasattr(view, "run_with_cache"):
        with torch.no_grad():
            return view(tokens())
    with torch.no_grad(), view.trace(tokens()):
        out = view.output.logits.save()
    return out


def snapshot(model):
    """Everything a wrapper might change in the model, its tokenizer and the random state."""
    hf, words = model.hf, model.tokenizer
    return {
        "parameters": [(name, id(p), p._version, p.data_ptr(), p.requires_grad) for name, p in hf.named_parameters()],
        "buffers": [(name, id(b), b._version) for name, b in hf.named_buffers()],
        "modules": [(name, id(m), type(m), sorted(m.__dict__), m.training) for name, m in hf.named_modules()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules()),
        "config": (hf.config.to_dict(), hf.config._attn_implementation),
        "tokenizer": (
            len(words),
            words.special_tokens_map,
            words.padding_side,
            words.init_kwargs,
            words("w3 w4")["input_ids"],
        ),
        "random": torch.get_rng_state().tolist(),
    }


@VIEWS
def test_the_users_model_and_tokenizer_are_as_they_were(model, view_of):
    before, expected = snapshot(model), logits(model)
    view = view_of(model)
    logits_of(view)
    assert snapshot(model) == before
    assert torch.equal(logits(model), expected)


@VIEWS
def test_the_model_can_be_saved_and_loaded_afterwards(model, view_of, tmp_path):
    expected = logits(model)
    view_of(model)
    model.hf.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens()).logits, expected)


@VIEWS
def test_the_view_computes_what_the_model_computes(model, view_of):
    view = view_of(model)
    torch.testing.assert_close(logits_of(view), logits_expected(model, view), **CLOSE)


@VIEWS
def test_an_edit_of_the_model_is_seen_in_the_view(model, view_of):
    view, before = view_of(model), logits(model)
    with torch.no_grad():
        for name, parameter in model.hf.named_parameters():
            if "query_key_value" not in name:  # the copies that as_bridge warns of
                parameter.mul_(1.1)
    assert not torch.allclose(logits(model), before)
    torch.testing.assert_close(logits_of(view), logits_expected(model, view), **CLOSE)


@VIEWS
def test_an_edit_through_the_view_is_seen_in_the_model(model, view_of):
    view, before = view_of(model), logits(model)
    memory = model.hf.get_parameter(MLP_OUT[model.name]).data_ptr()
    edited = [parameter for parameter in view.parameters() if parameter.data_ptr() == memory]
    assert len(edited) == 1
    with torch.no_grad():
        edited[0].zero_()
    assert not torch.allclose(logits(model), before)
    torch.testing.assert_close(logits_of(view), logits_expected(model, view), **CLOSE)


@VIEWS
def test_a_view_made_while_the_model_is_patched_does_not_keep_the_patch(model, view_of):
    whole = wrapped(model)
    seen = []
    with (
        patch(whole, {"blocks.1.resid_pre": torch.zeros_like, "blocks.1.resid_post": seen.append}),
        capture(whole, ["blocks.0.resid_post"]) as acts,
    ):
        view = view_of(whole)
        seen.clear()
        torch.testing.assert_close(
            logits_of(view), logits_expected(SimpleNamespace(name=model.name, hf=tiny_model(model.name)), view), **CLOSE
        )
    torch.testing.assert_close(logits_of(view), logits_expected(model, view), **CLOSE)
    assert not seen
    assert not acts


@pytest.mark.parametrize("site", ["blocks.1.resid_pre", "blocks.1.resid_post"])
def test_a_clone_has_none_of_the_hooks_that_were_on_the_model(site):
    model = wb.wrap(tiny_model("gpt2"), tokenizer(), name="gpt2")
    with patch(model, {site: torch.zeros_like}):
        for module in clone_structure(model.hf).modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert not module._forward_pre_hooks_with_kwargs
        assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules()) == 1


def test_hooks_of_other_libraries_stay_in_a_clone():
    hf = tiny_model("gpt2")
    hf.transformer.h[0].register_forward_hook(max)
    assert list(clone_structure(hf).transformer.h[0]._forward_hooks.values()) == [max]


@VIEWS
def test_no_weight_is_copied(view_of):
    for name in ("llama", "gpt2"):
        model = SimpleNamespace(hf=tiny_model(name), tokenizer=tokenizer(bos_token="w1", eos_token="w2"))
        view = view_of(model)
        ours = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}
        assert {p.untyped_storage().data_ptr() for p in view.parameters()} == ours


def test_the_bridge_reads_value_vectors_and_activations_by_name(model):
    bridge = bridge_of(model)
    assert (bridge.cfg.dtype, bridge.cfg.device) == (torch.float64, "cpu")
    weight = model.hf.get_parameter(MLP_OUT[model.name])
    assert torch.equal(bridge.blocks[1].mlp.W_out, weight if model.name == "gpt2" else weight.T)
    _, cache = bridge.run_with_cache(tokens())
    assert cache["blocks.1.hook_resid_post"].shape == (3, 7, 32)
    assert cache["blocks.1.attn.hook_pattern"].shape == (3, 4, 7, 7)


def test_gpt_neox_warns_of_the_query_key_value_weights_it_cannot_share():
    model = SimpleNamespace(hf=tiny_model("gpt_neox"), tokenizer=tokenizer(bos_token="w1", eos_token="w2"))
    # three layers, each a weight and a bias of q, k and v
    with pytest.warns(UserWarning, match="TransformerLens copied 18 parameters of GPTNeoXForCausalLM.*make a new one"):
        as_bridge(model)


@pytest.mark.parametrize("special", [{}, {"bos_token": "w1", "eos_token": "w2"}, {"eos_token": "w2"}], ids=str)
def test_text_goes_through_the_bridge_with_and_without_special_tokens(special):
    model = SimpleNamespace(hf=tiny_model("gpt2"), tokenizer=tokenizer(**special))
    bridge = as_bridge(model)
    expected = [[1, 5, 6, 7]] if "bos_token" in special else [[5, 6, 7]]
    assert bridge.to_tokens("w5 w6 w7").tolist() == expected
    with torch.no_grad():
        torch.testing.assert_close(bridge("w5 w6 w7"), model.hf(torch.tensor(expected)).logits, **CLOSE)


@pytest.mark.parametrize("special", [{}, {"bos_token": "w1", "eos_token": "w2"}], ids=str)
def test_text_goes_through_nnsight_with_and_without_special_tokens(special):
    model = SimpleNamespace(hf=tiny_model("llama"), tokenizer=tokenizer(**special))
    view = as_nnsight(model)
    with torch.no_grad(), view.trace("w5 w6 w7"):
        hidden = view.model.layers[1].output.save()
    assert hidden.shape == (1, 3, 32)


def test_a_clone_has_modules_of_its_own_and_the_same_parameters(model):
    clone = clone_structure(model.hf)
    for name, parameter in model.hf.named_parameters():
        assert clone.get_parameter(name) is parameter
    assert all(a is b for a, b in zip(clone.buffers(), model.hf.buffers(), strict=True))
    assert not {id(m) for m in clone.modules()} & {id(m) for m in model.hf.modules()}
    assert clone.config is not model.hf.config


@pytest.mark.parametrize(
    ("view_of", "package"),
    [(as_bridge, "transformer_lens.model_bridge"), (as_nnsight, "nnsight.modeling.transformers")],
)
def test_a_missing_package_says_how_to_install_it(monkeypatch, view_of, package):
    monkeypatch.setitem(sys.modules, package, None)
    name = package.split(".")[0].replace("_", "-")
    with pytest.raises(MissingPackageError, match=f"{view_of.__name__} needs the package '{name}': pip install {name}"):
        view_of(SimpleNamespace(hf=None, tokenizer=None))
