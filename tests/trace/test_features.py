"""Pooled features: those of one row at a time, whatever the batch, the padding and the number of layers read at once."""

from functools import cache, partial

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import probes as truth
from tests.reference.tiny_models import CONFIGS, D_VOCAB, tiny_model
from tests.tiny import tiny
from workbench.core.errors import DataError, InputError, MemoryPlanError, NumericsError, UnknownNameError
from workbench.load.batches import Encoded, collate
from workbench.trace.features import features
from workbench.trace.hooks import capture, patch

LENGTHS = [(7, 1), (2, 0), (11, 3), (5, 1), (3, 2)]  # tokens, start


def rows():
    g = torch.Generator().manual_seed(3)
    return [Encoded(f"r{i}", torch.randint(1, D_VOCAB, (n,), generator=g).tolist(), start) for i, (n, start) in enumerate(LENGTHS)]


@cache
def model_of(name, dtype=torch.float64):
    return wb.wrap(tiny_model(name, dtype=dtype), tiny().tokenizer, name=name)


def bare(row):
    return row.tokens, row.start


@pytest.mark.parametrize("pool", ["mean", "last", "max"])
@pytest.mark.parametrize("name", CONFIGS)
def test_equal_one_row_at_a_time(name, pool):
    model = model_of(name)
    for bos in (False, True):
        found = features(model, rows(), pool=pool, bos=bos, batch_tokens=20)
        assert list(found) == [("resid_post", layer) for layer in range(3)]
        for layer in (0, 1):
            expected = truth.pooled(model.hf, [bare(row) for row in rows()], layer, pool=pool, bos=bos)
            assert found["resid_post", layer].dtype == torch.float32
            # computed in float64 and rounded once to float32; transformers' rotary tables are float32 and so is OPT's softmax
            np.testing.assert_allclose(found["resid_post", layer], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("pool", ["mean", "last", "max"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt", "gemma2"])
def test_batch_and_padding_change_nothing(name, pool, monkeypatch):
    # float64 overflows in transformers' eager mask of positions that see nothing, which Gemma-2's window makes of padding
    model = model_of(name, torch.float32 if name == "gemma2" else torch.float64)
    asked = {"pool": pool, "sites": ["resid_post", "resid_pre", "attn_out"]}
    together = features(model, rows(), batch_tokens=1000, **asked)
    others = [features(model, rows(), batch_tokens=1, **asked)]
    others.append(features(model, rows()[::-1], batch_tokens=20, **asked))
    others[1] = {place: others[1][place].flip(0) for place in others[1]}
    monkeypatch.setattr("workbench.trace.features.collate", partial(collate, side="left"))
    others.append(features(model, rows(), batch_tokens=1000, **asked))
    for other in others:
        for place in together:
            # float64 sums in another order, rounded to float32; the rotary tables are float32
            np.testing.assert_allclose(other[place], together[place], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_all_at_once_are_one_at_a_time(name):
    """The same bits: reading a site changes nothing, and neither does stopping behind it."""
    model, sites = model_of(name), ["mlp.post", "attn_out", "resid_post"]
    together = features(model, rows(), sites=sites)
    assert list(together) == [(site, layer) for site in sites for layer in range(3)]
    assert together["mlp.post", 0].shape == (5, model.d_mlp)
    for site, layer in together:
        assert torch.equal(features(model, rows(), sites=[site], layers=[layer])[site, layer], together[site, layer])


def test_no_layer_behind_the_last_one_asked_for_is_run_and_never_the_head():
    model, ran = tiny(), []
    for name, module in model.hf.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    read = [Encoded("a", [2, 3, 4], 0), Encoded("b", [2, 3, 4, 5, 6], 0)]
    features(model, read, layers=[0], batch_tokens=1)
    assert "model.layers.0.mlp" in ran
    assert not [name for name in ran if name.startswith(("model.layers.1", "model.norm", "lm_head"))]
    ran.clear()
    features(model, read, batch_tokens=1)
    assert "lm_head" not in ran
    assert ran.count("model.layers.1.mlp") == ran.count("model.layers.0.mlp") == 2  # two batches, one pass each


def test_nothing_stays():
    model = tiny()
    before = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    features(model, [Encoded("a", [2, 3], 0)], layers=[0])
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules()) == 0
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.hf.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    """400 tokens: in bfloat16 the running sum would lose what it adds."""
    model = tiny(torch.float32)
    model.hf.config.max_position_embeddings = 512
    model.hf.to(dtype)
    read = [Encoded("a", [2 + i % 13 for i in range(400)], 1), Encoded("b", [3, 9, 4], 1)]
    with capture(model, ["blocks.1.resid_post"]) as acts, torch.no_grad():
        model.hf(torch.tensor([read[0].tokens]))
    expected = acts["blocks.1.resid_post"][0, 1:].double().mean(0)
    # the same half-precision activations, up to the padded batch's order; float32 sums of 399
    np.testing.assert_allclose(features(model, read[:1])["resid_post", 1][0], expected, rtol=1e-5, atol=1e-6)


def test_by_hand():
    """Activations (1, 5), (2, -1), (6, 2) behind one special token (100, 100): mean (3, 2), last (6, 2), max (6, 5)."""
    model = tiny()
    planted = torch.zeros(2, 4, model.d_model, dtype=torch.float64)
    planted[0, :, :2] = torch.tensor([[100.0, 100], [1, 5], [2, -1], [6, 2]])
    planted[1, :, :2] = torch.tensor([[100.0, 100], [7, 7], [-3, 8], [torch.nan, torch.inf]])  # the last one is padding
    read = [Encoded("a", [2, 3, 4, 5], 1), Encoded("b", [2, 3, 4], 1)]
    expected = {"mean": [[3, 2], [2, 7.5]], "last": [[6, 2], [-3, 8]], "max": [[6, 5], [7, 8]]}
    with patch(model, {"blocks.1.resid_post": lambda x: planted}):
        for pool, values in expected.items():
            assert features(model, read, pool=pool, layers=[1])["resid_post", 1][:, :2].tolist() == values
        # with the special token: (109/4, 106/4), (104/3, 115/3)
        whole = features(model, read, bos=True, layers=[1])["resid_post", 1][:, :2]
        np.testing.assert_allclose(whole, [[27.25, 26.5], [104 / 3, 115 / 3]], rtol=1e-6)  # float32


def test_names_are_canonical_and_repeats_are_read_once():
    found = features(tiny(), [Encoded("a", [2, 3], 0)], sites=["resid_post", "hook_resid_post"], layers=[1, 1])
    assert list(found) == [("resid_post", 1)]
    assert found.tokens == 2
    assert "1 rows, resid_post at 1 places, mean over tokens" in repr(found)
    with pytest.raises(UnknownNameError, match="unknown features .*'resid_mid', 1"):
        found["resid_mid", 1]


def test_refusals(monkeypatch):
    model, read = tiny(), [Encoded("a", [2, 3], 0), Encoded("only special", [0], 1)]
    ran = []
    model.hf.model.embed_tokens.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(UnknownNameError, match=r"unknown site 'blocks.0.resid_pots'. Did you mean 'blocks.0.resid_post'"):
        features(model, read, sites=["resid_post", "resid_pots"])
    with pytest.raises(InputError, match="'ln_final' is not a site of a block"):
        features(model, read, sites=["ln_final"])
    with pytest.raises(InputError, match="layers 0 to 1"):
        features(model, read, layers=[2])
    with pytest.raises(InputError, match=r"sites must be a list of names, got the string 'resid_post'"):
        features(model, read, sites="resid_post")
    for nothing in ({"sites": []}, {"layers": []}):
        with pytest.raises(InputError, match="sites or layers is empty"):
            features(model, read, **nothing)
    with pytest.raises(UnknownNameError, match="unknown pool 'min'"):
        features(model, read, pool="min")
    with pytest.raises(DataError, match="there are no rows"):
        features(model, [])
    with pytest.raises(DataError, match="row 'only special': none of its 1 tokens .* pass bos=True"):
        features(model, read)
    model.hf.train()
    with pytest.raises(InputError, match="training mode"):
        features(model, read[:1])
    assert not ran, "what is wrong is said before the first pass"
    model.hf.eval()
    monkeypatch.setattr("workbench.core.runtime.free_bytes", lambda device: 10)
    with pytest.raises(MemoryPlanError, match="features needs about .* fewer sites or layers"):
        features(model, read[:1])


def test_a_nan_is_named():
    model = tiny()
    read = [Encoded("good", [2, 3, 4], 0), Encoded("bad", [2, 3, 9], 0), Encoded("short", [2, 3], 0)]
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            model.hf.model.embed_tokens.weight[9, 3] = value
        with pytest.raises(NumericsError, match=r"blocks.0.resid_post is NaN or infinite in row 'bad'"):
            features(model, read)
        one = torch.zeros(3, 3, model.d_model, dtype=torch.float64)
        one[1, 0, 2] = value
        bad = patch(tiny_one := tiny(), {"blocks.1.resid_post": lambda x, one=one: one})
        with bad, pytest.raises(NumericsError, match=r"blocks.1.resid_post is NaN or infinite in row 'bad'"):
            features(tiny_one, [*read[:2], Encoded("also", [2, 3, 4], 0)], pool="max" if value > 0 else "mean")


def test_a_site_an_architecture_flattens_says_so():
    from workbench.core.errors import ModelError

    with pytest.raises(ModelError, match="OPT flattens"):
        features(model_of("opt"), rows(), sites=["mlp_in"])
