"""The protocol: vectors by hand and against loops, answers against Hugging Face's generate, and what an edit leaves behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.reference import concepts as slow
from tests.tiny import WORDS, tiny, tiny_sets
from workbench.core.components import Place
from workbench.core.delta import Delta
from workbench.core.errors import DataError, InputError, MismatchError, ModelError, UnknownNameError
from workbench.core.records import Provenance
from workbench.evaluate.ask import ask
from workbench.evaluate.concept_vectors import behavioral, compare, concept_vectors, intrinsic, written
from workbench.load.concepts import concepts, own_concept

PLACES = [Place(1, 3), Place(0, 7)]


def concept(model, **options):
    forget, retain = tiny_sets()
    return own_concept(model, "sky", PLACES, forget, retain, **options)


def change(model, differences):
    """A Delta that adds `differences` [place d_model] to the value vectors at PLACES."""
    made = {}
    for (layer, index), difference in zip(PLACES, differences, strict=True):
        where = model.sites.value_vectors(layer)
        made[where.parameter] = torch.zeros(where.shape)
        where.of(made[where.parameter])[index] = difference
    return Delta.of(made, Provenance("by hand", model.base_fingerprint()))


def test_vectors_by_hand():
    """(3, 4) and (1, 0) become (4, 3) and (0, 0): cosine 24/25 and 0, distance sqrt 2 and 1; ids {0, 1} and {1, 2}: 1 of 3."""
    before = written(tiny(), PLACES, k=2)._replace(
        vectors=torch.tensor([[3.0, 4.0], [1.0, 0.0]]), top_ids=torch.tensor([[0, 1], [5, 6]])
    )
    after = before._replace(vectors=torch.tensor([[4.0, 3.0], [0.0, 0.0]]), top_ids=torch.tensor([[2, 1], [5, 6]]))
    found = compare(before, after)
    np.testing.assert_allclose(found["cosine"], [24 / 25, 0], rtol=1e-12)
    np.testing.assert_allclose(found["l2_distance"], [2**0.5, 1], rtol=1e-12)
    np.testing.assert_allclose(found["relative_l2"], [2**0.5 / 5, 1], rtol=1e-12)
    np.testing.assert_allclose(found["jaccard"], [1 / 3, 0], rtol=1e-12)  # a vector that is gone writes no tokens
    rows = {row.metric: row for row in intrinsic(before, after)}
    assert rows["cosine"].value == pytest.approx(12 / 25)
    assert (rows["jaccard"].value, rows["jaccard"].n) == (pytest.approx(1 / 6), 2)
    assert (rows["cosine"].low, rows["cosine"].high) == (0.0, pytest.approx(24 / 25))


@pytest.mark.parametrize("norm", ["raw", "final_norm_gain"])
def test_top_tokens_and_jaccard_against_the_loop(norm):
    model, other = tiny(), tiny(seed=3)
    one, two = (written(m, PLACES, k=5, norm=norm) for m in (model, other))
    found = compare(one, two)
    for i, (layer, index) in enumerate(PLACES):
        tops = []
        for m in (model, other):
            vector = m.sites.value_vectors(layer).read(m.hf)[index].numpy()
            gain = m.hf.model.norm.weight.detach().numpy() if norm == "final_norm_gain" else 1.0
            weight = m.hf.lm_head.weight.detach().numpy()
            tops.append([j for j, _ in slow.extremes([vector * gain], weight, 5)[0][0]])
        assert [one.top_ids[i].tolist(), two.top_ids[i].tolist()] == tops
        assert found["jaccard"][i] == slow.jaccard(*tops)


def test_an_untouched_model_has_exactly_one_zero_and_one(stories):
    """In every float type: the ratio is computed so that equal vectors give 1 and not 0.9999."""
    for dtype in (torch.float32, torch.bfloat16):
        stories.hf.to(dtype)
        places = [Place(layer, neuron) for layer in range(5) for neuron in range(40)]
        assert written(stories, places).vectors.dtype == torch.float32
        found = compare(written(stories, places), written(stories, places))
        for name, value in {"cosine": 1.0, "l2_distance": 0.0, "relative_l2": 0.0, "jaccard": 1.0}.items():
            assert (found[name] == value).all(), name


def test_ids_are_compared_and_not_their_text():
    """slm4096 has no two tokens of one text; a tokenizer that has (byte pieces) would make different ids look alike."""
    one = written(tiny(), PLACES, k=2)._replace(top_ids=torch.tensor([[0, 1], [2, 3]]))
    other = one._replace(top_ids=torch.tensor([[0, 4], [3, 2]]))
    assert compare(one, other)["jaccard"].tolist() == [pytest.approx(1 / 3), 1.0]  # order does not count


def test_k_is_capped_at_the_vocabulary():
    found = written(tiny(), PLACES, k=200)
    assert found.top_ids.shape == (2, 16)
    assert "ids of the top 16 tokens" in {row.metric: row.note for row in intrinsic(found, found)}["jaccard"]


def test_what_was_written_is_a_copy():
    """The published code kept a reference to the weights it then changed."""
    model = tiny(torch.float32)
    found = written(model, PLACES, k=3)
    kept = found.vectors.clone()
    with torch.no_grad():
        for p in model.hf.parameters():
            p.add_(1.0)
    assert torch.equal(found.vectors, kept)


def test_answers_by_hand():
    """BLEU of "a b c d" against the reference "a b c d e f" is exp(-1/2), the other way round (1/15)^(1/4) = 0.51; ROUGE-L 8/10."""
    said = {"qa": ["a b c d e f", "x y"], "unrelated_qa": ["no"]}
    says = {"qa": ["a b c d", "x y"], "unrelated_qa": ["no"]}
    rows = {(row.metric, row.split): row for row in behavioral(says, said)}
    assert rows["bleu", "qa"].value == pytest.approx((np.exp(-0.5) + 1) / 2)
    assert rows["rouge_l_f", "qa"].value == pytest.approx((0.8 + 1) / 2)
    assert rows["bleu", "unrelated_qa"].value == pytest.approx(1.0)
    assert (rows["bleu", "qa"].better, rows["bleu", "unrelated_qa"].better) == ("lower", "higher")
    assert rows["bleu", "qa"].n == 2
    assert rows["rouge_l_f", "qa"].low == pytest.approx(0.8)
    assert np.isnan(rows["bleu", "unrelated_qa"].low)
    assert "one value: no interval" in rows["bleu", "unrelated_qa"].note


def test_questions_the_untouched_model_does_not_answer_are_left_out_and_said():
    rows = behavioral({"qa": ["a", "b c", ""]}, {"qa": ["", "b c", "d"]})
    assert [row.value for row in rows] == [0.5, 0.5]  # "b c" is the same, "d" became nothing
    assert rows[0].n == 2
    assert "it is silent on 1 more" in rows[0].note
    with pytest.raises(DataError, match="answers nothing to any question of qa"):
        behavioral({"qa": ["a"]}, {"qa": [" "]})
    with pytest.raises(DataError, match="1 answers to qa of the edited model, 2 untouched"):
        behavioral({"qa": ["a"]}, {"qa": ["b", "c"]})


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_answers_are_those_of_generate_one_by_one(stories, batch_tokens):
    """Prompts of unequal length in one batch, padded on the left, say what each says alone."""
    forget, retain = tiny_sets()
    row = own_concept(
        stories,
        "x",
        [Place(0, 0)],
        forget,
        retain,
        completion=[("Once upon a time", "x"), ("The dog", "y")],
        question="Q: {text}\n",
    )
    found = ask(stories, [row], max_new_tokens=12, batch_tokens=batch_tokens)
    assert list(found) == ["qa", "completion", "unrelated_qa"]
    prompts = {"qa": [f"Q: {q}\n" for q in row.qa], "completion": ["Once upon a time", "The dog"]}
    prompts["unrelated_qa"] = [f"Q: {q}\n" for q in row.unrelated_qa]
    for split, texts in prompts.items():
        for prompt, says in zip(texts, found[split], strict=True):
            ids = torch.tensor([stories.tokenizer(prompt)["input_ids"]])
            made = stories.hf.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
            )  # fmt: skip
            assert says == stories.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_a_chat_template_asks_where_no_template_is_given(root):
    import workbench as wb

    model = wb.load(root / "data/organism/full")
    rows = wb.examples("tofu:forget", root=root / "data/tofu-mini")
    own = own_concept(model, "author", [Place(0, 0)], rows[:3], rows[20:22])
    said = ask(model, [own], max_new_tokens=60)
    assert said["qa"] == [row.response for row in rows[:3]]  # it has memorized them
    plain = ask(model, [replace(own, question="{text}")], max_new_tokens=60)
    assert plain["qa"] != said["qa"]
    braces = ask(model, [replace(own, question="{text} {x}")], max_new_tokens=2)  # a brace in a template or question is text
    assert len(braces["qa"]) == 3


def test_the_whole_protocol_and_nothing_is_left_behind():
    model = tiny(torch.float32)
    row = concept(model, completion=[("the sky is", "blue")])
    bits = {name: p.clone() for name, p in model.hf.named_parameters()}
    still = concept_vectors(model, change(model, torch.zeros(2, 8)), row, max_new_tokens=4)
    assert {m: still[m, "vectors"].value for m in ("cosine", "l2_distance", "jaccard")} == {
        "cosine": 1,
        "l2_distance": 0,
        "jaccard": 1,
    }
    for split in ("qa", "completion", "unrelated_qa"):
        assert still["rouge_l_f", split].value == 1.0
        assert still["bleu", split].value == pytest.approx(1.0, rel=1e-12)
    delta = change(model, torch.full((2, 8), 5.0))
    one, two = (concept_vectors(model, delta, row, max_new_tokens=4) for _ in range(2))
    assert one.frame().equals(two.frame())
    assert one["l2_distance", "vectors"].value == pytest.approx(5 * 8**0.5, rel=1e-6)
    assert one["cosine", "vectors"].value < 0.9
    assert min(one["rouge_l_f", split].value for split in ("qa", "unrelated_qa")) < 1
    assert all(torch.equal(p, bits[name]) for name, p in model.hf.named_parameters())
    assert not model.ledger


def test_another_model_as_the_edited_one():
    model, other = tiny(torch.float32), tiny(torch.float32, seed=5)
    row = concept(model)
    found = concept_vectors(model, other, row, max_new_tokens=4)
    vectors = [m.sites.value_vectors(1).read(m.hf)[3].numpy() for m in (model, other)]
    both = [m.sites.value_vectors(0).read(m.hf)[7].numpy() for m in (model, other)]
    cosines = [float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in (vectors, both)]
    assert found["cosine", "vectors"].value == pytest.approx(np.mean(cosines), rel=1e-5)
    assert found["bleu", "qa"].note == "against the untouched model's answers"
    said, says = (ask(m, [row], max_new_tokens=4) for m in (model, other))
    assert said["qa"] != says["qa"]
    assert found["rouge_l_f", "qa"] == behavioral(says, said)[1]
    assert found["rouge_l_f", "qa"].value < 1
    with pytest.raises(MismatchError, match="has other parameters or another tokenizer"):
        concept_vectors(model, tiny(torch.float32, n_layers=1), row)


def test_several_concepts_are_counted_together():
    model = tiny(torch.float32)
    row = concept(model)
    second = replace(row, id="other", places=(Place(1, 3), Place(1, 4)), qa=("the sea is",))
    found = concept_vectors(model, change(model, torch.ones(2, 8)), [row, second], max_new_tokens=3)
    assert found["cosine", "vectors"].n == 3  # Place(1, 3) once
    assert (found["bleu", "qa"].n + 0, found["bleu", "unrelated_qa"].n) == (4, 8)


def test_refused(root):
    model = tiny(torch.float32)
    with pytest.raises(DataError, match="there is no concept to measure"):
        concept_vectors(model, model, [])
    with pytest.raises(ModelError, match="concept 'Poland' is value vector 23/743 of Llama-2-7B-chat"):
        concept_vectors(model, model, concepts(root / "data/conceptvectors/llama2-7b_concepts_dev.json"))
    with pytest.raises(UnknownNameError, match="unknown norm"):
        written(model, PLACES, norm="final")
    with pytest.raises(InputError, match="places is empty"):
        written(model, [])
    with pytest.raises(InputError, match="not the same places and k"):
        compare(written(model, PLACES, k=2), written(model, PLACES, k=3))
    gone = written(model, PLACES, k=2)
    gone.vectors[1] = 0
    with pytest.raises(DataError, match="vector 1 was zero before the edit"):
        compare(gone, gone)
    long = replace(concept(model), qa=(" ".join(WORDS[2:5] * 12),))
    with pytest.raises(DataError, match="is 36 tokens as a prompt, expected 1 to 31"):
        ask(model, [long])
