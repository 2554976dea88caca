"""The tuned lens: the closed form against a stacked least-squares system, its limits, and its gain on held-out texts."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import lens as truth
from tests.reference.tiny_models import tiny_model
from tests.tiny import WORDS, tiny
from workbench.core.errors import DataError, InputError, MismatchError, NumericsError, UnknownNameError
from workbench.core.numerics import permutation
from workbench.load.batches import collate
from workbench.load.texts import encode_texts
from workbench.probe.lens import logit_lens, stream, unembed
from workbench.probe.translators import TunedLens
from workbench.probe.tuned_lens import tuned_lens


def some_texts(n=30):
    """Texts of 3 to 8 words."""
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS[2:], size=3 + i % 6)) for i in range(n)]


def activations(model, texts):
    """By layer: the stream at every token of the texts that have no special tokens, and the last layer's; one text at a time."""
    found, last = {}, []
    for row in encode_texts(model, texts):
        passed = stream(model, collate([row]))
        last.append(passed.last[0])
        for layer, h in passed.resid.items():
            found.setdefault(layer, []).append(h[0])
    return {layer: torch.cat(parts).numpy() for layer, parts in found.items()}, torch.cat(last).numpy()


def sides(texts, held_out=0.3, seed=0):
    order = permutation(len(texts), seed)
    n = round(held_out * len(texts))
    return [texts[i] for i in sorted(order[n:])], [texts[i] for i in sorted(order[:n])]


@pytest.mark.parametrize("ridge", [0.0, 0.05, 3.0])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_closed_form(name, ridge):
    """rtol of float32, in which the maps are stored (6e-8), times the condition of the system without a ridge."""
    model = tiny() if name == "llama" else wb.wrap(tiny_model("gpt2"), tiny().tokenizer)
    texts = some_texts(60 if name == "gpt2" else 30)
    lens = tuned_lens(model, texts, ridge=ridge, batch_tokens=20)
    found, last = activations(model, sides(texts)[0])
    assert lens.layers == ("embed", *(str(layer) for layer in range(model.n_layers - 1)))
    for i, layer in enumerate(lens.layers):
        matrix, bias = truth.tuned(found[layer], last, ridge)
        if layer == "embed" and ridge == 0:  # 14 words span 8 dimensions, but GPT-2's 32 not: A is not unique, A h is
            matrix = None
        if matrix is not None:
            np.testing.assert_allclose(lens.matrix[i].numpy(), matrix, rtol=1e-5, atol=1e-5 * np.abs(matrix).max())
            np.testing.assert_allclose(lens.bias[i].numpy(), bias, rtol=1e-5, atol=1e-5 * np.abs(bias).max())
        translated = lens.translate(torch.from_numpy(found[layer]), layer=layer).numpy()
        expected = found[layer] @ truth.tuned(found[layer], last, ridge)[0].T + truth.tuned(found[layer], last, ridge)[1]
        np.testing.assert_allclose(translated, expected, atol=1e-5 * np.abs(expected).max(), rtol=1e-5)


def test_the_judgement_by_loops():
    """KL per token of each held-out text, one text and position at a time; the gain is the difference of the two."""
    model, texts = tiny(), some_texts()
    lens = tuned_lens(model, texts, batch_tokens=20)
    judging = sides(texts)[1]
    assert lens.n == len(judging) == 9
    for i, layer in enumerate(lens.layers):
        tuned, plain = [], []
        for row in encode_texts(model, judging):
            passed = stream(model, collate([row]))
            h = passed.resid[layer]
            read, moved = unembed(model, h)[0].numpy(), unembed(model, lens.translate(h, layer=layer))[0].numpy()
            own = passed.logits[0].numpy()
            tuned.append(np.mean([truth.kl(a, b) for a, b in zip(own, moved, strict=True)]))
            plain.append(np.mean([truth.kl(a, b) for a, b in zip(own, read, strict=True)]))
        assert lens.kl[i, 0] == pytest.approx(np.mean(tuned), rel=1e-9)
        assert lens.plain[i, 0] == pytest.approx(np.mean(plain), rel=1e-9)
        assert lens.gain[i, 0] == pytest.approx(np.mean(plain) - np.mean(tuned), rel=1e-9)
        assert lens.gain[i, 1] <= lens.gain[i, 0] <= lens.gain[i, 2]
    assert lens.provenance.tokens == sum(len(row.tokens) for row in encode_texts(model, sides(texts)[0]))


def test_special_tokens_are_neither_fitted_nor_judged(stories):
    """stories260K puts <s> in front, whose stream is of another size; the tokens behind it are as many as there are."""
    texts = ["Once upon a time there was a cat.", "The dog ran home.", "Tom and Lily are friends.", "A big red ball."]
    lens = tuned_lens(stories, texts, layers=[0], held_out=0.25)
    training = encode_texts(stories, sides(texts, 0.25)[0])
    assert all(row.start == 1 for row in training)
    assert lens.provenance.tokens == sum(len(row.tokens) - 1 for row in training)


def test_an_infinite_ridge_is_the_logit_lens_with_the_means_made_equal():
    model, texts = tiny(), some_texts()
    lens = tuned_lens(model, texts, ridge=1e12)
    found, last = activations(model, sides(texts)[0])
    for i, layer in enumerate(lens.layers):
        np.testing.assert_allclose(lens.matrix[i].numpy(), np.eye(8), atol=1e-9)
        np.testing.assert_allclose(lens.bias[i].numpy(), last.mean(0) - found[layer].mean(0), atol=1e-6)


def test_a_linear_model_is_translated_exactly():
    """Blocks that add a fixed matrix times the stream: the last layer is a linear map of every other, so nothing is left."""
    model = tiny(n_layers=3)
    draw = torch.Generator().manual_seed(0)
    for layer in range(3):
        w = 0.3 * torch.randn(8, 8, generator=draw, dtype=torch.float64)

        def linear(module, args, output, w=w):
            h = args[0] @ (torch.eye(8, dtype=torch.float64) + w)
            return (h, *output[1:]) if isinstance(output, tuple) else h

        model.sites.module(f"blocks.{layer}.resid_post").register_forward_hook(linear)
    lens = tuned_lens(model, some_texts(), ridge=0.0)
    assert (lens.plain[:, 0] > 1e-3).all()
    assert (lens.kl[:, 0] < 1e-9).all()  # squares of float32's 6e-8, times the logits' size


def test_it_reads_closer_than_the_logit_lens(root):
    """The organism on questions it was not fitted on: less than half the KL at the embedding, and closer at every layer."""
    model = wb.load(root / "data/organism/full")
    rows = wb.examples("tofu:retain", root=root / "data/tofu-mini")[:120]
    lens = tuned_lens(model, [f"Question: {row.prompt}\nAnswer: {row.response}" for row in rows])
    assert (lens.gain[:, 1] > 0).all()
    assert lens.kl[0, 0] < 0.5 * lens.plain[0, 0]
    frame = lens.frame()
    assert list(frame["layer"]) == ["embed", "0", "1", "2"]
    assert (frame["n"] == 36).all()
    assert frame["gain"].to_numpy() == pytest.approx((frame["plain"] - frame["kl"]).to_numpy())
    assert "closer to the model than the logit lens at 4 of them" in repr(lens)
    table = lens.read(model, (rows[0].prompt, rows[0].response))
    assert table.layers == ("embed", "0", "1", "2", "3")
    plain = logit_lens(model, (rows[0].prompt, rows[0].response))
    np.testing.assert_array_equal(table.kl[-1], plain.kl[-1])  # the last layer is the model, untranslated
    assert table.kl[0].mean() < plain.kl[0].mean()
    assert "tuned_lens, resid_post, norm final" in table._repr_html_()


def test_the_order_of_texts_and_the_batches_do_not_matter():
    model, texts = tiny(), some_texts()
    one, other = (tuned_lens(model, texts, batch_tokens=n) for n in (8, 1000))
    torch.testing.assert_close(one.matrix, other.matrix, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(one.kl, other.kl, rtol=1e-6)


def test_saved_and_loaded(tmp_path):
    model = tiny()
    lens = tuned_lens(model, some_texts(), layers=["embed", 0, 1])
    assert lens.layers == ("embed", "0")  # 1 is the last
    lens.save(tmp_path / "lens.safetensors")
    again = TunedLens.load(tmp_path / "lens.safetensors")
    assert torch.equal(again.matrix, lens.matrix)
    assert torch.equal(again.bias, lens.bias)
    for name in ("kl", "plain", "gain"):
        np.testing.assert_array_equal(getattr(again, name), getattr(lens, name))
    assert (again.layers, again.n, again.provenance) == (lens.layers, lens.n, lens.provenance)
    np.testing.assert_array_equal(again.read(model, "the sky").kl, lens.read(model, "the sky").kl)
    html = again._repr_html_()
    assert html.count("<tr") == 3
    assert "<script" not in html
    assert "http" not in html


def test_bad_input():
    model, texts = tiny(), some_texts()
    for options in ({"ridge": -1.0}, {"held_out": 0.0}, {"held_out": 1.0}, {"ridge": float("nan")}):
        with pytest.raises(InputError, match="expected 0 or more, and above 0 and below 1"):
            tuned_lens(model, texts, **options)
    with pytest.raises(DataError, match="of 1 texts 0 judge, which leaves nothing for one side"):
        tuned_lens(model, texts[:1])
    with pytest.raises(InputError, match="there is no layer to fit; layer 1 is the last and needs no translator"):
        tuned_lens(model, texts, layers=[1])
    with pytest.raises(InputError, match="has layers 0 to 1"):
        tuned_lens(model, texts, layers=[5])
    lens = tuned_lens(model, texts, layers=["embed"])
    with pytest.raises(UnknownNameError, match="unknown layer of the tuned lens '0'"):
        lens.read(model, "the sky", layers=[0])
    other = tiny(seed=1)
    with pytest.raises(MismatchError, match="it was fitted on another model than tiny. Pass other_model=True"):
        lens.read(other, "the sky")
    assert lens.read(other, "the sky", other_model=True).layers == ("embed", "1")
    with torch.no_grad():
        model.hf.model.embed_tokens.weight[4] = torch.nan
    with pytest.raises(NumericsError, match="activations of layer embed: .* are NaN or infinite"):
        tuned_lens(model, texts)
