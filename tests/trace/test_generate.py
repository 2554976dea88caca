"""Greedy text through Hugging Face's generate: the same as the judges' own, whatever the batch."""

import pytest
from transformers import GenerationConfig

from workbench.core.errors import InputError
from workbench.evaluate.generate import greedy, text
from workbench.evaluate.prompts import start
from workbench.load.batches import encode


def test_it_says_what_the_judges_read(stories, forget):
    rows = forget[:4]
    coded = [encode(stories, row.prompt, row.response) for row in rows]
    expected = greedy(stories, start(stories, [row.tokens[: row.start] for row in coded]), max_new_tokens=12)
    assert stories.generate([row.prompt for row in rows], max_new_tokens=12) == [text(stories, new) for new in expected]
    assert stories.generate(rows[0].prompt, max_new_tokens=12) == [text(stories, expected[0])]


def test_a_model_without_special_tokens(slm):
    assert slm.generate(["Q: Can you reason?\nA:", "Q: What is SLM?\nA:"], max_new_tokens=18) == [
        "I can produce the",
        "SLM is a Small La",
    ]


def test_penalties_of_the_checkpoint_do_not_act(slm):
    prompts = ["Q: Can you reason?\nA:", "Q: What is SLM?\nA:"]
    expected = slm.generate(prompts, max_new_tokens=18)
    before = slm.hf.generation_config
    settings = GenerationConfig(
        repetition_penalty=3.0, no_repeat_ngram_size=1, min_new_tokens=3, suppress_tokens=[5, 6], num_beams=2, do_sample=True
    )
    slm.hf.generation_config = settings
    try:
        assert slm.generate(prompts, max_new_tokens=18) == expected
        assert slm.hf.generation_config is settings
        assert settings.repetition_penalty == 3.0
        with pytest.raises(InputError, match="there is no prompt"):
            slm.generate([])
    finally:
        slm.hf.generation_config = before


def test_the_checkpoints_own_settings_come_back_after_an_error(slm, monkeypatch):
    before = slm.hf.generation_config
    monkeypatch.setattr(slm.hf, "forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        slm.generate("What?")
    assert slm.hf.generation_config is before


def test_every_end_of_text_that_the_checkpoint_names_ends_a_text(slm):
    prompt = "Q: Can you reason?\nA:"
    (end,) = slm.tokenizer("d")["input_ids"]
    before = slm.hf.generation_config.eos_token_id
    slm.hf.generation_config.eos_token_id = [end]
    try:
        said = slm.generate(prompt, max_new_tokens=18)[0]
    finally:
        slm.hf.generation_config.eos_token_id = before
    assert said == "I can prod"


def test_a_long_prompt_does_not_cut_the_others_short(slm):
    long = "Q: What is SLM?\nA:" * 6 + "Q: What is SLM?"  # 123 of 128 tokens
    short = "Q: What is SLM?\nA:"
    assert slm.context - len(slm.tokenizer(long)["input_ids"]) == 5
    alone = [slm.generate(text, max_new_tokens=18)[0] for text in (long, short)]
    assert alone[1] == "SLM is a Small La"
    assert slm.generate([long, short], max_new_tokens=18) == alone
    assert slm.generate([short, long], max_new_tokens=5)[0] == "SLM"


def test_refusals(slm):
    with pytest.raises(InputError, match="there is no prompt"):
        slm.generate([])
    with pytest.raises(InputError, match="prompt 1 cannot be continued: no token is left"):
        slm.generate(["What?", "\u0416"])
    with pytest.raises(InputError, match="it has 200 tokens, the model's context 128"):
        slm.generate("a" * 200)
    with pytest.raises(InputError, match="max_new_tokens is 0; expected 1 or more"):
        slm.generate("What?", max_new_tokens=0)
