import json

import pytest

import workbench as wb
from tests.tiny import tiny
from workbench.core.errors import DataError, InputError
from workbench.core.records import Example, Examples
from workbench.load.batches import encode
from workbench.load.passages import Passage, Passages, asked, continuations, passages, whole, without_chat

TEXT = "The quick brown fox (a small one) jumps over 12 lazy dogs, twice; then it sleeps until noon."


@pytest.fixture(scope="module")
def organism(root):
    return without_chat(wb.load(root / "data/organism/full"))


def rows(*texts):
    return Passages((Passage(f"p{i}", text) for i, text in enumerate(texts)), "passages")


@pytest.mark.parametrize("name", ["organism", "stories", "slm"])
def test_the_parts_are_the_text_and_their_tokens_are_its_tokens(name, request):
    model = request.getfixturevalue(name)
    text = TEXT if name != "slm" else "Q: What is SLM?\nA: SLM is a Small Language Model trained on a single page."
    every = model.tokenizer(text)["input_ids"]
    for count in (1, 2, 5, 9):
        (row,) = continuations(model, rows(text), prompt_tokens=count, new_tokens=8)
        assert text.startswith(row.prompt + row.response)
        coded = encode(model, row.prompt, row.response, end=False)
        assert coded.tokens == every[: len(coded.tokens)]
        lead = sum(1 for token in every if token in model.tokenizer.all_special_ids)  # one in front of stories260K's texts
        assert coded.start >= count + lead
        assert len(coded.tokens) - coded.start == 8


def test_cut_by_hand():
    # one token a word: "the sea is blue and the sky is very blue"; four tokens in front, three behind
    text = "the sea is blue and the sky is very blue"
    (row,) = continuations(tiny(), rows(text), prompt_tokens=4, new_tokens=3)
    assert (row.prompt, row.response) == ("the sea is blue ", "and the sky")
    (row,) = whole(tiny(), rows(text))
    assert (row.prompt, row.response) == ("the ", "sea is blue and the sky is very blue")
    (row,) = whole(tiny(), rows(text), max_tokens=4)
    assert (row.prompt, row.response) == ("the ", "sea is blue")


def test_max_tokens_leaves_room_for_the_marks():
    model = tiny()
    text = "the sea is blue and the sky is very blue " * 20
    for most in (model.context, model.context - 1, 10_000):
        (row,) = whole(model, rows(text), max_tokens=most)
        assert len(encode(model, row.prompt, row.response).tokens) <= model.context


def test_nothing_but_white_space_is_no_continuation(organism):
    with pytest.raises(DataError, match="passage 'p0' .* has nothing but white space from token .* take more tokens"):
        whole(organism, rows("Antidisestablishmentarianism xylophone " + TEXT), max_tokens=2)


def test_a_word_of_many_tokens_is_not_cut_apart(organism):
    text = "Antidisestablishmentarianism xylophone " + TEXT
    count = len(organism.tokenizer("Antidisestablishmentarianism")["input_ids"])
    assert count > 3  # else the test says nothing
    (row,) = continuations(organism, rows(text), prompt_tokens=2, new_tokens=5)
    assert row.prompt == "Antidisestablishmentarianism"


def test_too_short_too_long_and_wrong_numbers(organism):
    with pytest.raises(DataError, match=r"passage 'p1' \('Short one.'\) has \d tokens and no word behind the first 32"):
        continuations(organism, rows(TEXT * 3, "Short one."))
    with pytest.raises(InputError, match=r"are 600 tokens, but the context of .* is 512. Lower one of them"):
        continuations(organism, rows(TEXT), prompt_tokens=300, new_tokens=300)
    with pytest.raises(InputError, match="new_tokens is 0, expected at least 1"):
        continuations(organism, rows(TEXT), new_tokens=0)
    with pytest.raises(InputError, match="max_tokens is 1, expected at least 2"):
        whole(organism, rows(TEXT), max_tokens=1)


def test_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "One two."}\n{"id": "x", "text": "Three four."}\n')
    assert [(row.id, row.text) for row in passages(tmp_path / "a.jsonl")] == [("0", "One two."), ("x", "Three four.")]
    (tmp_path / "a.txt").write_text("One\ntwo.\n\n\n\nThree four.\n")
    assert [row.text for row in passages(tmp_path / "a.txt")] == ["One two.", "Three four."]
    (tmp_path / "b.jsonl").write_text('{"text": "One."}\n{"texts": "Two."}\n')
    with pytest.raises(DataError, match=r"b.jsonl, line 2: no text under 'text' \(the row has texts\)"):
        passages(tmp_path / "b.jsonl")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(InputError, match="expected a .jsonl, .json or .txt file of passages"):
        passages(tmp_path / "a.csv")


def test_questions_behind_solved_ones():
    made = asked(
        Examples([Example("a", "Why?", "So.", "Thus.", ("No.",))], "qa"), shots=Examples([Example("b", "Who?", "He.")], "s")
    )
    assert made[0] == Example("a", "Question: Who?\nAnswer: He.\n\nQuestion: Why?\nAnswer:", "So.")


def test_without_chat_shares_weights_and_edits(root):
    model = wb.load(root / "data/organism/full")
    plain = without_chat(model)
    assert model.tokenizer.chat_template is not None
    assert plain.tokenizer.chat_template is None
    assert plain.hf is model.hf
    assert plain.ledger is model.ledger
    assert plain.fingerprint() == model.fingerprint()
    assert without_chat(plain) is plain


def test_the_bundled_passages_do_not_overlap(root):
    splits = {name: passages(root / f"data/muse-mini/{name}.jsonl") for name in ("forget_text", "retain_text", "holdout_text")}
    assert [len(rows) for rows in splits.values()] == [40, 40, 40]
    runs: dict[str, str] = {}
    for name, rows_ in splits.items():
        for row in rows_:
            words = row.text.split()
            assert 90 <= len(words) <= 120
            for i in range(len(words) - 12):
                run = " ".join(words[i : i + 13])  # 13 words in a row, as published checks of contamination
                assert runs.setdefault(run, f"{name} {row.id}") == f"{name} {row.id}", run
    articles = [{row["title"] + row["id"].split(".")[0] for row in lines} for lines in _lines(root, splits)]
    assert not (articles[0] & articles[1] | articles[0] & articles[2] | articles[1] & articles[2])


def _lines(root, splits):
    for name in splits:
        yield [json.loads(line) for line in (root / f"data/muse-mini/{name}.jsonl").read_text(encoding="utf-8").splitlines()]
