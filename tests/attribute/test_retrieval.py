"""Retrieval heads: a GPT-2 whose attention is written by hand, the count by hand, and needles whose tokens are known."""

import numpy as np
import pytest
import torch
import transformers

import workbench as wb
from tests.reference import components as truth
from tests.tiny import WORDS, tiny
from workbench.attribute.needles import Needle, needles
from workbench.attribute.retrieval import attended, copied, retrieval_heads
from workbench.core.errors import DataError, InputError, ModelError, UnknownNameError
from workbench.load.batches import Encoded

N = 16  # positions, tokens and features of a head
BLUE, GREEN, VERY, SKY, NO = (WORDS.index(word) for word in ("blue", "green", "very", "sky", "no"))


def looking(targets, says=()):
    """GPT-2 with one layer of two heads, whose arg-max attention from position i is targets[head].get(i, 0).

    The stream is one-hot: position in the first 16 features, token in the others, so the layer norm only shifts and scales it.
    The query of position i is the key of its target. says: position -> token said there, through the unembedding.
    """
    config = transformers.GPT2Config(
        vocab_size=N, n_positions=N, n_embd=2 * N, n_head=2, n_layer=1, tie_word_embeddings=False, attn_implementation="sdpa"
    )
    with torch.random.fork_rng():
        hf = transformers.GPT2LMHeadModel(config).double()
    with torch.no_grad():
        for name, p in hf.named_parameters():
            p.fill_(float("ln_" in name and name.endswith("weight")))
        hf.transformer.wpe.weight[:, :N] = torch.eye(N)
        hf.transformer.wte.weight[:, N:] = torch.eye(N)
        qkv = hf.transformer.h[0].attn.c_attn.weight  # [in, q k v, heads side by side]
        for head, target in enumerate(targets):
            for i in range(N):
                qkv[i, head * N + target.get(i, 0)] = 20.0
            qkv[:N, 2 * N + head * N : 2 * N + (head + 1) * N] = torch.eye(N)
        for position, token in dict(says).items():
            hf.lm_head.weight[token, position] = 9.0
    return wb.wrap(hf, tiny().tokenizer, name="by hand")


def needle(prompt, answer, first, stop, *, said="", id="n"):
    return Needle(Encoded(id, [*prompt, *answer], len(prompt)), first, stop, said, len(prompt), 0.5)


# sky [blue green] no very | blue green blue blue: the needle is at 1 and 2, the answer is predicted from 4, 5, 6, 7
PROMPT, ANSWER = [SKY, BLUE, GREEN, NO, VERY], [BLUE, GREEN, BLUE, BLUE]
TARGETS = [{4: 1, 5: 2, 6: 1, 7: 1}, {4: 1, 5: 1, 6: 0, 7: 5}]


def test_attention_is_read_where_it_is():
    model = looking(TARGETS)
    found = attended(model, PROMPT + ANSWER[:-1], steps=4)
    assert found.tolist() == [[[1, 2, 1, 1], [1, 1, 0, 5]]]


def test_score_by_hand():
    """Head 0 copies positions 1, 2, 1 and 1: both of the needle's two, 2/2; a sum over steps would say 4/2.

    Head 1 looks at 1 for blue (a copy), at 1 for green (no copy), at 0 for blue (not the needle) and at 5, where a blue of
    the answer stands (not the needle): 1/2.
    """
    found = retrieval_heads(looking(TARGETS), [needle(PROMPT, ANSWER, 1, 3)], decode="teacher")
    np.testing.assert_array_equal(found.values, [[1.0, 0.5]])
    for head, score in ((0, (1.0, 2.0)), (1, (0.5, 0.5))):
        looked = [TARGETS[head][i] for i in (4, 5, 6, 7)]
        assert truth.without_double_counting(looked, PROMPT, ANSWER, 1, 3) == score
    assert (found.kind, found.unit, found.agreement) == ("head", "share of needle tokens", None)
    assert found.provenance.notes == {"kept": 1, "left_out": 0}


def test_share_never_exceeds_one_against_the_loop():
    rng = np.random.default_rng(0)
    prompt, said = rng.integers(0, 4, 30).tolist(), rng.integers(0, 4, 25).tolist()
    looked = rng.integers(8, 14, (2, 3, 25))
    found = copied(looked, prompt, said, 9, 13)
    exceeded = 0
    for layer in range(2):
        for head in range(3):
            score, naive = truth.without_double_counting(looked[layer, head].tolist(), prompt, said, 9, 13)
            assert found[layer, head] == score
            exceeded += naive > 1
    assert exceeded
    assert found.max() <= 1


def test_mean_over_needles_of_unequal_length():
    """The second: sky [blue green no] | blue, predicted from 3; head 0 looks at 0 there (default), head 1 too: 0 of 3."""
    several = [needle(PROMPT, ANSWER, 1, 3), needle([SKY, BLUE, GREEN, NO], [BLUE], 1, 4, id="m")]
    found = retrieval_heads(looking(TARGETS), several, decode="teacher")
    np.testing.assert_array_equal(found.values, [[0.5, 0.25]])
    assert found.n.tolist() == [2, 2]
    assert (found.low[0], found.high[0]) == (0.0, 1.0)


def test_greedy_copies_what_the_model_says():
    """From 4 it says green, from 5 blue, from 6 the end: head 0 looks at 2 and 1, a copy each; head 1 at 1 and 1: blue only.

    Green, which it would say from 7 with head 1 on it, comes behind the end.
    """
    model = looking([{4: 2, 5: 1}, {4: 1, 5: 1, 7: 2}], {4: GREEN, 5: BLUE, 6: WORDS.index("<end>"), 7: GREEN})
    found = retrieval_heads(model, [needle(PROMPT, [NO], 1, 3, said="green")])
    np.testing.assert_array_equal(found.values, [[1.0, 0.5]])
    assert found.provenance.notes == {"kept": 1, "left_out": 0, "mean_recall": 1.0}
    one = retrieval_heads(model, [needle(PROMPT, [NO], 1, 3, said="green")], max_new_tokens=1)
    np.testing.assert_array_equal(one.values, [[0.5, 0.0]])


def test_needles_that_were_not_found_are_left_out():
    """Recall of "green blue" against its true answers: 1, 1/2 (not above 0.5) and 0."""
    model = looking([{4: 2, 5: 1}, {}], {4: GREEN, 5: BLUE, 6: WORDS.index("<end>")})
    several = [needle(PROMPT, [NO], 1, 3, said=said, id=said) for said in ("blue green", "green sea", "no")]
    found = retrieval_heads(model, several)
    assert found.provenance.notes == {"kept": 1, "left_out": 2, "mean_recall": 0.5}
    assert retrieval_heads(model, several, min_recall=0.49).provenance.notes["kept"] == 2
    assert retrieval_heads(model, several, min_recall=-1.0).provenance.notes["kept"] == 3
    with pytest.raises(DataError, match=r"found none of the 2 needles \(best ROUGE-1 recall 0.50, above 0.5 needed\)"):
        retrieval_heads(model, several[1:])


def test_attention_is_set_back_also_after_an_exception():
    model = looking(TARGETS)
    before = model.hf(torch.tensor([PROMPT])).logits
    retrieval_heads(model, [needle(PROMPT, ANSWER, 1, 3)], decode="teacher")
    assert model.hf.config._attn_implementation == "sdpa"
    with pytest.raises(IndexError):
        retrieval_heads(model, [needle([*PROMPT, 99], ANSWER, 1, 3)], decode="teacher")  # no such token
    assert model.hf.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks for m in model.hf.modules())
    assert torch.equal(model.hf(torch.tensor([PROMPT])).logits, before)


@pytest.mark.parametrize("name", ["stories", "slm"])
def test_on_models_somebody_else_made(name, request):
    """The arg max of the attention that transformers itself returns."""
    model = request.getfixturevalue(name)
    tokens = model.tokenizer("once upon a time there was a little dog.")["input_ids"]
    found = attended(model, tokens, steps=5)
    model.hf.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model.hf(torch.tensor([tokens]), output_attentions=True).attentions
    expected = torch.stack([pattern[0, :, -5:].argmax(-1) for pattern in attentions])
    assert torch.equal(torch.from_numpy(found), expected)


def test_hidden_attention_is_an_error():
    model = looking(TARGETS)
    attention = model.hf.transformer.h[0].attn
    handle = attention.register_forward_hook(lambda module, args, out: (out[0], None))
    with pytest.raises(ModelError, match=r"the attention of layer 0 \(GPT2Attention\) does not return its pattern"):
        attended(model, PROMPT, steps=1)
    handle.remove()


HAYSTACK = "The cat sat. A dog ran off! Was it the sun? " * 30
HIDDEN = "The magic word is plum."


@pytest.mark.parametrize("name", ["stories260K", "organism"])
def test_needles_are_where_they_are_said_to_be(name, root):
    model = wb.load(root / ("data/organism/full" if name == "organism" else "data/models/stories260K"))
    made = needles(model, HAYSTACK, HIDDEN, "What is the magic word?", answer="plum", lengths=(80, 120), depths=(0.0, 0.4, 1.0))
    assert [(n.depth) for n in made] == [0.0, 0.4, 1.0] * 2
    for n in made:
        inside = model.tokenizer.decode(n.row.tokens[n.first : n.stop])
        assert inside.strip() == HIDDEN
        assert model.tokenizer.decode(n.row.tokens[n.row.start :]).replace("<|end|>", "").startswith(("plum", " plum"))
    for n, length in zip(made, (80,) * 3 + (120,) * 3, strict=True):
        assert length - 8 <= n.length <= length  # a little less: words are cut at tokens, and seams merge
        assert n.length == n.row.start
    starts = [n.first for n in made]
    assert starts[0] < starts[1] < starts[2]
    text = model.tokenizer.decode(made[1].row.tokens[: made[1].first])
    assert text.rstrip()[-1] in ".!?"  # it goes in between sentences


def test_needles_that_cannot_be_built(stories):
    build = {"lengths": (60,), "depths": (0.5,)}
    with pytest.raises(DataError, match=r"a prompt of 2000 tokens needs \d+ tokens of haystack .* has \d+"):
        needles(stories, HAYSTACK, HIDDEN, "Which?", lengths=(2000,))
    with pytest.raises(DataError, match="Lengths must lie above"):
        needles(stories, HAYSTACK, HIDDEN, "Which?", lengths=(5,))
    with pytest.raises(DataError, match="must not hold the needle already"):
        needles(stories, HAYSTACK, "A dog ran off!", "Which?", **build)
    with pytest.raises(InputError, match=r"depths \[1.5\]"):
        needles(stories, HAYSTACK, HIDDEN, "Which?", depths=(1.5,))
    with pytest.raises(DataError, match="stands 2 times in the rendered prompt"):
        needles(stories, HAYSTACK, HIDDEN, f"What? {HIDDEN}", **build)


def test_refused():
    model = looking(TARGETS)
    one = [needle(PROMPT, ANSWER, 1, 3)]
    with pytest.raises(DataError, match="needles is empty"):
        retrieval_heads(model, [])
    with pytest.raises(UnknownNameError, match="unknown decode 'gredy'. Did you mean 'greedy'"):
        retrieval_heads(model, one, decode="gredy")
    with pytest.raises(InputError, match="max_new_tokens is 0, min_recall 0.5"):
        retrieval_heads(model, one, max_new_tokens=0)
    with pytest.raises(InputError, match="min_recall 1"):
        retrieval_heads(model, one, min_recall=1.0)
    model.hf.train()
    with pytest.raises(InputError, match="training mode"):
        retrieval_heads(model, one)
