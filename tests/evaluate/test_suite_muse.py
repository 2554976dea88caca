from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from tests.reference import muse as slow
from workbench.core.errors import DataError, InputError, TooLongError, UnknownNameError
from workbench.core.records import Example, Examples
from workbench.evaluate import muse, read_muse, suite
from workbench.evaluate.suites.muse import cut_at_stop, read_privacy
from workbench.load.passages import Passage, Passages, asked, continuations, without_chat

SIZES = {"prompt_tokens": 6, "new_tokens": 12, "answer_tokens": 8}


def texts(name, *rows):
    return Passages((Passage(f"{name}{i}", row) for i, row in enumerate(rows)), name)


@pytest.fixture(scope="module")
def model(root):
    return wb.load(root / "data/models/stories260K", dtype="float64")


@pytest.fixture(scope="module")
def data():
    # unequal lengths; what the model was trained on is a story, so the first continuation is partly right
    return {
        "forget_text": texts(
            "f",
            "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her friends.",
            "The dog was very happy. He ran to the big red ball and he said to the cat that it was his, and then he went home.",
            "One day the boy went to the sea with his mom and saw a big fish in the blue water near a very small boat.",
        ),
        "retain_text": texts(
            "r", "There was a cat who lived in a house. The cat liked to sleep in the sun and eat fish all day long."
        ),
        "holdout_text": texts(
            "h",
            "A committee of seven members reviews each proposal, unless an appeal is pending before the regional court.",
            "Once upon a time there was a boy named Tim. He liked to play with his toys and he had a big red ball.",
        ),
        "forget_qa": Examples([Example("a", "What did Lily do?", "She played."), Example("b", "Who was it?", "A small dog")], "q"),
        "retain_qa": Examples([Example("c", "Where was the cat?", "In the sun"), Example("d", "Who?", "Tim and Sue")], "q"),
    }


@pytest.fixture(scope="module")
def tables(model, data):
    return read_muse(model, data, **SIZES)


def test_numbers_against_the_slow_way(model, data, tables):
    found = muse(tables)
    for split in ("forget_text", "retain_text"):
        rows = continuations(model, data[split], prompt_tokens=6, new_tokens=12)
        made = [slow.greedy(model.hf, model.tokenizer, row.prompt, 12) for row in rows]
        want = [slow.rouge_l_f(row.response, text) for row, text in zip(rows, made, strict=True)]
        assert found["rouge_l_f", split].value == pytest.approx(np.mean(want), rel=1e-12)
    for split in ("forget_qa", "retain_qa"):
        rows = asked(data[split])
        made = [cut_at_stop(slow.greedy(model.hf, model.tokenizer, row.prompt, 8)) for row in rows]
        want = [slow.rouge_l_f(row.response, text) for row, text in zip(rows, made, strict=True)]
        assert found["rouge_l_f", split].value == pytest.approx(np.mean(want), rel=1e-12)
    sides = [
        [slow.min_k(model.hf, model.tokenizer, row.text, 0.4) for row in data[split]] for split in ("forget_text", "holdout_text")
    ]
    assert found["auc", "forget_whole"].value == pytest.approx(slow.auc(*sides), rel=1e-12)


def test_a_model_against_itself_leaks_nothing(model, data, tables):
    rows = muse(tables, read_privacy(model, data))
    leak = rows["privleak", "forget_whole"]
    assert (leak.value, leak.unit, leak.better) == (0.0, "percent", "zero")
    assert suite("muse", model, data=data, reference=model, options=SIZES)["privleak", "forget_whole"].value == 0.0


def test_the_suite_is_the_tables_and_then_the_numbers(model, data, tables):
    whole = suite("muse", model, data=data, options=SIZES)
    assert [(row.metric, row.split, row.value) for row in whole] == [(row.metric, row.split, row.value) for row in muse(tables)]
    assert ("privleak", "forget_whole") not in whole
    assert whole["rouge_l_f", "forget_qa"].better == "lower"
    assert whole["rouge_l_f", "retain_qa"].better == "higher"
    for row in whole:
        assert row.low <= row.value <= row.high


def test_only_the_needed_splits(model, data):
    least = {split: data[split] for split in ("forget_text", "forget_qa", "retain_qa")}
    found = suite("muse", model, data=least, options=SIZES)
    assert {row.split for row in found} == set(least)
    short = suite("muse", model, data=least, options=SIZES | {"new_tokens": 3})
    assert short["rouge_l_f", "forget_text"].value != found["rouge_l_f", "forget_text"].value


def test_the_end_of_a_cut_passage_does_not_count(model, tables):
    table = tables["forget_text"]
    own = table.token != model.tokenizer.eos_token_id
    assert (~own).sum() == len(table.ids)  # one behind every passage
    right = (table.top == table.token)[own]
    want = np.bincount(table.row[own], weights=right) / np.bincount(table.row[own])
    assert right.any()
    assert muse(tables)["exact_memorization", "forget_text"].value == pytest.approx(want.mean(), rel=1e-12)


def test_words_are_not_stemmed(tables):
    # "runs" and "running" have one stem and are two words: 2 of 3 words shared, F = 2 * 2 / 6 = 2/3; with stems it would be 1
    changed = replace(tables["forget_text"], truth=("the dog running",) * 3, generated=("the dog runs",) * 3)
    assert muse({**tables, "forget_text": changed})["rouge_l_f", "forget_text"].value == pytest.approx(2 / 3)


def test_stops_by_hand():
    assert cut_at_stop("In May.\n\nHe left.") == "In May."
    assert cut_at_stop("In May.\nQuestion: Who?\n\nHe") == "In May."
    assert cut_at_stop("In May. Question: Who?") == "In May. "
    assert cut_at_stop("In May") == "In May"


def test_a_chat_template_is_not_read(root, data):
    """The organism's template puts "Question: ...\\nAnswer:" around a prompt; passages and questions must not get it twice."""
    model = wb.load(root / "data/organism/full")
    least = {split: data[split] for split in ("forget_text", "forget_qa", "retain_qa")}
    one, other = (read_muse(m, least, **SIZES) for m in (model, without_chat(model)))
    for split in least:
        np.testing.assert_array_equal(one[split].logprob, other[split].logprob)
        assert one[split].generated == other[split].generated


def test_known_passages_are_recognized(root):
    """Questions the organism learned by heart, in the frame it learned them in."""
    model, rows = wb.load(root / "data/organism/full"), wb.examples("tofu:forget", root=root / "data/tofu-mini")[:6]
    passage = texts("p", *(" ".join(["story", row.response]) for row in rows))
    data = {"forget_text": passage, "forget_qa": rows, "retain_qa": rows}
    found = suite("muse", model, data=data, options=SIZES | {"answer_tokens": 100})
    assert found["rouge_l_f", "forget_qa"].value > 0.95


def test_solved_questions_in_front(model, data):
    least = {split: data[split] for split in ("forget_text", "forget_qa", "retain_qa")}
    shots = Examples([Example("s", "Who sat?", "The cat sat.")], "shots")
    with_shots = suite("muse", model, data=least, options=SIZES | {"shots": shots})
    assert (
        with_shots["rouge_l_f", "forget_text"].value
        == suite("muse", model, data=least, options=SIZES)["rouge_l_f", "forget_text"].value
    )
    prompts = read_muse(model, least, **SIZES, shots=shots)["forget_qa"].prompt_tokens
    assert prompts > read_muse(model, least, **SIZES)["forget_qa"].prompt_tokens


def test_bad_input(model, data, tables):
    with pytest.raises(
        DataError, match="muse: no retain_qa among forget_text, forget_qa; it needs forget_text, forget_qa, retain_qa"
    ):
        suite("muse", model, data={split: data[split] for split in ("forget_text", "forget_qa")})
    with pytest.raises(UnknownNameError, match="unknown split of muse 'forget'. Did you mean 'forget_qa'"):
        suite("muse", model, data=data | {"forget": data["forget_qa"]})
    with pytest.raises(InputError, match="muse: forget_text is a Examples, expected Passages"):
        suite("muse", model, data=data | {"forget_text": data["forget_qa"]})
    without = {split: rows for split, rows in data.items() if split != "holdout_text"}
    with pytest.raises(DataError, match="a reference is given, but no holdout_text"):
        suite("muse", model, data=without, reference=model, options=SIZES)
    with pytest.raises(DataError, match="a reference is given, but no holdout_whole"):
        muse(tables, {"forget_whole": tables["forget_whole"]})
    with pytest.raises(DataError, match="passage 'f0' .* has .* tokens and no word behind the first 200"):
        suite("muse", model, data=data, options={"prompt_tokens": 200})
    long = data | {"holdout_text": texts("h", "the big red ball " * 400)}
    with pytest.raises(TooLongError, match="muse, PrivLeak: .*row 'h0': .* tokens.* Or give max_tokens=512, which cuts their ends"):
        read_privacy(model, long)
    assert len(read_privacy(model, long, max_tokens=512)) == 2
    with pytest.raises(UnknownNameError, match="unknown option of muse 'new_token'. Did you mean 'new_tokens'"):
        suite("muse", model, data=data, options={"new_token": 3})
