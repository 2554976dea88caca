import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

import workbench as wb
from tests.evaluate.cases import LETTERS, ROOT, STORY
from tests.reference import answers as slow
from workbench.core.errors import DataError, InputError, MemoryPlanError, NumericsError
from workbench.core.numerics import isolated_rng
from workbench.core.records import Example, Examples
from workbench.evaluate import prompts
from workbench.evaluate.probability import probability
from workbench.evaluate.prompts import start
from workbench.evaluate.tokens import _plan, tokens
from workbench.load.batches import encode

SETS = {"stories260K": STORY, "slm4096": LETTERS}


def sliding(seed=0):
    """A Mistral with a window of 8 tokens: its cache forgets, so prompts cannot be continued from it."""
    tokenizer = wb.load(ROOT / "data/models/stories260K").tokenizer
    config = MistralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    with isolated_rng(seed):
        return wb.wrap(MistralForCausalLM(config), tokenizer, name="sliding")


def load(name, dtype="float32"):
    model = sliding() if name == "sliding" else wb.load(ROOT / "data/models" / name)
    model.hf.to(getattr(torch, dtype))
    return model


def one_by_one(model, rows):
    """Every answer read by a whole forward pass of its own."""
    out = []
    for row in rows:
        for answer in (row.response, row.paraphrase, *row.perturbed):
            if answer is not None:
                coded = encode(model, row.prompt, answer)
                out += slow.answer_statistics(model.hf, coded.tokens, coded.start)
    return {key: np.array([token[key] for token in out]) for key in out[0]}


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["stories260K", "slm4096", "sliding"])
def test_equals_one_full_forward_an_answer(name, dtype, batch_tokens):
    model, rows = load(name, dtype), SETS.get(name, STORY)
    table, want = tokens(model, rows, batch_tokens=batch_tokens), one_by_one(model, rows)
    # float64: what the table's float32 rounds off, 6e-8 of values up to 30. float32: measured at most 1.3e-5 in log-probabilities
    # and 4e-5 in variances; that float64 shrinks it to the rounding shows that padding and cache add nothing but rounding.
    tight = dtype == "float64"
    for key in ("logprob", "mean", "variance"):
        limit = {"atol": 1e-6, "rtol": 1e-6} if tight else {"atol": 1e-4 if key == "variance" else 3e-5, "rtol": 1e-5}
        np.testing.assert_allclose(getattr(table, key), want[key], err_msg=key, **limit)
    np.testing.assert_array_equal(table.top, want["top"])
    # in float32 two tokens that are 1e-6 apart may change places
    np.testing.assert_allclose(table.rank, want["rank"], atol=0 if tight else 1)


@pytest.mark.parametrize(("name", "cached"), [("stories260K", True), ("slm4096", True), ("sliding", False)])
def test_which_models_have_a_plain_cache(name, cached):
    assert (start(load(name), [[5, 6, 7], [8]]).cache is not None) == cached


@pytest.mark.parametrize("name", ["stories260K", "slm4096"])
def test_without_a_cache_the_numbers_are_the_same(name, monkeypatch):
    model, rows = load(name, "float64"), SETS[name]
    cached = tokens(model, rows, generate=12)
    monkeypatch.setattr(prompts, "_is_plain", lambda cache: False)
    again = tokens(model, rows, generate=12)
    np.testing.assert_allclose(again.logprob, cached.logprob, rtol=1e-6, atol=1e-6)  # float32 rounding of float64 values
    assert again.generated == cached.generated


def test_a_prompt_goes_through_once():
    model = load("stories260K")
    seen = []
    hook = model.hf.register_forward_pre_hook(lambda m, a, given: seen.append(given), with_kwargs=True)
    table = tokens(model, STORY)
    hook.remove()
    plan = _plan(model, STORY)
    assert plan.response[0] == plan.response[2], "rows a and c ask the same"
    d = [answer.prompt for answer in plan.answers if answer.row == 3]
    assert len(set(d)) > 1, "the answers of row d split its last space differently, so it has two prompts"
    assert len(plan.prompts) == 4
    assert table.prompt_tokens == sum(map(len, plan.prompts))
    # padding aside, the model saw every prompt once and every answer without its last token
    real = sum(int(given["attention_mask"][:, -given["input_ids"].shape[1] :].sum()) for given in seen)
    assert real == table.prompt_tokens + len(table) - len(plan.answers)


def test_columns_and_answers():
    model = load("stories260K")
    table = tokens(model, STORY)
    assert table.variants == ("response", "paraphrase", "perturbed.0", "perturbed.1")
    assert table.truth[2] == "I"
    coded = encode(model, STORY[0].prompt, "x")
    here = (table.row == 0) & (table.variant == 3)
    assert table.token[here].tolist() == coded.tokens[coded.start :]
    assert table.token[here][-1] == model.tokenizer.eos_token_id
    assert table.position[here].tolist() == list(range(here.sum()))
    # the mean of the column is the record the metrics read; no answer is NaN, not 0
    assert table.answers.perturbed[0, 1] == pytest.approx(-table.logprob[here].astype(np.float64).mean(), rel=1e-12)
    assert np.isnan(table.answers.paraphrase[1])
    assert np.isnan(table.answers.perturbed[2]).all()


def test_order_of_rows_does_not_matter():
    model, order = load("stories260K"), [2, 3, 0, 1]
    one, two = tokens(model, STORY).answers, tokens(model, STORY.take(order)).answers
    assert two.ids == ("c", "d", "a", "b")
    np.testing.assert_allclose(two.response, one.response[order], rtol=1e-5)  # float32, another batch
    np.testing.assert_allclose(two.perturbed, one.perturbed[order], rtol=1e-5)


def test_a_uniform_model():
    model = load("stories260K")
    with torch.no_grad():
        model.hf.get_output_embeddings().weight.zero_()
    table = tokens(model, STORY)
    np.testing.assert_allclose(probability(table), 1 / 512, rtol=1e-6)
    np.testing.assert_allclose(table.mean, -np.log(512), rtol=1e-6)
    np.testing.assert_allclose(table.variance, 0, atol=1e-10)
    assert (table.rank == 0).all()


def test_bfloat16():
    model = load("stories260K", "bfloat16")
    table, want = tokens(model, STORY), one_by_one(model, STORY)
    # 8 bits of mantissa in every activation: about 1 % of a logit of 10; measured .11
    np.testing.assert_allclose(table.logprob, want["logprob"], atol=0.25)
    assert table.provenance.dtype == "bfloat16"


def test_provenance():
    model = load("stories260K")
    table = tokens(model, STORY, generate=3)
    assert table.provenance.model == model.fingerprint() == table.answers.source
    assert table.provenance.data == {"examples": STORY.fingerprint()}
    assert table.provenance.options == {"generate": 3, "batch_tokens": 4096}
    assert table.provenance.tokens == len(table) + table.prompt_tokens


def test_bad_options():
    model = load("stories260K")
    with pytest.raises(InputError, match="generate is 0, expected at least 1 or None"):
        tokens(model, STORY, generate=0)
    with pytest.raises(InputError, match=r"batch_tokens is -1, expected at least 1\."):
        tokens(model, STORY, batch_tokens=-1)
    with pytest.raises(MemoryPlanError, match=r"logits of one batch.*Lower batch_tokens"):
        tokens(model, STORY, batch_tokens=10**12)


def test_nothing_before_the_answer():
    with pytest.raises(DataError, match=r"row 'x': no token stands before the answer.*Give the row a prompt"):
        tokens(load("slm4096"), Examples([Example("x", "", "SLM")], "empty prompt"))


def test_a_row_longer_than_the_context():
    with pytest.raises(DataError, match=r"1 of 1 rows do not fit the model's context of 128 tokens: row 'x': \d+ tokens"):
        tokens(load("slm4096"), Examples([Example("x", "Q:", "A" * 200)], "long"))


def test_weights_that_overflow_name_the_row():
    model = load("stories260K")
    with torch.no_grad():
        model.hf.get_output_embeddings().weight[300] = float("nan")
    with pytest.raises(NumericsError, match=r"row 'a' of story has a log-probability that is NaN.*dtype='float32'"):
        tokens(model, STORY)
