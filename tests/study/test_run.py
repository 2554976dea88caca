"""A whole study on a model somebody else made: every arm, resumed after a kill, the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

import workbench as wb
from workbench.core.delta import applied
from workbench.study.config import read

LIMITS = {"forget": 4, "retain": 6, "real_authors": 4, "world_facts": 4}


@pytest.fixture
def study(root, tmp_path):
    """A small study file: stories260K as the model, slightly edited copies of it as the retrained ones."""
    for split, n in LIMITS.items():
        lines = (root / f"data/tofu-mini/{split}.jsonl").read_text().splitlines()[:n]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    model = root / "data/models/stories260K"
    wb.load(model).hf.save_pretrained(tmp_path / "gold")
    wb.load(model).tokenizer.save_pretrained(tmp_path / "gold")
    body = {
        "name": "small",
        "model": os.path.relpath(model, tmp_path),
        "data": {split: f"{split}.jsonl" for split in LIMITS},
        "evaluate": {"retain_rows": 4, "generate": 8, "samples": 2},
        "arms": {
            "untouched": {"role": "untouched"},
            "npo": {"unlearn": {"objective": "npo", "lr": 1e-3, "epochs": 2, "batch_size": 2}},
            "npo-wagle": {
                "unlearn": {"objective": "npo", "lr": 1e-3, "epochs": 2, "batch_size": 2},
                "mask": {"attribute": "wagle", "fraction": 0.1},
            },
            "npo-random": {
                "unlearn": {"objective": "npo", "lr": 1e-3, "epochs": 2, "batch_size": 2},
                "mask": {"attribute": "wagle", "fraction": 0.1, "control": "matched_random"},
            },
            "dampened": {"edit": {"method": "dampen", "alpha": 1.2}},
            "gold": {"role": "reference", "model": "gold"},
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    return tmp_path / "study.yaml"


def run(study, out):
    return wb.study.run(study, out=out, show=False)


def numbers(folder):
    return pd.read_parquet(folder / "measurements.parquet").drop(columns="seconds")


def test_a_study_from_file_to_report(study, tmp_path):
    folder = run(study, tmp_path / "runs")
    frame = numbers(folder)
    assert list(dict.fromkeys(frame["arm"])) == ["untouched", "npo", "npo-wagle", "npo-random", "dampened", "gold"]
    assert {"probability", "rouge_l_recall", "ks_distance"} <= set(frame["metric"])
    assert "ks_distance" not in set(frame[frame["arm"] == "gold"]["metric"])
    with_interval = frame.dropna(subset=["low", "high"])
    assert len(with_interval) > 0.8 * len(frame)
    assert (
        (with_interval["low"] <= with_interval["value"] + 1e-9) & (with_interval["value"] <= with_interval["high"] + 1e-9)
    ).all()
    about = {arm: json.loads((folder / "arms" / arm / "arm.json").read_text()) for arm in frame["arm"].unique()}
    assert about["npo-wagle"]["mask"] == "wagle 0.1"
    assert about["npo-random"]["mask"] == "matched_random wagle 0.1"
    assert about["npo-wagle"]["audit"]["trainable"] == about["npo-random"]["audit"]["trainable"] == 26_003
    assert about["untouched"]["audit"] is None
    wagle, random = (wb.Mask.load(folder / "arms" / arm / "mask.safetensors") for arm in ("npo-wagle", "npo-random"))
    assert wagle.counts() == random.counts()
    assert wagle != random
    assert len(list((folder / "scores").iterdir())) == 1, "both masks come from one file of scores"
    assert "<html" in (folder / "report.html").read_text()
    # the arm's Delta gives its numbers again
    model = wb.load(read(study).model)
    with applied(model, wb.Delta.load(folder / "arms/npo/delta.safetensors")):
        tables = wb.evaluate.read(model, {"forget": wb.examples(study.parent / "forget.jsonl")}, generate=8)
    again = float(tables["forget"].frame()["logprob"].sum())
    saved = wb.evaluate.TokenTable.load(folder / "arms/npo/tokens/forget.parquet").frame()["logprob"].sum()
    assert again == pytest.approx(float(saved), rel=1e-6)


def test_the_resolved_config_repeats_the_run(study, tmp_path):
    folder = run(study, tmp_path / "runs")
    again = run(folder / "config.yaml", tmp_path / "again")
    pd.testing.assert_frame_equal(numbers(folder), numbers(again), check_exact=True)


def test_a_finished_arm_is_not_run_again_and_a_changed_one_is(study, tmp_path):
    folder = run(study, tmp_path / "runs")
    stamps = {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("arms/*/arm.json")}
    run(study, tmp_path / "runs")
    assert stamps == {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("arms/*/arm.json")}
    wb.study.run(study, out=tmp_path / "runs", overrides=["arms.npo.unlearn.lr=2e-3"], show=False)
    changed = {name for name, stamp in stamps.items() if (folder / f"arms/{name}/arm.json").stat().st_mtime_ns != stamp}
    assert changed == {"npo"}


def test_killed_in_the_middle_it_goes_on_and_measures_the_same(study, tmp_path):
    whole = run(study, tmp_path / "whole")
    code = f"import workbench as wb; wb.study.run({str(study)!r}, out={str(tmp_path / 'cut')!r}, show=False)"
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: other threads, other order of sums
    process = subprocess.Popen([sys.executable, "-c", code], env=one_thread)
    arms = tmp_path / "cut/small/arms"
    deadline = time.monotonic() + 240
    while len(list(arms.glob("*/arm.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {p.parent.name for p in arms.glob("*/arm.json")}
    assert 2 <= len(done) < 6, f"the kill came too early or too late: {sorted(done)}"
    assert not (tmp_path / "cut/small/measurements.parquet").exists()
    kept = {name: (arms / name / "arm.json").stat().st_mtime_ns for name in done}
    cut = run(study, tmp_path / "cut")
    assert kept == {name: (arms / name / "arm.json").stat().st_mtime_ns for name in done}
    pd.testing.assert_frame_equal(numbers(whole).drop(columns="run"), numbers(cut).drop(columns="run"), check_exact=True)
    leftovers = list(Path(tmp_path / "cut").rglob("*.partial"))
    assert leftovers == []


def test_several_seeds_are_written_as_one_arm_and_read_again(study, tmp_path):
    overrides = ["seeds=[0, 1]", "arms.npo.unlearn.epochs=1"]
    folder = wb.study.run(study, out=tmp_path / "runs", overrides=overrides, show=False)
    first, again = read(study, overrides), read(folder / "config.yaml")
    assert [arm.name for arm in again.arms] == [arm.name for arm in first.arms]
    assert set(numbers(folder)["seed"]) == {0, 1}
    assert len(list((folder / "arms").iterdir())) == 9


def test_a_reference_retrained_in_place_is_noticed(study, tmp_path):
    folder = run(study, tmp_path / "runs")
    stamps = {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("arms/*/arm.json")}
    gold = wb.load(study.parent / "gold")
    gold.hf.model.norm.weight.data.mul_(1.5)
    gold.hf.save_pretrained(study.parent / "gold")
    run(study, tmp_path / "runs")
    assert all((folder / f"arms/{name}/arm.json").stat().st_mtime_ns != stamp for name, stamp in stamps.items())


def test_a_new_title_runs_nothing_again(study, tmp_path):
    folder = run(study, tmp_path / "runs")
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("arms/*/arm.json")}
    wb.study.run(study, out=tmp_path / "runs", overrides=["arms.npo.title=Another"], show=False)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())


def test_seeds_multiply_what_draws_random_numbers(study):
    plan = read(study, ["seeds=[0, 1]"])
    assert [arm.name for arm in plan.arms] == [
        "untouched", "npo@0", "npo@1", "npo-wagle@0", "npo-wagle@1", "npo-random@0", "npo-random@1", "dampened", "gold",
    ]  # fmt: skip
