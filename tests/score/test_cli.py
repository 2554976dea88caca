"""`workbench score`: what it writes and prints, and one line for what the user got wrong."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app
from workbench.core.errors import DataError, InputError, UnknownNameError
from workbench.core.row_scores import RowScores

MODEL = str(Path(__file__).resolve().parents[2] / "data/models/slm4096")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with twelve pairs, of which one has equal answers, and three rows."""
    monkeypatch.chdir(tmp_path)
    pairs = [
        {"id": f"p{i}", "prompt": f"Q: {i}?\nA:", "chosen": "Yes." * (1 + i % 3), "rejected": "Yes." if i == 6 else "No way."}
        for i in range(12)
    ]
    rows = [{"id": f"r{i}", "prompt": f"Q: {i}?\nA:", "response": "Maybe." * (i + 1)} for i in range(3)]
    for name, lines in (("pairs", pairs), ("rows", rows)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def run(*words):
    found = CliRunner().invoke(app, ["score", *map(str, words)], catch_exceptions=False)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.stdout


def test_pairs_are_scored_and_filtered(here):
    said = run("ches", MODEL, "pairs.jsonl", "--out", "out", "--keep", "0.75", "-o", "batch_size=5")
    frame = pd.read_parquet("out/scores.parquet")
    kept = wb.pairs("out/filtered.jsonl")
    assert len(frame) == 12
    assert kept.ids == sorted(frame["ches"].nsmallest(9).index, key=lambda i: int(i[1:]))
    assert "1 of 12 pairs is identical: score 0 (p6)" in said
    assert "9 pairs kept" in said
    saved = RowScores.load("out/scores.parquet")
    assert saved.provenance.options["batch_size"] == 5
    assert saved.provenance.notes["filtered.jsonl"] == "the 9 of 12 pairs with the lowest scores, keep 0.75"
    lines = said.splitlines()[1:11]  # the five highest and the five lowest
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5", "8", "9", "10", "11", "12"]
    assert lines[0].split()[2] == frame["ches"].idxmax()
    assert lines[-1].split()[2] == frame["ches"].idxmin()


@pytest.mark.parametrize("method", ["loss", "el2n", "grad-norm", "length"])
def test_rows_are_scored_by_any_registered_score(here, method):
    run(method, MODEL, "rows.jsonl", "--out", "out")
    frame = pd.read_parquet("out/scores.parquet")
    name = method.replace("-", "_")
    assert list(frame.columns) == [name]
    assert frame.index.tolist() == ["r0", "r1", "r2"]
    assert [p.name for p in Path("out").iterdir()] == ["scores.parquet"]


def test_without_a_folder_it_goes_to_runs(here):
    assert run("length", MODEL, "rows.jsonl").strip().endswith("runs/score-length")
    assert Path("runs/score-length/scores.parquet").is_file()


@pytest.mark.parametrize(
    ("error", "match", "words"),
    [
        (UnknownNameError, "Did you mean 'ches'", ("chess", MODEL, "pairs.jsonl")),
        (UnknownNameError, "Did you mean 'batch_size'", ("ches", MODEL, "pairs.jsonl", "-o", "batchsize=2")),
        (InputError, "option batch_size of ches is 'two', expected int", ("ches", MODEL, "pairs.jsonl", "-o", "batch_size=two")),
        (InputError, "keep is 1.5, expected a share", ("ches", MODEL, "pairs.jsonl", "--keep", "1.5")),
        (InputError, "score loss: --keep filters preference pairs", ("loss", MODEL, "rows.jsonl", "--keep", "0.5")),
        (InputError, "it scores preference pairs, and 'tofu:forget' has one answer", ("ches", MODEL, "tofu:forget", "--root", ".")),
        (InputError, "no.jsonl: no such file", ("ches", MODEL, "no.jsonl")),
        (DataError, "rows.jsonl, line 1: no text under 'chosen'", ("ches", MODEL, "rows.jsonl")),
        (InputError, "full: exists already", ("ches", MODEL, "pairs.jsonl", "--out", "full")),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_loaded(here, monkeypatch, error, match, words):
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    monkeypatch.setattr("workbench.load.models.load", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(error, match=match):
        run(*words)
    assert not Path("runs").exists()
    assert [p.name for p in Path("full").iterdir()] == ["mine"]


def test_batches_of_less_than_a_token_are_refused(here):
    with pytest.raises(InputError, match="batch_tokens is -3, expected 1 or more"):
        run("loss", MODEL, "rows.jsonl", "--out", "out", "-o", "batch_tokens=-3")
    assert not Path("out").exists()


def test_no_pair_left_writes_nothing(here):
    with pytest.raises(InputError, match="keep 0.01 of 12 pairs is none"):
        run("ches", MODEL, "pairs.jsonl", "--keep", "0.01", "--out", "out")
    assert not Path("out").exists()
