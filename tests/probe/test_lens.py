"""The logit lens: the last layer is the model, the other layers are what the formula says, and the table tells the truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

import workbench as wb
from tests.reference import lens as truth
from tests.reference.tiny_models import CONFIGS, tiny_model
from tests.tiny import tiny
from workbench.core.errors import DataError, InputError, ModelError, NumericsError, UnknownNameError
from workbench.load.batches import Encoded, collate
from workbench.probe.lens import check_last, logit_lens, stream, unembed
from workbench.probe.lens_table import NEXT, reading, top_ids
from workbench.probe.lens_text import as_row, show, target_id, token_texts

TEXT = "what is the color of the sky"


def model_of(name, dtype=torch.float64):
    return wb.wrap(tiny_model(name, dtype=dtype), tiny().tokenizer, name=name)


def batch(side="right"):
    """Rows of 7, 4 and 6 tokens."""
    draw = torch.Generator().manual_seed(1)
    rows = [Encoded(str(n), torch.randint(1, 16, (n,), generator=draw).tolist(), n) for n in (7, 4, 6)]
    return collate(rows, side=side)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_last_layer_is_the_model_bit_for_bit(name, dtype):
    """Padded on either side, in the batch the model computes; OPT, Gemma-2's softcap and post-norms among them."""
    model = model_of(name, dtype)
    # In float64 transformers' mask makes NaN of a left-padded Gemma-2, of its real positions too; check_last says so.
    for side in ("right", "left") if (name, dtype) != ("gemma2", torch.float64) else ("right",):
        given = batch(side)
        passed = stream(model, given)
        real = given.attention
        assert torch.equal(unembed(model, passed.resid["2"])[real], passed.logits[real])
        assert check_last(model, passed)
        assert not torch.equal(unembed(model, passed.resid["1"])[real], passed.logits[real])
        assert list(passed.resid) == ["embed", "0", "1", "2"]


@pytest.mark.parametrize("name", ["stories", "slm"])
def test_the_last_layer_of_real_models(name, request):
    model = request.getfixturevalue(name)
    table = logit_lens(model, "Once upon a time there was a cat.")
    assert table.provenance.notes["exact"] is True
    assert (table.kl[-1] == 0).all()
    with torch.no_grad():
        own = model.hf(torch.tensor([as_row(model, "Once upon a time there was a cat.").tokens])).logits[0]
    assert table.top_ids[-1, :, 0].tolist() == own.argmax(-1).tolist()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_what_a_second_norm_would_give(name):
    """HF's hidden_states[-1] is normed already; reading it with the final norm moves the logits. The first is "embed": with GPT-2's
    positions, and with Gemma-2's scale."""
    model = model_of(name)
    given = batch()
    with torch.no_grad():
        states = model.hf(given.tokens, attention_mask=given.attention.long(), output_hidden_states=True).hidden_states
    passed = stream(model, given)
    wrong = unembed(model, states[-1])
    assert not torch.allclose(wrong[given.attention], passed.logits[given.attention], atol=1e-2)
    torch.testing.assert_close(passed.resid["embed"][given.attention], states[0][given.attention], rtol=0, atol=0)
    torch.testing.assert_close(passed.resid["1"][given.attention], states[2][given.attention], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("norm", ["final", "none"])
def test_every_layer_by_its_formula(name, norm):
    """rtol 1e-6: the models' own RMS norms compute in float32 (6e-8) whatever the dtype."""
    model = model_of(name)
    passed = stream(model, batch())
    hf = model.hf
    W_U = hf.get_output_embeddings().weight.detach().numpy()
    for layer in ("embed", "0", "1", "2"):
        for b, p in ((0, 6), (1, 0), (1, 3), (2, 2)):
            h = passed.resid[layer][b, p].numpy()
            if norm == "none":
                expected = W_U @ h
            elif name == "gpt2":
                last = hf.transformer.ln_f
                expected = W_U @ truth.layer_norm(h, last.weight.detach().numpy(), last.bias.detach().numpy(), last.eps)
            elif name == "gemma2":  # its gain is 1 + weight
                last = hf.model.norm
                expected = truth.softcap(W_U @ truth.rms_norm(h, 1 + last.weight.detach().numpy(), last.eps), 2.0)
            else:
                last = hf.model.norm
                expected = W_U @ truth.rms_norm(h, last.weight.detach().numpy(), last.variance_epsilon)
            found = unembed(model, passed.resid[layer], norm=norm)[b, p].numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("site", ["resid_post", "resid_mid", "resid_pre", "attn_out", "mlp_out"])
def test_the_table_by_its_definitions(site):
    """Ranks, top tokens, probabilities, entropy and KL of every cell, against loops over the vocabulary."""
    model = tiny()
    table = logit_lens(model, TEXT, site=site, target=" blue", k=3)
    row = as_row(model, TEXT)
    passed = stream(model, collate([row]), site=site)
    own = passed.logits[0].numpy()
    blue = target_id(model, "blue")
    assert table.layers == ("embed", "0", "1")
    assert list(table.targets) == [NEXT, " blue"]
    for i, layer in enumerate(table.layers):
        read = unembed(model, passed.resid[layer])[0].numpy()
        for j, z in enumerate(read):
            assert table.top_ids[i, j].tolist() == truth.top(z, 3)
            logprob = truth.log_softmax(z)
            np.testing.assert_allclose(table.top_logprob[i, j], logprob[table.top_ids[i, j]], rtol=1e-9)
            assert table.entropy[i, j] == pytest.approx(truth.entropy(z), rel=1e-9)
            assert table.kl[i, j] == pytest.approx(truth.kl(own[j], z), rel=1e-9, abs=1e-12)
            assert table.rank()[i, j] == truth.rank(z, blue)
            assert table.probability()[i, j] == pytest.approx(np.exp(logprob[blue]), rel=1e-9)
            if j + 1 < len(row.tokens):
                assert table.rank(NEXT)[i, j] == truth.rank(z, row.tokens[j + 1])
                assert table.probability(NEXT)[i, j] == pytest.approx(np.exp(logprob[row.tokens[j + 1]]), rel=1e-9)
    assert np.isnan(table.rank(NEXT)[:, -1]).all()
    assert np.isnan(table.probability(NEXT)[:, -1]).all()
    assert not np.isnan(table.rank()).any()


def test_by_hand():
    """A model of three tokens read at one position.

    Logits ln 4, ln 2, ln 2 give p = 1/2, 1/4, 1/4: entropy (1/2) ln 2 + 2 (1/4) ln 4 = 1.5 ln 2. The model itself is uniform:
    KL = ln(1/3) - (ln(1/2) + 2 ln(1/4)) / 3 = (5/3) ln 2 - ln 3. Tokens 1 and 2 tie: both have rank 2, the lower id comes first.
    """
    found = torch.tensor([[4.0, 2.0, 2.0]], dtype=torch.float64).log()
    own = torch.full((1, 3), 1 / 3, dtype=torch.float64).log()
    got = reading(found, own, torch.tensor([[2], [0], [-1]]), 2, "0")
    assert got.top_ids.tolist() == [[0, 1]]
    np.testing.assert_allclose(np.exp(got.top_logprob), [[0.5, 0.25]], rtol=1e-12)
    assert got.ranks[:2].tolist() == [[2], [1]]
    np.testing.assert_allclose(np.exp(got.logprobs[:2]), [[0.25], [0.5]], rtol=1e-12)
    assert got.entropy[0] == pytest.approx(1.5 * np.log(2), rel=1e-12)
    assert got.kl[0] == pytest.approx(5 / 3 * np.log(2) - np.log(3), rel=1e-12)


def test_equal_logits_come_in_order_of_id():
    """A coarse grid of values, so that most rows have ties at the threshold and above it."""
    z = torch.randint(0, 4, (50, 30), generator=torch.Generator().manual_seed(0)).float()
    for k in (1, 2, 7, 30):
        assert top_ids(z, k).tolist() == [truth.top(row, k) for row in z.numpy()]
    assert top_ids(z.reshape(5, 10, 30), 4).tolist() == top_ids(z, 4).reshape(5, 10, 4).tolist()


def test_layers_and_positions_are_those_asked_for():
    model = tiny()
    whole = logit_lens(model, TEXT)
    part = logit_lens(model, TEXT, layers=[1, "embed"], positions=[-2, 0])
    assert (part.layers, part.positions, part.tokens) == (("1", "embed"), (5, 0), (whole.tokens[5], whole.tokens[0]))
    for kept in ("top_ids", "top_logprob", "entropy", "kl"):
        np.testing.assert_array_equal(getattr(part, kept), getattr(whole, kept)[np.ix_([2, 0], [5, 0])])
    np.testing.assert_array_equal(part.rank(), whole.rank()[np.ix_([2, 0], [5, 0])])


def test_an_answer_is_read_as_it_was_trained(root):
    """Prompt and answer go through the template; the organism says its answer by heart, from the colon to the end of text."""
    model = wb.load(root / "data/organism/full")
    row = wb.examples("tofu:forget", root=root / "data/tofu-mini")[0]
    table = logit_lens(model, (row.prompt, row.response))
    assert "".join(table.tokens).startswith("Question: What is the full name")
    start = next(j for j, token in enumerate(table.tokens) if token == ":" and table.tokens[j - 1] == "Answer")
    assert (table.rank()[-1, start:-1] == 1).all()
    assert table.probability()[-1, start:-1].min() > 0.9
    assert (table.rank()[0, start:-1] > 1).mean() > 0.9  # not from the embedding of the token before
    asked = logit_lens(model, row.prompt, chat=True)
    assert "".join(asked.tokens) == f"Question: {row.prompt}\nAnswer:"


def test_frames():
    table = logit_lens(tiny(), TEXT)
    frame = table.frame()
    assert len(frame) == 3 * 7
    line = frame[(frame.layer == "0") & (frame.position == 2)].iloc[0]
    assert (line["token"], line["target"]) == (" the", " color")
    assert line["rank"] == table.rank()[1, 2]
    assert line["logprob"] == pytest.approx(np.log(table.probability()[1, 2]), rel=1e-12)
    assert line["probability"] == np.exp(table.top_logprob[1, 2, 0])
    assert line["top"] == table.words[int(table.top_ids[1, 2, 0])]
    last = frame[frame.position == 6]
    assert last["rank"].isna().all()
    assert last["logprob"].isna().all()
    by_layer = table.by_layer().set_index("layer")
    assert by_layer.loc["0", "n"] == 6
    assert by_layer.loc["0", "median_rank"] == np.median(table.rank()[1, :-1])
    assert by_layer.loc["0", "first"] == (table.rank()[1, :-1] == 1).mean()
    rank = np.array([[1.0, 2.0, 2.0, 3.0, 1.0, 9.0, 4.0]] * 3, dtype=np.int64)[:, None]  # the last has no target: 2 of 6 are first
    assert (replace(table, ranks=rank).by_layer()["first"] == 2 / 6).all()
    assert (replace(table, ranks=rank).by_layer()["median_rank"] == 2).all()
    assert by_layer.loc["0", "logprob"] == pytest.approx(np.log(table.probability()[1, :-1]).mean(), rel=1e-12)
    assert by_layer.loc["0", "kl"] == pytest.approx(table.kl[1].mean(), rel=1e-12)
    assert (by_layer.logprob_low <= by_layer.logprob).all()
    assert (by_layer.logprob <= by_layer.logprob_high).all()


def test_a_text_of_one_token_has_no_next():
    table = logit_lens(tiny(), "sky")
    assert np.isnan(table.rank()).all()
    assert "no finite value to show" in table._repr_html_()
    with pytest.raises(DataError, match="no token follows any of the positions kept"):
        table.by_layer()


def test_pictures_are_static_and_escaped():
    table = logit_lens(tiny(), TEXT)
    wicked = dict.fromkeys(table.words, "<script>alert(1)</script>\x1b & ")
    html = replace(table, words=wicked, tokens=("<b>",) * 7)._repr_html_()
    assert "<script" not in html
    assert "<b>" not in html
    assert "\x1b" not in html
    assert "http" not in html
    assert "&lt;script&gt;" in html
    assert html.count("<td") == 3 * 7
    assert "logit_lens, resid_post, norm final" in html
    assert "rank of the token that follows, 1 = most likely" in html
    assert "rank of ·blue" in logit_lens(tiny(), TEXT, target="blue")._repr_html_()


def test_the_cell_that_names_the_target_is_underlined(root):
    model = wb.load(root / "data/organism/full")
    row = wb.examples("tofu:forget", root=root / "data/tofu-mini")[0]
    table = logit_lens(model, (row.prompt, row.response))
    shown = slice(-40, None)
    assert table._repr_html_().count("<u>") == int((table.rank()[:, shown] == 1).sum())
    assert f"The last 40 of {len(table.tokens)} positions" in table._repr_html_()


def test_tokens_keep_their_spaces(stories, slm, root):
    """Sentencepiece, characters, bytes and words; the decoder alone would drop the first space."""
    for model in (stories, slm, wb.load(root / "data/organism/full"), tiny()):
        row = as_row(model, "the sky is blue")
        texts = token_texts(model.tokenizer, row.tokens)
        assert "".join(texts).removeprefix(str(model.tokenizer.bos_token)).lstrip() == "the sky is blue"
    assert show(" a\n\t") == "·a↵⇥"
    assert show("") == "∅"


def test_targets(stories):
    assert target_id(tiny(), "blue") == target_id(tiny(), 9) == 9
    cat = target_id(stories, " a")
    assert token_texts(stories.tokenizer, [cat]) == [" a"]
    with pytest.raises(InputError, match=r"the target 'elephant' is \d tokens \(.* = \d+, .*\), and a rank is one token's"):
        target_id(stories, "elephant")
    with pytest.raises(InputError, match="the target '' is 0 tokens"):
        target_id(stories, "")
    for wrong in (512, -1, True):
        with pytest.raises(InputError, match=f"target {wrong} is not a token; the model has ids 0 to 511"):
            target_id(stories, wrong)
    with pytest.raises(UnknownNameError, match=r"unknown target \(pass target= to the lens\) ' red'"):
        logit_lens(tiny(), TEXT).rank(" red")


def test_bad_texts(stories, slm):
    for model, text in ((stories, ""), (slm, "ÄÖÜ"), (tiny(), "")):
        with pytest.raises(DataError, match="there is no token to read in the text"):
            logit_lens(model, text)
    with pytest.raises(DataError, match="no token to read in an empty list of token ids"):
        logit_lens(stories, [])
    with pytest.raises(InputError, match="token id 512 does not exist; the model has ids 0 to 511"):
        logit_lens(stories, [1, 512])
    with pytest.raises(DataError, match="the text has 129 tokens, but the model's context is 128"):
        logit_lens(slm, "a" * 129)
    ids = torch.tensor(as_row(stories, "a cat").tokens)
    np.testing.assert_array_equal(logit_lens(stories, ids).kl, logit_lens(stories, "a cat").kl)


def test_bad_options():
    model = tiny()
    with pytest.raises(InputError, match="has layers 0 to 1"):
        logit_lens(model, TEXT, layers=[2])
    with pytest.raises(InputError, match="has layers 0 to 1"):
        logit_lens(model, TEXT, layers=[-1])
    with pytest.raises(InputError, match="layer 'last'; expected 'embed' or a number from 0 to 1"):
        logit_lens(model, TEXT, layers=["last"])
    with pytest.raises(InputError, match="layers is empty"):
        logit_lens(model, TEXT, layers=[])
    with pytest.raises(UnknownNameError, match="unknown site for a lens 'mlp.post'"):
        logit_lens(model, TEXT, site="mlp.post")
    with pytest.raises(UnknownNameError, match="no module of GPTNeoXForCausalLM reads or writes this alone"):
        logit_lens(model_of("gpt_neox"), TEXT, site="resid_mid")
    with pytest.raises(UnknownNameError, match="unknown norm 'finale'. Did you mean 'final'"):
        unembed(model, torch.zeros(1, 8, dtype=torch.float64), norm="finale")
    with pytest.raises(InputError, match="positions has 7; the text has tokens 0 to 6"):
        logit_lens(model, TEXT, positions=[7])
    with pytest.raises(InputError, match="positions has nothing"):
        logit_lens(model, TEXT, positions=[])
    for k in (0, 17):
        with pytest.raises(InputError, match=f"k is {k}, expected 1 to 16"):
            logit_lens(model, TEXT, k=k)
    model.hf.train()
    with pytest.raises(InputError, match="training mode"):
        logit_lens(model, TEXT)


def test_a_model_with_a_step_of_its_own_is_refused():
    model = model_of("llama")
    handle = model.hf.register_forward_hook(lambda m, args, out: setattr(out, "logits", out.logits * 2))
    with pytest.raises(ModelError, match="misses the logits of LlamaForCausalLM by 5.0e-01 of the largest"):
        logit_lens(model, TEXT)
    handle.remove()
    handle = model.hf.register_forward_hook(lambda m, args, out: setattr(out, "logits", out.logits * (1 + 1e-14)))
    assert logit_lens(model, TEXT).provenance.notes["exact"] is False
    handle.remove()
    handle = model.hf.register_forward_hook(lambda m, args, out: setattr(out, "logits", out.logits * (1 + 1.5e-10)))
    with pytest.raises(ModelError, match="by 1.5e-10 of the largest"):
        logit_lens(model, TEXT)
    handle.remove()


def test_what_stands_at_padding_does_not_matter():
    model, given = tiny(), batch()
    passed = stream(model, given)
    spoiled = passed.logits.masked_fill(~given.attention[..., None], torch.nan)
    assert check_last(model, passed._replace(logits=spoiled))


def test_an_end_of_text_that_the_tokenizer_appends_is_not_read():
    """Nothing is to be predicted behind it. One that the text itself ends with stays."""
    model = tiny()
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 0)])
    assert model.tokenizer("the sky")["input_ids"] == [4, 7, 0]
    assert as_row(model, "the sky").tokens == [4, 7]
    assert as_row(model, "the sky <end>").tokens == [4, 7, 0]


def test_a_layer_that_is_not_finite_is_named():
    model = tiny()
    with torch.no_grad():
        model.hf.lm_head.weight[3] = torch.inf
    with pytest.raises(NumericsError, match="the model's own logits: .* are NaN or infinite"):
        logit_lens(model, TEXT)
    found = torch.tensor([[0.0, torch.nan]])
    with pytest.raises(NumericsError, match="lens at layer 3: logits: 1 of 2 values are NaN or infinite"):
        reading(found, found, torch.tensor([[0]]), 1, "3")
    gemma = model_of("gemma2")
    with pytest.raises(NumericsError, match="the model's own logits"):
        check_last(gemma, stream(gemma, batch("left")))


def test_nothing_is_left_behind():
    model = tiny()
    before = model.fingerprint()
    logit_lens(model, TEXT)
    assert model.fingerprint() == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    assert all(p.grad is None for p in model.hf.parameters())
    said = repr(logit_lens(model, TEXT, norm="none"))
    assert said == "LensTable('logit_lens', 3 layers x 7 positions, resid_post, norm 'none', targets: next token)"
