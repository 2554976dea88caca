import re

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import concepts as slow
from tests.reference.tiny_models import CONFIGS, tiny_model
from tests.tiny import tiny
from workbench.core.components import Place
from workbench.core.errors import DataError, InputError, MismatchError, NumericsError, UnknownNameError
from workbench.load.unembedding import readable
from workbench.probe.cards import snippets, visible
from workbench.probe.value_vectors import ValueVectors, value_vectors
from workbench.trace.hooks import capture

TEXTS = ["what is the color of the sky", "the sea is very very blue and green", "is a grass a sea", "no no"]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("norm", ["raw", "final_norm_gain"])
def test_every_architecture_against_the_loop(name, norm):
    """Linear, Conv1D, fused and NeoX layouts, tied and untied, by the loop over the vocabulary in float64."""
    model = wb.wrap(tiny_model(name), tiny().tokenizer, name=name)
    found = value_vectors(model, norm=norm, k=4)
    assert (len(found), found.top_ids.shape) == (3 * model.d_mlp, (3 * model.d_mlp, 4))
    weight = model.hf.get_output_embeddings().weight.detach().numpy()
    for at in (0, model.d_mlp + 5, 3 * model.d_mlp - 1):
        layer, neuron = divmod(at, model.d_mlp)
        assert (found.layer[at], found.neuron[at]) == (layer, neuron)
        vector = model.sites.value_vectors(layer).read(model.hf)[neuron]
        read = readable(model, vector[None], norm=norm).detach().numpy()
        top, bottom = slow.extremes(read, weight, 4)[0]
        # rtol: the products are float32
        np.testing.assert_allclose(found.top_logits[at], [x for _, x in top], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.bottom_logits[at], [x for _, x in bottom], rtol=1e-5, atol=1e-5)
        assert found.top_ids[at].tolist() == [j for j, _ in top]
        assert found.bottom_ids[at].tolist() == [j for j, _ in bottom]
        assert found.norm[at] == pytest.approx(float(np.linalg.norm(vector)), rel=1e-6)
        assert found.mean_logit[at] == pytest.approx(float((weight @ read[0]).mean()), rel=1e-4, abs=1e-5)


def by_hand():
    """W_U and value vectors of layer 0 set: token 9 (blue) is (1, 0, ...), 10 (green) is (0, 1, ...), 12 (sea) is (1, 1, ...)."""
    model = tiny(torch.float32)
    with torch.no_grad():
        model.hf.lm_head.weight.zero_()
        for token, features in ((9, (0,)), (10, (1,)), (12, (0, 1))):
            model.hf.lm_head.weight[token, list(features)] = 1.0
        down = model.hf.model.layers[0].mlp.down_proj.weight
        down.zero_()
        down[:2, 3] = torch.tensor([2.0, -1.0])
        model.hf.model.norm.weight.copy_(torch.tensor([1.0, 4, 1, 1, 1, 1, 1, 1]))
    return model


def test_by_hand():
    """v = (2, -1): blue 2, sea 1, then zeros from id 0; green -1. With gain (1, 4): blue 2; green -4, sea 2 - 4 = -2."""
    model = by_hand()
    raw = value_vectors(model, layer=0, k=3)
    assert (raw.top_ids[3].tolist(), raw.top_logits[3].tolist()) == ([9, 12, 0], [2.0, 1.0, 0.0])
    assert (raw.bottom_ids[3].tolist(), raw.bottom_logits[3].tolist()) == ([10, 0, 1], [-1.0, 0.0, 0.0])
    assert raw.norm[3] == pytest.approx(5**0.5)
    assert raw.mean_logit[3] == pytest.approx((2 + 1 - 1) / 16)
    gain = value_vectors(model, layer=0, k=2, norm="final_norm_gain")
    assert (gain.top_ids[3].tolist(), gain.top_logits[3].tolist()) == ([9, 0], [2.0, 0.0])
    assert (gain.bottom_ids[3].tolist(), gain.bottom_logits[3].tolist()) == ([10, 12], [-4.0, -2.0])
    line = raw.frame().iloc[3]
    assert (line["layer"], line["neuron"], line["top_tokens"], line["bottom_ids"]) == (0, 3, ["blue", "sea", "<end>"], [10, 0, 1])
    assert list(raw.frame()) == ["layer", "neuron", "norm", "mean_logit", "top_ids", "top_tokens", "bottom_ids", "bottom_tokens"]


def test_layers():
    model = tiny(torch.float32)
    every = value_vectors(model, k=2)
    two = value_vectors(model, layer=[1, 0], k=2)
    one = value_vectors(model, layer=1, k=2)
    assert two.layer.tolist() == [1] * 20 + [0] * 20
    np.testing.assert_array_equal(every.top_ids[20:], one.top_ids)
    np.testing.assert_array_equal(two.top_ids[:20], one.top_ids)
    for layer in (2, -1, [], [0, 0]):
        with pytest.raises(InputError, match=r"expected layers 0 to 1, each once"):
            value_vectors(model, layer=layer, k=2)


def test_half_precision(stories):
    wide = value_vectors(stories, k=10)
    stories.hf.to(torch.bfloat16)
    half = value_vectors(stories, k=10)
    assert half.top_logits.dtype == wide.top_logits.dtype == np.float32
    vector = stories.sites.value_vectors(2).read(stories.hf)[7].double()
    exact = (stories.hf.lm_head.weight.detach().double() @ vector).topk(10).values
    # rtol: float32; a product in bfloat16 would be off by 4e-3
    np.testing.assert_allclose(half.top_logits[half.position(2, 7)], exact, rtol=1e-5)


def test_file(tmp_path, stories):
    found = value_vectors(stories, layer=1, k=5, norm="final_norm_gain")
    found.save(tmp_path / "v.safetensors")
    again = ValueVectors.load(tmp_path / "v.safetensors", stories)
    assert again.frame().equals(found.frame())
    assert again.provenance.options == {"norm": "final_norm_gain", "k": 5}
    with pytest.raises(MismatchError, match="is of model"):
        ValueVectors.load(tmp_path / "v.safetensors", tiny())


def test_snippets_are_where_the_coefficients_are_largest():
    """Against one pass a text: the peak of |m_j|, one snippet a text, the largest first, whatever the batches."""
    model = tiny()
    places = [Place(1, 3), Place(0, 7)]
    peaks = {}
    for place in places:
        name = f"blocks.{place.layer}.mlp.post"
        for i, text in enumerate(TEXTS):
            ids = torch.tensor([model.tokenizer(text)["input_ids"]])
            with capture(model, [name]) as kept, torch.no_grad():
                model.hf(ids)
            m = kept[name][0, :, place.index]
            peaks[place, i] = float(m[m.abs().argmax()])
    for batch_tokens in (1, 4096):
        found = snippets(model, places, TEXTS, count=3, batch_tokens=batch_tokens)
        for place, several in zip(places, found, strict=True):
            order = sorted(range(len(TEXTS)), key=lambda i: -abs(peaks[place, i]))[:3]
            assert [s.text for s in several] == order
            for s in several:
                assert s.coefficient == pytest.approx(peaks[place, s.text], rel=1e-6)  # kept in float32
                assert s.coefficient in s.coefficients
                assert " ".join(s.tokens) == TEXTS[s.text]


def test_snippets_do_not_count_what_the_tokenizer_puts_in_front(stories):
    """At neurons whose largest coefficient is that of the beginning-of-text token: it is no reading of a text."""
    texts = ["Once upon a time there was a little girl.", "The dog ran."]
    sizes = []
    for text in texts:
        with capture(stories, ["blocks.2.mlp.post"]) as kept, torch.no_grad():
            stories.hf(torch.tensor([stories.tokenizer(text)["input_ids"]]))
        sizes.append(kept["blocks.2.mlp.post"][0].abs())
    peaks = torch.stack([each[1:].amax(0) for each in sizes])
    loud = (sizes[0][0] > 1.1 * peaks.amax(0)).nonzero().flatten().tolist()
    assert loud
    for neuron, order in ((neuron, order) for neuron in loud[:3] for order in (texts, texts[::-1])):
        found = snippets(stories, [Place(2, neuron)], order, count=2)[0]
        assert abs(found[0].coefficient) >= abs(found[1].coefficient)  # nor does it rank the texts
        for s in found:
            assert "<s>" not in s.tokens
            assert max(abs(m) for m in s.coefficients) == abs(s.coefficient)
            assert abs(s.coefficient) == pytest.approx(float(peaks[texts.index(order[s.text]), neuron]), rel=1e-5)


def test_long_texts_are_cut_around_the_peak(stories):
    one = snippets(stories, [Place(2, 9)], ["The dog ran to the park. " * 20])[0][0]
    assert len(one.tokens) <= 21
    assert one.coefficient in one.coefficients


def test_card():
    card = value_vectors(by_hand(), k=3).card(0, 3, ["what <b> is the color", "the <script> sky"], count=2)
    html = card._repr_html_()
    assert html.count("&lt;unk&gt;") == 3  # of words the tokenizer does not know, and a bottom token
    assert "<unk>" not in html
    assert "value vector 0/3" in html
    assert "&lt;end&gt;" in html
    assert "<end>" not in html
    assert not re.search(r"<script|http|src=|url\(", html)
    assert len(card.snippets) == 2
    assert html.count("background-color:rgba(") == sum(len(s.tokens) for s in card.snippets)
    assert repr(card) == "Card(value vector 0/3, norm 2.236: blue sea <end>)"
    assert value_vectors(by_hand(), k=3).card(0, 3).snippets is None


def test_what_is_shown_is_escaped():
    found = value_vectors(by_hand(), k=3)
    assert "<end>" not in found._repr_html_()
    assert "ValueVectors(40 vectors in 2 layer(s), k=3, norm=&#39;raw&#39;)" in found._repr_html_()
    assert visible(" a\n\tb") == "␣a⏎⇥b"


def test_refused():
    model = tiny(torch.float32)
    for k in (0, 17):
        with pytest.raises(InputError, match=f"k is {k}, expected 1 to 16, the size of the vocabulary"):
            value_vectors(model, k=k)
    with pytest.raises(UnknownNameError, match="unknown norm 'Raw'. Did you mean 'raw'"):
        value_vectors(model, norm="Raw", k=2)
    with pytest.raises(InputError, match=r"value vector \(0, 20\): ValueVectors\(40 vectors"):
        value_vectors(model, k=2).card(0, 20)
    with pytest.raises(DataError, match=r"text 1 .* has 1 token\(s\) of its own"):
        value_vectors(model, k=2).card(0, 1, ["the sky", "sky"])
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(NumericsError, match="value_vectors: layer 1: 1 of 20 values"):
        value_vectors(model, k=2)
