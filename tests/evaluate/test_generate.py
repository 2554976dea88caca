import pytest
import torch

import workbench as wb
from tests.evaluate.cases import ROOT, STORY
from tests.reference import answers as slow
from workbench.core.records import Example, Examples
from workbench.evaluate.generate import greedy, stop_tokens, text
from workbench.evaluate.prompts import start
from workbench.evaluate.tokens import tokens
from workbench.load.batches import encode

MANY = Examples([Example(str(i), "Once upon a time there was a girl"[: 5 + 3 * i], "yes") for i in range(6)], "many")


@pytest.fixture(params=["float64", "float32"])
def stories(request):
    return wb.load(ROOT / "data/models/stories260K", dtype=request.param)


def prompts_of(model, rows):
    coded = [encode(model, row.prompt, row.response) for row in rows]
    return [c.tokens[: c.start] for c in coded]


def one_by_one(model, rows, *, most):
    ends = stop_tokens(model)
    return [slow.greedy(model.hf, p, most=most, ends=ends, context=model.context) for p in prompts_of(model, rows)]


def test_equals_one_by_one(stories):
    full_stop = stories.tokenizer.convert_tokens_to_ids(".")
    stories.hf.generation_config.eos_token_id = [2, full_stop]  # so that rows end at different steps
    want = one_by_one(stories, MANY, most=20)
    assert len({len(made) for made in want}) > 2, "the rows must stop at different lengths for this to test anything"
    assert greedy(stories, start(stories, prompts_of(stories, MANY)), max_new_tokens=20) == want
    assert tokens(stories, MANY, generate=20).generated == tuple(text(stories, made) for made in want)


@pytest.mark.parametrize("batch_tokens", [1, 30])
def test_batches_do_not_matter(stories, batch_tokens):
    want = tuple(text(stories, made) for made in one_by_one(stories, STORY, most=8))
    assert tokens(stories, STORY, generate=8, batch_tokens=batch_tokens).generated == want


def test_stops_at_the_context():
    slm = wb.load(ROOT / "data/models/slm4096")
    assert stop_tokens(slm) == set()
    rows = [[7, 3] * 60, [5] * 124]
    made = greedy(slm, start(slm, rows), max_new_tokens=500)
    assert [len(m) for m in made] == [128 - 120, 128 - 124]
    assert made == [slow.greedy(slm.hf, row, most=500, ends=set(), context=128) for row in rows]


def test_a_full_context_generates_nothing():
    slm = wb.load(ROOT / "data/models/slm4096")
    made = greedy(slm, start(slm, [[1] * 128, [1] * 126]), max_new_tokens=5)
    assert [len(m) for m in made] == [0, 2]


def test_rows_with_one_prompt_share_their_text(stories):
    made = tokens(stories, STORY, generate=5).generated
    assert made[0] == made[2]
    assert tokens(stories, STORY).generated == (None,) * 4


def test_sampling_settings_of_the_checkpoint_are_ignored(stories):
    want = tokens(stories, STORY, generate=10).generated
    stories.hf.generation_config.repetition_penalty = 5.0
    stories.hf.generation_config.do_sample = True
    torch.manual_seed(0)
    assert tokens(stories, STORY, generate=10).generated == want


def test_text_leaves_special_tokens_and_outer_space_out(stories):
    ids = stories.tokenizer(" Once upon", add_special_tokens=True)["input_ids"]
    assert ids[0] == stories.tokenizer.bos_token_id
    assert text(stories, [*ids, 2]) == "Once upon"
