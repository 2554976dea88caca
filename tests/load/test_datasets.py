"""Rows from TOFU's layout, JSON lines and parquet, and every way they can be broken."""

import json

import pandas as pd
import pytest

import workbench as wb
from workbench.core.errors import DataError, InputError


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_tofu_mini(root):
    found = {s: wb.examples(f"tofu:{s}", root=root / "data/tofu-mini") for s in ("forget", "retain", "real_authors", "world_facts")}
    assert {s: len(rows) for s, rows in found.items()} == {"forget": 80, "retain": 720, "real_authors": 100, "world_facts": 117}
    assert all(len(row.perturbed) == 5 and row.paraphrase for row in found["forget"])
    assert [bool(row.perturbed) for row in found["retain"]] == [True] * 400 + [False] * 320
    assert all(len(row.perturbed) == 3 for row in found["world_facts"])
    assert found["forget"][0].id == "full-3920"


def test_the_perturbed_file_of_a_split_is_preferred(tmp_path):
    write(tmp_path / "forget10.json", {"question": "q", "answer": "a"})
    assert wb.examples("tofu:forget10", root=tmp_path)[0].perturbed == ()
    write(
        tmp_path / "forget10_perturbed.json", {"question": "q", "answer": "a", "perturbed_answer": ["b"], "paraphrased_answer": "c"}
    )
    row = wb.examples("tofu:forget10", root=tmp_path)[0]
    assert (row.perturbed, row.paraphrase) == (("b",), "c")


def test_own_rows(tmp_path):
    path = write(tmp_path / "my.jsonl", {"prompt": "p", "response": "r"}, "", {"id": 7, "question": "q", "answer": "a"})
    rows = wb.examples(path)
    assert [(r.id, r.prompt, r.response) for r in rows] == [("0", "p", "r"), ("7", "q", "a")]
    pd.DataFrame([{"prompt": "p", "response": "r", "perturbed": ["x", "y"]}]).to_parquet(tmp_path / "my.parquet")
    assert wb.examples(tmp_path / "my.parquet")[0].perturbed == ("x", "y")


def test_pairs(tmp_path):
    path = write(tmp_path / "pairs.jsonl", {"prompt": "p", "chosen": "c", "rejected": "r"})
    assert wb.pairs(path)[0].rejected == "r"
    write(path, {"prompt": "p", "chosen": "c"})
    with pytest.raises(DataError, match=r"pairs.jsonl, line 1: no text under 'rejected' \(the row has prompt, chosen\)"):
        wb.pairs(path)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ('{"prompt": "p", "response": ', "line 2: not a JSON object"),
        ("[1, 2]", "line 2: a list, expected an object"),
        ('{"prompt": "p"}', "line 2: no text under 'response' or 'answer'"),
        ('{"prompt": "p", "response": 3}', "line 2: no text under 'response'"),
        ('{"prompt": "p", "response": "r", "perturbed": "x"}', "line 2: 'perturbed' must be a list"),
        ('{"prompt": "p", "response": "r", "paraphrase": ["x"]}', "line 2: 'paraphrase' must be a text"),
    ],
)
def test_a_broken_line_is_named(tmp_path, row, match):
    path = write(tmp_path / "my.jsonl", {"prompt": "p", "response": "r"}, row)
    with pytest.raises(DataError, match=rf"my.jsonl, {match}"):
        wb.examples(path)


def test_files_that_are_none(tmp_path, root):
    with pytest.raises(InputError, match="no such file"):
        wb.examples(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="the set is empty"):
        wb.examples(write(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match=r"expected a .jsonl, .json or .parquet"):
        wb.examples(write(tmp_path / "rows.csv", "a,b"))
    with pytest.raises(DataError, match="not a parquet file"):
        wb.examples(write(tmp_path / "rows.parquet", "a,b"))
    with pytest.raises(InputError, match="no forget99.jsonl under .* There: .*forget, .*real_authors"):
        wb.examples("tofu:forget99", root=root / "data/tofu-mini")


@pytest.mark.parametrize("source", ["tofu:forget10", "hub:somebody/something", "hub:somebody/something:config"])
def test_the_hub_without_a_network_is_one_sentence(source):
    with pytest.raises(InputError, match="the Hugging Face hub could not be reached or does not have it"):
        wb.examples(source)
