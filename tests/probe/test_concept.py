"""Candidates, removal, gaps and the search, on loops, by hand, and on a model in which a concept was planted."""

import re

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import concepts as slow
from tests.reference.tiny_models import CONFIGS, tiny_model
from tests.reference.tiny_models import tokens as some_tokens
from tests.tiny import WORDS, tiny, tiny_sets
from workbench.core.components import Place
from workbench.core.errors import DataError, InputError, ModelError, UnknownNameError
from workbench.core.records import Example, Examples
from workbench.load.batches import encode_all
from workbench.load.texts import encode_texts
from workbench.probe.candidates import Moments, candidates, coherence, moments
from workbench.probe.concept import find_concept
from workbench.probe.halves import halves
from workbench.probe.joint import gap_of, joint_gap
from workbench.probe.removal import drops, random_vectors, without
from workbench.probe.value_vectors import value_vectors
from workbench.trace.hooks import capture

TEXTS = ["what is the color of the sky", "the sea is very very blue and green", "is a grass a sea"]
ARCHITECTURES = [name for name in CONFIGS if name != "opt"]  # OPT flattens batch and positions inside its MLP


def runs(model, places, instead=None):
    """Coefficients, MLP outputs and logits with and without the places."""
    sites = [f"blocks.{p.layer}.{site}" for p in places for site in ("mlp.post", "mlp.out")]
    with capture(model, sites) as before, torch.no_grad():
        whole = model.hf(some_tokens()).logits
    with without(model, places, instead), capture(model, sites) as after, torch.no_grad():
        cut = model.hf(some_tokens()).logits
    return before, after, whole, cut


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_one_the_mlp_loses_exactly_its_part(name):
    """mlp.out falls by m_j v_j, and sum_j m_j v_j + bias is mlp.out. rtol: float64, sums in another order."""
    model = wb.wrap(tiny_model(name), tiny().tokenizer, name=name)
    place = Place(1, 7)
    before, after, _, _ = runs(model, [place])
    vectors = model.sites.value_vectors(1).read(model.hf)
    m, out = before["blocks.1.mlp.post"], before["blocks.1.mlp.out"]
    bias = getattr(model.sites.module("blocks.1.mlp.out"), "bias", None)
    total = torch.einsum("bpj,jd->bpd", m, vectors) + (0 if bias is None else bias.detach())
    torch.testing.assert_close(out, total, rtol=1e-10, atol=1e-10)
    lost = out - after["blocks.1.mlp.out"]
    torch.testing.assert_close(lost, m[..., 7, None] * vectors[7], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_without_several_is_zeroing_their_weights(name):
    model = wb.wrap(tiny_model(name), tiny().tokenizer, name=name)
    places = [Place(0, 3), Place(2, 40), Place(0, 11)]
    cut = runs(model, places)[3]
    with torch.no_grad():
        for layer, index in places:
            model.sites.value_vectors(layer).view(model.hf)[index] = 0.0
        zeroed = model.hf(some_tokens()).logits
    torch.testing.assert_close(cut, zeroed, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_random_vectors_take_the_place_of_the_removed_ones(name):
    model = wb.wrap(tiny_model(name), tiny().tokenizer, name=name)
    places = [Place(1, 7), Place(1, 2)]
    instead = random_vectors(model, places, seed=3)
    before, after, _, _ = runs(model, places, instead)
    m = before["blocks.1.mlp.post"][..., [7, 2]]
    lost = before["blocks.1.mlp.out"] - after["blocks.1.mlp.out"]
    torch.testing.assert_close(lost, m @ instead.double(), rtol=1e-6, atol=1e-6)  # the random vectors are float32
    assert torch.equal(before["blocks.1.mlp.post"], after["blocks.1.mlp.post"])
    vectors = model.sites.value_vectors(1).read(model.hf)[[7, 2]]
    torch.testing.assert_close(instead.norm(dim=1).double(), vectors.norm(dim=1), rtol=1e-5, atol=0)
    assert torch.equal(random_vectors(model, places, seed=3), instead)
    assert not torch.equal(random_vectors(model, places, seed=4), instead)
    assert torch.nn.functional.cosine_similarity(instead[0], instead[1], dim=0).abs() < 0.9  # a draw of its own each


def zeroed_loss(model, places, row):
    """Mean ln p of a row's answer with the weights of `places` at zero for real, in float64."""
    kept = [model.sites.value_vectors(layer).read(model.hf)[index] for layer, index in places]
    with torch.no_grad():
        for layer, index in places:
            model.sites.value_vectors(layer).view(model.hf)[index] = 0.0
        logits = model.hf(torch.tensor([row.tokens])).logits[0].numpy()
        for (layer, index), vector in zip(places, kept, strict=True):
            model.sites.value_vectors(layer).view(model.hf)[index] = vector
    return slow.mean_logprob(logits, row.tokens, row.start)


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_drops_against_zeroed_weights_row_by_row(batch_tokens):
    model, (rows, _) = tiny(), tiny_sets()
    sets = [[Place(0, 3)], [Place(1, 5), Place(0, 3)]]
    coded = encode_all(model, rows)
    assert len({len(row.tokens) for row in coded}) > 1
    found = drops(model, sets, coded, batch_tokens=batch_tokens)
    assert found.shape == (2, 1, 3)
    for s, places in enumerate(sets):
        for i, row in enumerate(coded):
            expected = zeroed_loss(model, [], row) - zeroed_loss(model, places, row)
            assert found[s, 0, i] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert np.abs(found).max() > 0.01


def test_random_drops_are_one_draw_a_seed():
    model, (rows, _) = tiny(), tiny_sets()
    coded = encode_all(model, rows)
    sets = [[Place(0, 3)], [Place(1, 5)]]
    both = drops(model, sets, coded, seeds=[0, 9])
    assert both.shape == (2, 2, 3)
    np.testing.assert_allclose(drops(model, sets[1:], coded, seeds=[9])[0, 0], both[1, 1], rtol=1e-12)
    assert not np.allclose(both[0, 0], both[0, 1])


def test_gap_by_hand():
    """drops 1, 3 against 1, 1: gap 1. Draws (1, 1) - (0, 0) and (0, 2) - (1, 1): 1 and 0, control 1/2.

    Mean draw (1/2, 3/2) and (1/2, 1/2): left over (1/2, 3/2) - (1/2, 1/2), advantage 1 - 1/2.
    """
    found = gap_of(
        np.array([1.0, 3.0]), np.array([1.0, 1.0]), np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[0.0, 0.0], [1.0, 1.0]])
    )
    assert (found.gap.value, found.control.value, found.advantage.value) == (1.0, 0.5, 0.5)
    assert (found.gap.n, found.control.n, found.advantage.n) == (4, 2, 4)
    assert (found.gap.low, found.gap.high) == (0.0, 2.0)  # both rows 1, or both 3
    assert (found.control.low, found.control.high) == (0.0, 1.0)
    assert (found.advantage.low, found.advantage.high) == (0.0, 1.0)


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_moments_against_one_pass_a_text(batch_tokens):
    model = tiny()
    rows = encode_texts(model, TEXTS)
    found = moments(model, rows, [1, 0], batch_tokens=batch_tokens)
    assert found.n == sum(len(row.tokens) for row in rows)
    for at, layer in enumerate((1, 0)):
        seen = []
        for row in rows:
            with capture(model, [f"blocks.{layer}.mlp.post"]) as kept, torch.no_grad():
                model.hf(torch.tensor([row.tokens]))
            seen.append(kept[f"blocks.{layer}.mlp.post"][0].numpy())
        every = np.concatenate(seen)
        own = slice(20 * at, 20 * at + 20)
        np.testing.assert_allclose(found.mean[own], every.mean(0), rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(found.variance[own], every.var(0), rtol=1e-8, atol=1e-13)
        np.testing.assert_allclose(found.rms[own], np.sqrt((every**2).mean(0)), rtol=1e-9)


def test_moments_leave_out_what_stands_in_front(stories):
    rows = encode_texts(stories, ["The dog ran.", "Once upon a time there was a cat."])
    assert all(row.start == 1 for row in rows)
    assert moments(stories, rows, [0]).n == sum(len(row.tokens) - 1 for row in rows)


def test_measures_against_the_loop():
    model = tiny()
    vectors = value_vectors(model, k=3)
    rows, other = encode_texts(model, TEXTS), encode_texts(model, ["no no", "very green and a grass"])
    found = candidates(vectors, moments(model, rows, [0, 1]), moments(model, other, [0, 1]), weights={"contrast": 1, "write": 2})
    embedding = model.hf.get_input_embeddings().weight.detach().numpy()
    for at in (0, 3, 19, 27, 39):
        layer, neuron = divmod(at, 20)
        m, against = ([], [])
        for kept_in, several in ((m, rows), (against, other)):
            for row in several:
                with capture(model, [f"blocks.{layer}.mlp.post"]) as kept, torch.no_grad():
                    model.hf(torch.tensor([row.tokens]))
                kept_in += kept[f"blocks.{layer}.mlp.post"][0, :, neuron].tolist()
        assert found.contrast[at] == pytest.approx(slow.contrast(m, against), rel=1e-8)
        assert found.write[at] == pytest.approx(slow.write(m, against, vectors.norm[at]), rel=1e-6)  # norms are float32
        side = -1 if np.mean(m) < 0 else 1
        assert found.side[at] == side
        logits, ids = (vectors.top_logits, vectors.top_ids) if side > 0 else (-vectors.bottom_logits, vectors.bottom_ids)
        assert found.top_logit[at] == pytest.approx(float(logits[at].mean()), rel=1e-6)
        assert found.coherence[at] == pytest.approx(slow.coherence([embedding[i] for i in ids[at]]), rel=1e-6)
    assert {-1, 1} == set(found.side.tolist())


def test_score_by_hand():
    """Two layers' worth is not needed: 40 vectors, all but three of them alike. Percentiles of write: 40, 39 and 38 of 40."""
    model = tiny()
    vectors = value_vectors(model, k=2)
    zero, one = np.zeros(40), np.ones(40)
    texts = Moments(np.where(np.arange(40) == 4, 3.0, np.where(np.arange(40) == 9, 2.0, 0.0)), one * 0.5, 10)
    found = candidates(vectors, texts, Moments(zero, one * 1.5, 10), weights={"contrast": 1.0})
    assert found.contrast[[4, 9, 0]].tolist() == [3.0, 2.0, 0.0]  # sqrt((0.5 + 1.5) / 2) = 1
    # the best, the second, and 38 that share the mean rank of 1 ... 38
    np.testing.assert_allclose(found.score[[4, 9, 0]], [1.0, 39 / 40, 19.5 / 40], rtol=1e-12)
    both = candidates(vectors, texts, Moments(zero, one * 1.5, 10), weights={"contrast": 3.0, "coherence": 1.0})
    alone = candidates(vectors, texts, Moments(zero, one * 1.5, 10), weights={"coherence": 1.0})
    np.testing.assert_allclose(both.score, (3 * found.score + alone.score) / 4, rtol=1e-12)


def test_a_neuron_that_never_changes_has_no_contrast():
    vectors = value_vectors(tiny(), k=2)
    flat = Moments(np.ones(40), np.zeros(40), 5)
    assert (
        candidates(vectors, flat, Moments(np.zeros(40), np.zeros(40), 5), weights={"contrast": 1.0}).contrast.tolist() == [0.0] * 40
    )


def test_coherence_by_hand():
    """(1, 0), (0, 2), (3, 0): cosines 0, 1, 0, mean 1/3; a token with itself 1."""
    embedding = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    np.testing.assert_allclose(coherence(embedding, np.array([[0, 1, 2], [0, 0, 2]])), [1 / 3, 1.0], rtol=1e-6)
    assert coherence(embedding, np.array([[1]])).tolist() == [1.0]


def planted():
    """Blocks that add nothing but two neurons: 1/3 fires on `sky` and writes `blue`, 0/5 on `grass` and writes `green`.

    Token embeddings are the axes; attention and all other neurons are off, the norms' gains 1.
    """
    model = tiny(d_model=16)
    with torch.no_grad():
        model.hf.model.embed_tokens.weight.copy_(torch.eye(16))
        model.hf.lm_head.weight.copy_(4 * torch.eye(16))
        for name, p in model.hf.named_parameters():
            if "norm" in name:
                p.fill_(1.0)
            elif "layers" in name:
                p.zero_()
        for layer, neuron, reads, writes in ((1, 3, "sky", "blue"), (0, 5, "grass", "green")):
            mlp = model.hf.model.layers[layer].mlp
            mlp.gate_proj.weight[neuron, WORDS.index(reads)] = 2.0
            mlp.up_proj.weight[neuron, WORDS.index(reads)] = 1.0
            mlp.down_proj.weight[WORDS.index(writes), neuron] = 1.0
    return model


def asked(word, answer, name):
    prompts = [f"what is the {word}", f"is a {word}", f"the very {word}", f"{word}", f"no {word}", f"and the {word}"]
    return Examples([Example(f"{name}{i}", prompt, answer) for i, prompt in enumerate(prompts)], name)


def test_a_planted_concept_is_found():
    model = planted()
    sky, grass = asked("sky", "blue", "s"), asked("grass", "green", "g")
    found = find_concept(model, sky, grass, n_candidates=10, report=3, k=3)
    assert found.places[0] == Place(1, 3)
    assert (found.side[0], found.tokens[0][0]) == (1, "blue")
    assert found["gap"][0] > 1.0
    assert found["gap_low"][0] > found["control_high"][0]
    assert found["advantage_low"][0] > 0
    assert found.beats_control.tolist() == [True, False, False]
    assert found["unrelated_drop"][0] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(found["gap"], found["drop"] - found["unrelated_drop"], rtol=1e-12)
    np.testing.assert_allclose(found["advantage"], found["gap"] - found["control"], rtol=1e-9, atol=1e-12)
    assert (found.n, found.n_unrelated) == (3, 3)
    back = find_concept(model, grass, sky, n_candidates=10, report=1, k=3)
    assert back.places == [Place(0, 5)]
    # a bare sky: resid (1 at sky) is normed to 4, gate 8, up 4, so m = 8 sigma(8) 4 = 31.99: the residual is sky + 31.99 blue,
    # normed to length 4: blue 3.998 and sky 0.125, logits 15.99 and 0.5; ln p(blue) = 0. Without: sky 16, the rest 0, ln p = -16,
    # but for the norm's epsilon, 1e-6 beside a mean square of 1/16
    row = encode_all(model, Examples([Example("x", "sky", "blue")], "x"))[0]
    one = drops(model, [[Place(1, 3)]], [row._replace(tokens=row.tokens[:-1])])
    assert one[0, 0, 0] == pytest.approx(16 / (1 + 16e-6) ** 0.5, abs=1e-5)  # the other tokens add 15 exp(-16)


def test_selecting_rows_do_not_report():
    """The gaps are those of the held-out rows, `selected` those of the others, each by an independent count."""
    model, (rows, other) = tiny(), tiny_sets()
    found = find_concept(model, rows, other, n_candidates=40, report=40, k=2, seeds=[0])
    first, second = halves(model, rows, other, 0)
    assert {row.id for row in first.answers} | {row.id for row in second.answers} == {"f0", "f1", "f2"}
    assert not {row.id for row in first.answers} & {row.id for row in second.answers}
    assert (len(first.answers), len(second.answers), len(first.unrelated), len(second.unrelated)) == (1, 2, 2, 2)
    assert [row.id for row in found.held_out.answers] == [row.id for row in second.answers]
    places = [[place] for place in found.places]
    for half, name in ((first, "selected"), (second, "gap")):
        gap = drops(model, places, half.answers)[:, 0].mean(1) - drops(model, places, half.unrelated)[:, 0].mean(1)
        np.testing.assert_allclose(found[name], gap, rtol=1e-9, atol=1e-12)
    assert (np.diff(found["selected"]) <= 0).all()
    assert found.beats_control.tolist() == [low > 0 for low in found["advantage_low"]]
    assert ((found["advantage_low"] <= 0) & (found["advantage_high"] > 0)).any()  # an interval around 0 beats nothing
    assert list(found.ranked) == found.places
    other_half = find_concept(model, rows, other, n_candidates=40, report=40, k=2, seeds=[0], seed=1)
    assert [row.id for row in other_half.held_out.answers] != [row.id for row in found.held_out.answers]


def test_answers_of_their_own_and_plain_texts():
    model, (rows, other) = tiny(), tiny_sets()
    texts, against = [*TEXTS, "blue sky blue"], ["no no", "grass is very green", "a sea"]
    found = find_concept(model, texts, against, answers=rows, unrelated=other, n_candidates=4, report=2, k=2)
    assert (found.n, found.n_unrelated) == (2, 2)
    plain = find_concept(model, texts, against, n_candidates=4, report=2, k=2)
    assert (plain.n, plain.n_unrelated) == (2, 2)
    kept = {row.id: row for row in halves(model, texts, against, 0)[0].answers + halves(model, texts, against, 0)[1].answers}
    assert {id: (len(row.tokens), row.start) for id, row in kept.items()} == {"0": (7, 4), "1": (8, 4), "2": (5, 4), "3": (3, 2)}


def test_most_rows_and_the_same_twice():
    model = planted()
    sky, grass = asked("sky", "blue", "s"), asked("grass", "green", "g")
    options = {"n_candidates": 6, "report": 2, "k": 2, "most_rows": 2}
    one, two = (find_concept(model, sky, grass, **options) for _ in range(2))
    assert (one.n, one.n_unrelated) == (2, 2)
    assert one.frame().equals(two.frame())
    assert one.provenance.notes["selecting_rows"] == [2, 2]


def test_joint_gap():
    model, (rows, other) = tiny(), tiny_sets()
    places = [Place(1, 5), Place(0, 3), Place(0, 7)]
    found = joint_gap(model, places, rows, other, sizes=(1, 3), seeds=[0, 1])
    coded = [encode_all(model, each) for each in (rows, other)]
    for size in (1, 3):
        concept, unrelated = (drops(model, [places[:size]], each)[0, 0] for each in coded)
        split = f"top {size}"
        assert found["concept_drop", split].value == pytest.approx(concept.mean(), rel=1e-12)
        assert found["unrelated_drop", split].value == pytest.approx(unrelated.mean(), rel=1e-12)
        assert found["gap", split].value == pytest.approx(concept.mean() - unrelated.mean(), rel=1e-12)
        assert (found["gap", split].n, found["random_gap", split].n) == (7, 2)
        assert found["gap", split].unit == "nats per token"
        assert found["gap", split].low <= found["gap", split].value <= found["gap", split].high
    assert found["concept_drop", "top 3"].value != found["concept_drop", "top 1"].value


def test_shown():
    model = planted()
    found = find_concept(model, asked("sky", "blue", "s"), asked("grass", "green", "g"), n_candidates=5, report=4, k=3)
    html = found._repr_html_()
    assert "1/3" in html
    assert "<svg" in html
    assert "<end>" not in html
    assert not re.search(r"<script|http|src=", html)
    assert repr(found).startswith(
        "Concepts(4 value vectors, 1 above their random control; gaps in nats per token on 3 concept and 3"
    )
    assert found.top(5) == list(found.ranked)
    assert found.joint_gap(model, sizes=(1, 5))["gap", "top 5"].value > 1
    with pytest.raises(InputError, match="k is 6, expected 1 to 5, the number of candidates"):
        found.top(6)


def test_refused():
    model, (rows, other) = tiny(), tiny_sets()
    with pytest.raises(DataError, match="share|stand in both sets"):
        find_concept(model, rows, rows, k=2)
    with pytest.raises(DataError, match=r"texts has 1 row\(s\), expected 2 or more: half select, half report"):
        find_concept(model, rows[:1], other, k=2)
    with pytest.raises(InputError, match="answers and unrelated belong together"):
        find_concept(model, rows, other, answers=rows, k=2)
    with pytest.raises(InputError, match="report is 9, n_candidates 8"):
        find_concept(model, rows, other, n_candidates=8, report=9, k=2)
    with pytest.raises(UnknownNameError, match="unknown measure 'contrasts'. Did you mean 'contrast'"):
        find_concept(model, rows, other, weights={"contrasts": 1.0}, k=2)
    for weights, says in (({"write": -1.0}, "the weight of write is -1.0"), ({"write": 0.0}, "no weight in .* is positive")):
        with pytest.raises(InputError, match=says):
            find_concept(model, rows, other, weights=weights, k=2)
    with pytest.raises(InputError, match=r"no value vector \(2, 0\); layers are 0 to 1, neurons 0 to 19"):
        drops(model, [[Place(2, 0)]], encode_all(model, rows))
    with pytest.raises(InputError, match="named twice"):
        drops(model, [[Place(1, 0), Place(1, 0)]], encode_all(model, rows))
    with pytest.raises(InputError, match="places is empty"):
        drops(model, [[]], encode_all(model, rows))
    with pytest.raises(DataError, match="no row to measure on"):
        drops(model, [[Place(0, 0)]], [])
    with pytest.raises(DataError, match="no text to read"):
        moments(model, [], [0])
    with pytest.raises(InputError, match=r"sizes \[1, 3\] of 2 places"):
        joint_gap(model, [Place(0, 0), Place(0, 1)], rows, other, sizes=(1, 3))
    opt = wb.wrap(tiny_model("opt"), tiny().tokenizer)
    with pytest.raises(ModelError, match="flattens batch and positions"):
        drops(opt, [[Place(0, 0)]], encode_all(opt, rows))
    model.hf.train()
    with pytest.raises(InputError, match="training mode"):
        find_concept(model, rows, other, k=2)
