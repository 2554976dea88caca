"""The command line, end to end on the small real models: what one command writes the next one reads."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app, main
from workbench.core import registry
from workbench.core.direction import Direction, load_directions, save_directions
from workbench.core.errors import InputError
from workbench.core.store import file_sha256

FOLDER = Path(__file__).resolve().parent.parent
MODEL = str(FOLDER / "data/models/stories260K")
GOLDEN = FOLDER / "tests/evaluate/golden"


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.fixture
def rows(tmp_path):
    """TOFU's four splits, a few rows each."""
    for split, n in {"forget": 4, "retain": 6, "real_authors": 4, "world_facts": 4}.items():
        lines = (FOLDER / f"data/tofu-mini/{split}.jsonl").read_text().splitlines()[:n]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_locate_unlearn_export_and_measure(rows):
    sets = ("--forget", rows / "forget.jsonl", "--retain", rows / "retain.jsonl")
    said = run("attribute", "wagle", MODEL, *sets, "--fraction", 0.1, "--out", rows / "located", "-o", "gamma=0.5")
    assert "26,003 of 260,032 weights" in said
    assert wb.Scores.load(rows / "located/scores.safetensors").provenance.options["gamma"] == 0.5
    said = run(
        "unlearn", "npo", MODEL, *sets, "--mask", rows / "located/mask.safetensors", "--out", rows / "npo.safetensors",
        "--export", rows / "edited", "-o", "lr=1e-3", "-o", "epochs=2", "-o", "beta=0.2",
    )  # fmt: skip
    assert "moved 10.00% of the weights" in said
    delta = wb.Delta.load(rows / "npo.safetensors")
    assert delta.provenance.options["objective"] == {"beta": 0.2}
    assert delta.provenance.options["lr"] == 1e-3
    measured = [
        json.loads(run("evaluate", "tofu", model, "--data", rows, "--retain-rows", 4, "--json", *more))
        for model, more in ((MODEL, ("--delta", rows / "npo.safetensors", "--reference", MODEL)), (rows / "edited", ()))
    ]
    values = [{(row["metric"], row["split"]): row["value"] for row in rows_} for rows_ in measured]
    assert values[0]["probability", "forget"] == pytest.approx(values[1]["probability", "forget"], rel=1e-5)
    assert ("ks_distance", "forget") in values[0]
    assert ("ks_distance", "forget") not in values[1]


def test_filter_pairs_and_tune_to_them(rows):
    lines = (FOLDER / "data/preferences/slm4096.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    (rows / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    slm = FOLDER / "data/models/slm4096"
    said = run("score", "ches", slm, rows / "pairs.jsonl", "--keep", 0.5, "--out", rows / "scored")
    assert "4 pairs kept" in said
    said = run(
        "prefer", "dpo_sft", slm, "--pairs", rows / "scored/filtered.jsonl", "--out", rows / "tuned.safetensors",
        "--export", rows / "tuned", "-o", "lr=1e-3", "-o", "beta=0.3", "-o", "sft_weight=0.5", "-o", "batch_size=2",
    )  # fmt: skip
    assert "of the weights in 2 steps" in said  # not the positions beyond the longest row
    delta = wb.Delta.load(rows / "tuned.safetensors")
    assert delta.provenance.options["objective"] == {"beta": 0.3, "sft_weight": 0.5}
    margins = [
        (found.columns["logprob_chosen"] - found.columns["logprob_rejected"]).sum()
        for found in (wb.score.ches(wb.load(model), wb.pairs(rows / "scored/filtered.jsonl")) for model in (slm, rows / "tuned"))
    ]
    assert margins[1] > margins[0]


def test_edit(rows):
    sets = ("--forget", rows / "forget.jsonl", "--retain", rows / "retain.jsonl")
    said = run("edit", "dampen", MODEL, *sets, "--out", rows / "d.safetensors", "-o", "alpha=1.2")
    assert "of the model" in said
    assert not wb.Delta.load(rows / "d.safetensors").is_empty


@pytest.fixture
def directions(tmp_path):
    """One direction at each of two layers."""
    source = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(2, 64, generator=source), dim=1)
    save_directions([Direction(vector, "resid_post", layer) for layer, vector in enumerate(vectors)], tmp_path / "u.safetensors")
    return tmp_path / "u.safetensors"


def test_edit_along_directions_and_at_places(rows, directions):
    options = ("-o", "rows=8", "-o", "layers=[0, 1]")
    said = run("edit", "surgery", MODEL, "--direction", directions, "--out", rows / "s.safetensors", *options)
    assert "control, elsewhere: " in said
    assert wb.Delta.load(rows / "s.safetensors").provenance.method == "surgery"
    run("edit", "steer", MODEL, "--direction", directions, "--layer", 1, "--out", rows / "one.safetensors", "--no-controls")
    assert [hook.site for hook in wb.Delta.load(rows / "one.safetensors").hooks] == ["blocks.1.resid_post"]
    out = rows / "h.safetensors"
    run("edit", "ablate_heads", MODEL, "--place", "0.1", "--place", "2.7", "--out", out)
    options = {name: wb.Delta.load(rows / f"{name}.safetensors").provenance.options for name in ("h", "h-elsewhere", "h-random")}
    assert options["h"]["edited"] == [[0, 1], [2, 7]]
    assert [layer for layer, _ in options["h-elsewhere"]["edited"]] == [0, 2]
    assert not {(0, 1), (2, 7)} & {tuple(place) for place in options["h-elsewhere"]["edited"]}
    assert not wb.Delta.load(rows / "h-random.safetensors").is_empty


def test_texts_are_looked_up_under_root(rows):
    texts = ("--texts", "tofu:retain", "--root", rows)  # without the folder this would ask the hub
    run(
        "edit", "ablate_heads", MODEL, "--place", "0.1", *texts, "-o", "kind=mean", "--out", rows / "m.safetensors", "--no-controls"
    )
    assert wb.Delta.load(rows / "m.safetensors").provenance.options["kind"] == "mean"


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ("edit steer: .* holds 2 directions, and it takes one; give --layer", ("steer", "--direction", "u.safetensors")),
        ("has 0 directions of layer 4", ("steer", "--direction", "u.safetensors", "--layer", 4)),
        ("edit surgery: give --direction", ("surgery",)),
        ("edit surgery: does not use --place", ("surgery", "--direction", "u.safetensors", "--place", "0.1")),
        ("edit steer: does not use --forget", ("steer", "--direction", "u.safetensors", "--layer", 0, "--forget", "forget.jsonl")),
        (
            "edit ablate_heads: does not use --direction, --layer",
            ("ablate_heads", "--place", "0.1", "--direction", "x", "--layer", 0),
        ),
        ("edit dampen: does not use --layer", ("dampen", "--forget", "a", "--retain", "b", "--layer", 0)),
        ("edit ablate_value_vectors: takes no texts", ("ablate_value_vectors", "--place", "0.1", "--texts", "retain.jsonl")),
        ("places ²: expected LAYER.INDEX", ("ablate_heads", "--place", "²")),
        ("places 0.²: expected LAYER.INDEX", ("ablate_heads", "--place", "0.²")),
        ("there: exists already", ("ablate_heads", "--place", "0.1", "--out", "there")),
        ("old.safetensors: exists already", ("ablate_heads", "--place", "0.1", "--out", "old.safetensors")),
        ("x-random.safetensors: exists already", ("ablate_heads", "--place", "0.1", "--out", "x.safetensors")),
        ("model: exists already", ("ablate_heads", "--place", "0.1", "--export", "model")),
    ],
)
def test_an_edit_is_refused_before_the_work(rows, directions, monkeypatch, match, words):
    monkeypatch.chdir(rows)
    monkeypatch.setattr("workbench.load.models.load", lambda *_, **__: pytest.fail("the model was loaded"))
    for name in ("old.safetensors", "x-random.safetensors", "model/config.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("mine")
    Path("there").mkdir()
    method, *rest = words
    with pytest.raises(InputError, match=match):
        run("edit", method, MODEL, *(() if "--out" in words else ("--out", "new.safetensors")), *rest)
    assert Path("old.safetensors").read_text() == "mine"
    assert not Path("new.safetensors").exists()


def test_unlearn_is_refused_before_the_work(rows, monkeypatch):
    monkeypatch.setattr("workbench.load.models.load", lambda *_, **__: pytest.fail("the model was loaded"))
    sets = ("--forget", rows / "forget.jsonl", "--retain", rows / "retain.jsonl")
    with pytest.raises(InputError, match="exists already"):
        run("unlearn", "npo", MODEL, *sets, "--out", rows)


def test_a_probe_is_fitted_and_listed(tmp_path):
    texts = [
        f"{name} {verb} {what}." for name in ("Tom", "Lily", "Sue") for verb in ("saw", "had") for what in ("a dog", "a red ball")
    ]
    lines = [{"id": str(i), "text": text, "label": int("dog" in text)} for i, text in enumerate(texts * 2)]
    (tmp_path / "dogs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = {
        "question": "Is there a dog?", "labels": {0: "no dog", 1: "a dog"}, "source": "here", "licence": "CC0", "unit": "AUC",
        "chance": {"auc": 0.5, "accuracy": 0.5}, "n": len(lines), "sha256": file_sha256(tmp_path / "dogs.jsonl"),
    }  # fmt: skip
    (tmp_path / "dogs.yaml").write_text(yaml.safe_dump(card))
    assert run("probe", "list", "--root", tmp_path).split() == ["dogs", str(len(lines)), *card["question"].split()]
    out = tmp_path / "fitted"
    said = run("probe", "fit", "dogs", MODEL, "--root", tmp_path, "--out", out, "-o", "layers=[0, 2]", "-o", "controls=1")
    assert "resid_post" in said
    assert [(one.site, one.layer) for one in load_directions(out / "directions.safetensors")] == [
        ("resid_post", 0),
        ("resid_post", 2),
    ]
    assert (out / "probe.safetensors").is_file()
    with pytest.raises(InputError, match="exists already"):
        run("probe", "fit", "dogs", MODEL, "--root", tmp_path, "--out", out)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("x: wrong"), "x: wrong"),
        (IsADirectoryError(21, "Is a directory", "there"), "[Errno 21] Is a directory: 'there'"),
    ],
)
def test_what_goes_wrong_is_one_line(monkeypatch, capsys, error, said):
    def fails():
        raise error

    monkeypatch.setattr("workbench.cli.common.app", fails)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_folder_in_place_of_a_file_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["workbench", "run", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_published_logs_are_scored_without_a_model():
    logs = (f"{GOLDEN}/llama2-7b_{name}_eval_log_aggregated.json" for name in ("full", "retain90"))
    said = json.loads(run("evaluate", "tofu", "--logs", next(logs), "--reference-logs", next(logs), "--json"))
    values = {(row["metric"], row["split"]): row["value"] for row in said}
    assert values["model_utility_geometric", "all"] == pytest.approx(0.622677, abs=5e-7)
    assert values["model_utility_arithmetic", "all"] == pytest.approx(0.585886, abs=5e-7)
    assert values["forget_quality", "forget"] == pytest.approx(1.834e-21, rel=5e-4)
    assert values["ks_distance", "forget"] == pytest.approx(0.3967, abs=5e-5)


def test_every_method_is_listed():
    said = run("methods")
    assert {kind.kind for kind in registry.KINDS} >= {"attribution", "influence", "example_score", "preference", "metric"}
    for kind in registry.KINDS:
        for name in kind.names():
            assert f"  {name} " in said


def test_doctor():
    said = run("doctor")
    assert "torch" in said
    assert "device" in said


def test_help_names_every_command():
    said = run("--help")
    for command in (
        "run",
        "attribute",
        "influence",
        "score",
        "diagnose",
        "validate-data",
        "unlearn",
        "prefer",
        "edit",
        "evaluate",
        "report",
        "compare",
        "methods",
        "organism",
        "doctor",
    ):
        assert command in said
