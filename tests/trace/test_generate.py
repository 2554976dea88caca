"""Greedy text through Hugging Face's generate: the same as the judges' own, whatever the batch."""

import pytest

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


def test_refusals(slm):
    with pytest.raises(InputError, match="there is no prompt"):
        slm.generate([])
    with pytest.raises(InputError, match="prompt 1 cannot be continued: no token is left"):
        slm.generate(["What?", "\u0416"])
    with pytest.raises(InputError, match="it has 200 tokens, the model's context 128"):
        slm.generate("a" * 200)
