"""Contrasts: what is read from the files, which pairs a tokenizer leaves, and why the others go."""

import json
from dataclasses import replace

import pytest
import torch

import workbench as wb
from tests.tiny import tiny
from workbench.core.errors import DataError, InputError
from workbench.core.store import file_sha256
from workbench.load.contrasts import Contrast, Contrasts, _row, encode_contrasts


def written(tmp_path, text, name="rows.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def pair(clean, corrupted, correct=(" blue",), incorrect=(" green",), id="p"):
    return Contrast(id, clean, corrupted, correct, incorrect)


def test_indirect_object(root):
    """The answers come from the text; `Then` begins the prompt and is no name."""
    rows = wb.contrasts(root / "data/circuits/ioi.csv")
    assert len(rows) == 100
    assert rows[0].clean == "Then, Aaron and Amber were working at the house. Aaron decided to give a drink to"
    assert rows[0].corrupted == "Then, Aaron and Amber were working at the house. Tiffany decided to give a drink to"
    assert (rows[0].id, rows[0].correct, rows[0].incorrect) == ("470", (" Amber",), (" Aaron",))
    for row in rows:  # the task's definition, by counting
        assert (row.clean.count(row.correct[0]), row.clean.count(row.incorrect[0])) == (1, 2)


def test_the_hard_corruption_repeats_the_other_name(root):
    hard = wb.contrasts(root / "data/circuits/ioi.csv", hard=True)
    assert hard[0].corrupted == "Then, Aaron and Amber were working at the house. Amber decided to give a drink to"
    assert all(row.corrupted.count(row.correct[0]) == 2 for row in hard)


def test_greater_than(root):
    rows = wb.contrasts(root / "data/circuits/greater_than.csv")
    assert len(rows) == 100
    assert rows[0].clean == "The contract lasted from the year 1352 to the year 13"
    assert rows[0].correct == tuple(str(year) for year in range(53, 100))
    assert rows[0].incorrect[:3] == ("00", "01", "02")
    assert rows[0].incorrect[-1] == "52"
    assert all(len(row.correct) + len(row.incorrect) == 100 for row in rows)


def test_json_lines(tmp_path):
    rows = [
        {"clean": "a b", "corrupted": "a c", "correct": " d", "incorrect": [" e", " f"]},
        {"id": 7, "clean": "x", "corrupted": "y", "correct": [" z"], "incorrect": " w", "completion": True},
    ]
    read = wb.contrasts(written(tmp_path, "\n".join(map(json.dumps, rows)), "rows.jsonl"))
    first = Contrast("0", "a b", "a c", (" d",), (" e", " f"))
    assert list(read) == [first, Contrast("7", "x", "y", (" z",), (" w",), completion=True)]
    assert read[1:].ids == ["7"]
    assert read.take([1, 0]).ids == ["7", "0"]
    assert read.take([1, 0]).fingerprint() != read.fingerprint() == read[:2].fingerprint()
    assert repr(read).endswith("rows.jsonl', 2 rows)")


def test_a_notebook_shows_untrusted_text_escaped():
    shown = Contrasts([pair("<script>", "b")], "<i>")._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert "<i>" not in shown


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("clean,corrupted,corrupted_hard\nThen Ann met Bob. Ann saw,b,c\n", None),
        ("clean,corrupted,corrupted_hard\nThen Ann met Bob. Cat saw,b,c\n", r"line 2: expected one name .* Ann x1, Bob x1, Cat x1"),
        ("clean,corrupted,corrupted_hard\nThen nobody,b,c\n", r"line 2: expected one name .* found none"),
        ("clean,corrupted,label\na,b,99\n", r"line 2: label is '99', expected a year from 0 to 98"),
        ("clean,corrupted,label\na,b,5x\n", r"label is '5x'"),
        ("clean,corrupted,label\na,,5\n", r"no text under 'corrupted'"),
        ("clean,corrupted,other\na,b,5\n", r"has the columns clean, corrupted, other; expected"),
        ("clean,corrupted,label\n", "the set is empty"),
    ],
)
def test_broken_tables(tmp_path, text, match):
    path = written(tmp_path, text)
    if match is None:
        assert wb.contrasts(path)[0].incorrect == (" Ann",)
        return
    with pytest.raises(InputError, match=match):
        wb.contrasts(path)


@pytest.mark.parametrize("value", ["", [], 3, [""], None])
def test_broken_answers(tmp_path, value):
    row = {"clean": "a", "corrupted": "b", "correct": value, "incorrect": " x"}
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: 'correct' is"):
        wb.contrasts(written(tmp_path, json.dumps(row), "rows.jsonl"))


def test_files_that_are_no_contrasts(tmp_path, root):
    with pytest.raises(InputError, match="expected a .jsonl or .csv file"):
        wb.contrasts(written(tmp_path, "x", "rows.txt"))
    with pytest.raises(InputError, match="hard=True needs the column corrupted_hard, which"):
        wb.contrasts(root / "data/circuits/greater_than.csv", hard=True)
    with pytest.raises(InputError, match="is JSON lines"):
        wb.contrasts(written(tmp_path, "{}", "rows.jsonl"), hard=True)


def test_tokens_and_the_reasons_to_leave_a_pair_out():
    """The tiny tokenizer has whole words: ids are places in its list, 9 = blue, 10 = green, 11 = very."""
    rows = Contrasts(
        [
            pair("the sky is", "the grass is", id="kept"),
            pair("the sky is", "the green grass is", id="longer"),
            pair("the sea is", "a sea is", (" very blue", " blue", " very green"), (" no",), id="several"),
            pair("the sea is", "a sea is", (" very blue",), (" very green",), id="shared"),
        ],
        "rows",
    )
    coded = encode_contrasts(tiny(), rows)
    assert coded.ids == ["kept", "several"]
    assert coded.dropped == {"unequal length": 1, "shared first token": 1}
    assert [row.tokens for row in coded.clean] == [[4, 7, 3], [4, 12, 3]]
    assert [row.tokens for row in coded.corrupted] == [[4, 8, 3], [14, 12, 3]]
    assert (coded.correct, coded.incorrect) == ([[9], [9, 11]], [[10], [15]])
    assert all(row.start == len(row.tokens) for row in coded.clean)
    assert encode_contrasts(tiny(), rows, aligned=False).ids == ["kept", "longer", "several"]


def test_answers_continue_the_prompt_as_it_is_tokenized(root):
    """A byte-level tokenizer: the first token of the answer is the one that follows the prompt's, not that of another text."""
    model = wb.load(root / "data/organism/full")
    coded = encode_contrasts(model, wb.contrasts(root / "data/circuits/ioi.csv"))
    assert 0 < len(coded.ids) < 100
    assert sum(coded.dropped.values()) + len(coded.ids) == 100
    by_id = {row.id: row for row in wb.contrasts(root / "data/circuits/ioi.csv")}
    for row, [token] in zip(coded.clean, coded.correct, strict=True):
        whole = model.tokenizer(by_id[row.id].clean + by_id[row.id].correct[0])["input_ids"]
        assert whole[: row.start] == row.tokens
        assert whole[row.start] == token


def test_nothing_left(slm, root):
    """A character tokenizer: names differ in length, and every answer begins with the same space."""
    with pytest.raises(DataError, match=r"none of the 100 pairs can be used .*unequal length: \d+, shared first token: \d+"):
        encode_contrasts(slm, wb.contrasts(root / "data/circuits/ioi.csv"))


def test_a_prompt_is_a_turn_and_a_completion_is_not(root):
    """The organism's template asks `Question: ...` and stops behind `Answer:`."""
    model = wb.load(root / "data/organism/full")
    turn = pair("What is it?", "What is he?")
    rows = Contrasts([turn, replace(turn, id="text", completion=True)], "rows")
    asked, text = (model.tokenizer.decode(row.tokens) for row in encode_contrasts(model, rows).clean)
    assert (asked, text) == ("Question: What is it?\nAnswer:", "What is it?")
    assert rows.fingerprint() != Contrasts([turn, replace(turn, id="text")], "rows").fingerprint()


def test_an_answer_that_changes_the_prompts_tokens(root):
    """The organism writes "vision" as one token: behind the prompt "vis", "ion" counts as its own token, not as the joint one.

    stories260K would begin a text of its own with a space, which "vis" + "ion" does not have: no token, the pair is left out.
    """
    model = wb.load(root / "data/organism/full")
    short, joint = (model.tokenizer(text)["input_ids"] for text in ("the televis", "the television"))
    assert joint[: len(short)] != short
    rows = Contrasts([pair("the televis", "the televis", ("ion",), ("ed",), "merged")], "rows")
    rows = Contrasts([replace(row, completion=True) for row in rows], "rows")
    coded = encode_contrasts(model, rows)
    assert coded.correct == [[model.tokenizer.convert_tokens_to_ids("ion")]]
    stories = wb.load(root / "data/models/stories260K")
    kept = pair("the cat", "the cow", (" sat",), (",",), "fine")
    merging = pair("the w", "the s", ("as",), ("d",), "merged")
    assert stories.tokenizer("the was")["input_ids"][:3] != stories.tokenizer("the w")["input_ids"]
    coded = encode_contrasts(stories, Contrasts([kept, merging], "rows"))
    assert (coded.ids, coded.dropped) == (["fine"], {"answer merges with the prompt": 1})


def test_a_prompt_longer_than_the_context():
    long = " ".join(["sky"] * 32)
    with pytest.raises(DataError, match=r"row 'p': the prompt has 32 tokens; expected 1 to 31"):
        encode_contrasts(tiny(), Contrasts([pair(long, long)], "rows"))


def test_ids_are_unique():
    with pytest.raises(DataError, match="rows: two rows have the id 'p'"):
        Contrasts([pair("a", "b"), pair("c", "d")], "rows")
    with pytest.raises(DataError, match="'completion' is 'yes', expected true or false"):
        _row({"clean": "a", "corrupted": "b", "correct": "c", "incorrect": "d", "completion": "yes"}, "here", 0)


def test_every_pair_about_authors_suits_the_organism(root):
    """And it tells the authors apart: the card's numbers are 10.4 and -9.9 nats on average."""
    model = wb.load(root / "data/organism/full")
    rows = wb.contrasts(root / "data/circuits/authors.jsonl")
    coded = encode_contrasts(model, rows)
    assert (len(coded.ids), coded.dropped) == (26, {})
    for side, sign in ((coded.clean, 1), (coded.corrupted, -1)):
        for row, [right], [wrong] in zip(side, coded.correct, coded.incorrect, strict=True):
            with torch.no_grad():
                last = model.hf(torch.tensor([row.tokens])).logits[0, -1]
            assert sign * (last[right] - last[wrong]) > 0, row.id


def test_the_card_lists_the_files(root):
    card = (root / "data/circuits/CARD.md").read_text()
    for path in sorted((root / "data/circuits").glob("*.[cj]s*")):
        assert f"- {path.name}: `{file_sha256(path)}`" in card
