"""Weights without a direction against activations without it, and what is said where the two differ."""

import warnings

import pytest
import torch
import transformers

import workbench as wb
from tests.edit.models import CLOSE, FLOAT32, bits, direction, logits, model_of
from tests.reference import edits as truth
from tests.reference.tiny_models import CONFIGS, tokens
from tests.trace.test_views import tokenizer
from workbench import edit
from workbench.core.delta import applied
from workbench.core.errors import InputError, ShapeError, UnknownNameError
from workbench.trace.hooks import capture, patch

PRE_NORM = ["llama", "gpt2", "gpt_neox", "gpt_neox_sequential", "phi3", "qwen3", "olmo", "gptj", "opt", "falcon"]
TIED = {"gpt2", "opt", "falcon", "gemma2"}


def untied(name):
    """The tiny model with an unembedding of its own; every parameter random."""
    config = CONFIGS[name]()
    config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = transformers.AutoModelForCausalLM.from_config(config).eval().double()
        with torch.no_grad():
            for p in hf.parameters():
                p.add_(0.3 * torch.randn_like(p))
    return wb.wrap(hf, tokenizer(bos_token="w1", eos_token="w2"), name=name)


def project(vector, strength=1.0):
    return lambda x: x - strength * (x @ vector)[..., None] * vector


def ablated(model, vector, *, strength=1.0, layers=range(3), embed=True):
    """Logits where the direction is taken out of what is written to the stream, by patches of a test."""
    places = [f"blocks.{n}.{site}" for n in layers for site in ("attn_out", "mlp_out")]
    change = project(vector, strength)
    with patch(model, dict.fromkeys((["blocks.0.resid_pre"] if embed else []) + places, change)):
        return logits(model, tokens())


@pytest.mark.parametrize("name", [n for n in PRE_NORM if n != "opt"])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_weights_and_hooks_are_activation_ablation_in_logits(name, strength):
    model, d = untied(name) if name in TIED else model_of(name), direction(site="resid_post")
    r, before = d.vector.double(), logits(model, tokens())
    want = ablated(model, r, strength=strength)
    for how in ("weights", "hooks"):
        found = edit.orthogonalize(model, d, how=how, strength=strength)
        assert found.provenance.notes["by"] == how
        with applied(model, found):
            # float64 models with float32 changes of every weight: 6e-8 of each, three layers deep, in logits of size 10
            torch.testing.assert_close(logits(model, tokens()), want, rtol=1e-4, atol=1e-4)
    assert float((want - before).abs().max()) > 0.5


@pytest.mark.parametrize("name", PRE_NORM)
def test_nothing_writes_the_direction_any_more(name):
    model, d = untied(name) if name in TIED else model_of(name), direction(site="resid_post")
    r = d.vector.double()
    for how in ("weights", "hooks"):
        with applied(model, edit.orthogonalize(model, d, how=how)):
            sites = [f"blocks.{n}.resid_{end}" for n in range(3) for end in ("pre", "post")]
            with capture(model, sites) as acts, torch.no_grad():
                model.hf(tokens())
        for name_, x in acts.items():
            if name != "opt" or name_ != "blocks.2.resid_post":  # OPT's last layer is followed by a norm of its own, outside
                assert float((x @ r).abs().max()) < 1e-5 * float(x.norm(dim=-1).max()), name_  # float32 changes


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_every_weight_against_the_projection_entry_by_entry(name):
    model, d = model_of(name), direction(site="resid_post")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tied embeddings, tested below
        found = edit.orthogonalize(model, d)
    before = bits(model)
    written = {
        "llama": ("embed_tokens", "o_proj", "down_proj"),
        "gpt2": ("wte", "wpe", "c_proj"),
        "gpt_neox": ("embed_in", "attention.dense", "4h_to_h"),
    }
    with applied(model, found):
        for parameter, weight in bits(model).items():
            writes = any(part in parameter for part in written[name])
            assert (parameter in found.changes) == writes
            if not writes:
                assert torch.equal(weight, before[parameter])
            elif weight.ndim == 1:
                want = truth.project(before[parameter][:, None], d.vector, axis=0)[:, 0]
                torch.testing.assert_close(weight, want, **FLOAT32)
            else:
                rows = name == "gpt2" or "embed" in parameter  # [.., d_model]
                torch.testing.assert_close(weight, truth.project(before[parameter], d.vector, axis=int(rows)), **FLOAT32)
    assert all(type(c).__name__ == ("LowRank" if "weight" in n else "Dense") for n, c in found.changes.items())


def test_layers_restrict_it_to_what_they_write():
    model, d = model_of("llama"), direction(site="resid_post")
    want = ablated(model, d.vector.double(), layers=[1], embed=False)
    for how in ("weights", "hooks"):
        found = edit.orthogonalize(model, d, how=how, layers=[1])
        with applied(model, found):
            torch.testing.assert_close(logits(model, tokens()), want, rtol=1e-4, atol=1e-4)  # as above
    assert set(edit.orthogonalize(model, d, layers=[1]).changes) == {
        f"model.layers.1.{m}.{k}" for m in ("self_attn.o_proj", "mlp.down_proj") for k in ("weight", "bias")
    }


def test_tied_embeddings_warn_with_the_size_of_the_effect():
    model, d = model_of("gpt2"), direction(site="resid_post")
    with pytest.warns(UserWarning, match="loses the direction too, .* of its norm. Use how='hooks'"):
        found = edit.orthogonalize(model, d)
    weight, r = model.hf.transformer.wte.weight.detach(), d.vector.double()
    share = float((weight @ r).norm() / weight.norm())
    assert f"{share:.2%}" in found.provenance.notes["gap_causes"][0]
    with applied(model, found):
        weights = logits(model, tokens())
    with applied(model, edit.orthogonalize(model, d, how="hooks")):  # no warning: exact
        hooks = logits(model, tokens())
    # measured on other tokens: of the same size
    assert 0.2 < float((weights - hooks).abs().max() / hooks.std()) / found.provenance.notes["gap"] < 5


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_norms_behind_the_projections_warn_and_hooks_are_exact(name):
    model, d = model_of(name), direction(site="resid_post")
    with pytest.warns(UserWarning, match="a norm .post_attention_layernorm. follows the out-projection and turns what it wrote"):
        edit.orthogonalize(model, d)
    found = edit.orthogonalize(model, d, how="hooks")
    with applied(model, found):
        torch.testing.assert_close(logits(model, tokens()), ablated(model, d.vector.double()), **FLOAT32)


def test_the_gap_of_an_exact_model_is_rounding_and_of_bfloat16_is_said():
    exact = edit.orthogonalize(model_of("llama"), direction(site="resid_post"))
    assert exact.provenance.notes["gap"] < 1e-4
    assert "gap_causes" not in exact.provenance.notes
    with pytest.warns(UserWarning, match="differ by up to 0.2.* Cause: rounding to torch.bfloat16, or something"):
        half = edit.orthogonalize(model_of("llama", torch.bfloat16), direction(site="resid_post"))
    assert half.provenance.notes["gap"] > 0.09  # three layers 32 wide with weights of size 0.3, each rounded by up to 2^-9


def test_tied_embeddings_warn_in_half_precision_too(stories):
    stories.hf.bfloat16()
    with pytest.warns(UserWarning, match="loses the direction too"):  # though rounding alone could make a gap as large
        found = edit.orthogonalize(stories, direction(site="resid_post", width=64))
    assert found.provenance.notes["gap"] < 0.088


def test_controls():
    model, d = model_of("llama"), direction(site="resid_post")
    for how in ("weights", "hooks"):
        change = edit.orthogonalize(model, d, how=how, control="change", seed=5)
        with applied(model, change):
            after = logits(model, tokens())
        (other,) = {tuple(h.values.tolist()) for h in edit.orthogonalize(model, d, how="hooks", control="change", seed=5).hooks}
        assert abs(float(torch.tensor(other) @ d.vector)) < 0.6
        torch.testing.assert_close(after, ablated(model, torch.tensor(other).double()), rtol=1e-4, atol=1e-4)  # as above
        place = edit.orthogonalize(model, d, how=how, layers=[1], control="place", seed=5)
        assert place.provenance.options["edited"] in ([0], [2])
    with pytest.raises(InputError, match="control 'place' needs layers"):
        edit.orthogonalize(model, d, control="place")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit.orthogonalize(model_of("gemma2"), d, control="change")  # the edit itself has warned


def test_refusals():
    model, d = model_of("llama"), direction(site="resid_post")
    with pytest.raises(ShapeError, match="the direction has 8 features, the residual stream 32"):
        edit.orthogonalize(model, direction(width=8))
    with pytest.raises(InputError, match="strength is 1.5, expected 0"):
        edit.orthogonalize(model, d, strength=1.5)
    with pytest.raises(InputError, match="strength is nan"):
        edit.orthogonalize(model, d, strength=float("nan"))
    with pytest.raises(UnknownNameError, match="unknown way to orthogonalize 'hook'. Did you mean 'hooks'"):
        edit.orthogonalize(model, d, how="hook")
    with pytest.raises(InputError, match="layer 7 does not exist"):
        edit.orthogonalize(model, d, layers=[7])
    assert CLOSE["rtol"] < FLOAT32["rtol"]
