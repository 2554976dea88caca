"""The command line, end to end on the small real models: what one command writes the next one reads."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app
from workbench.core import registry

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


def test_edit(rows):
    sets = ("--forget", rows / "forget.jsonl", "--retain", rows / "retain.jsonl")
    said = run("edit", "dampen", MODEL, *sets, "--out", rows / "d.safetensors", "-o", "alpha=1.2")
    assert "of the weights" in said
    assert not wb.Delta.load(rows / "d.safetensors").is_empty


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
    for kind in (registry.attribution, registry.probe, registry.edit, registry.objective, registry.metric):
        for name in kind.names():
            assert f"  {name} " in said


def test_doctor():
    said = run("doctor")
    assert "torch" in said
    assert "device" in said


def test_help_names_every_command():
    said = run("--help")
    for command in ("run", "attribute", "unlearn", "edit", "evaluate", "report", "compare", "methods", "organism", "doctor"):
        assert command in said
