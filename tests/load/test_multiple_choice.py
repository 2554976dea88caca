import json

import pytest

from workbench.core.errors import DataError, InputError, UnknownNameError
from workbench.core.records import Example
from workbench.load.multiple_choice import Question, Questions, choice_rows, questions

ROWS = [
    {"question": "What is the sky? ", "choices": ["green", "blue", "a sea"], "answer": 1},
    {"id": "x", "question": "Is it?", "choices": ["no", "very"], "answer": 0},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_are_read(tmp_path):
    found = questions(write(tmp_path / "q.jsonl", ROWS))
    assert found[0] == Question("0", "What is the sky? ", ("green", "blue", "a sea"), 1)
    assert found.ids == ["0", "x"]


def test_prompts_by_hand():
    rows = Questions(
        [Question("0", "What is the sky? ", ("green", "blue", "a sea"), 1), Question("x", "Is it?", ("no", "very"), 0)], "q"
    )
    assert list(choice_rows(rows)) == [
        Example("0", "What is the sky?\nAnswer:", "green", None, ("blue", "a sea")),
        Example("x", "Is it?\nAnswer:", "no", None, ("very",)),
    ]
    assert list(choice_rows(rows, form="letters", description="Choose.\n\n")) == [
        Example("0", "Choose.\n\nWhat is the sky?\nA. green\nB. blue\nC. a sea\nAnswer:", "A", None, ("B", "C")),
        Example("x", "Choose.\n\nIs it?\nA. no\nB. very\nAnswer:", "A", None, ("B",)),
    ]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"answer": 3}, r"line 2: 'answer' is 3, expected the number of the right choice, from 0 to 1, not a letter"),
        ({"answer": "A"}, r"line 2: 'answer' is 'A'"),
        ({"answer": True}, r"line 2: 'answer' is True"),
        ({"choices": ["no"]}, r"line 2: there are 1 choices, expected 2 to 26"),
        ({"choices": ["no", " "]}, r"line 2: 'choices' is .*expected a list of texts"),
        ({"choices": "no"}, r"line 2: 'choices' is 'no'"),
        ({"question": None}, r"line 2: no text under 'question'"),
    ],
)
def test_a_broken_row_is_named(tmp_path, change, match):
    with pytest.raises(DataError, match=match):
        questions(write(tmp_path / "q.jsonl", [ROWS[0], ROWS[1] | change]))


def test_other_files_and_forms(tmp_path):
    with pytest.raises(InputError, match="expected a .jsonl or .json file of questions"):
        questions(write(tmp_path / "q.txt", ROWS))
    with pytest.raises(InputError, match="no such file"):
        questions(tmp_path / "nowhere.jsonl")
    with pytest.raises(UnknownNameError, match="unknown form .* 'letter'. Did you mean 'letters'"):
        choice_rows(questions(write(tmp_path / "q.jsonl", ROWS)), form="letter")
