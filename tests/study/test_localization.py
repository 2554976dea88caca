"""A study of localizations: from file to page, resumed point by point, strict about what it is given."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

import workbench as wb
from tests.study.located import learned, rows
from workbench.cli import app
from workbench.core.errors import DataError, InputError, StudyError, UnknownNameError
from workbench.report import page, print_table
from workbench.study.file import has
from workbench.study.intervene import Point
from workbench.study.judge import split_retain
from workbench.study.localization import locate, read, run, score_paths

BODY = {
    "name": "small",
    "title": "A small one",
    "model": "model",
    "data": {"forget": "forget.jsonl", "retain": "retain.jsonl"},
    "judge": {
        "scores": {"saliency": {}, "by-size": {"method": "magnitude"}},
        "sizes": [0.2],
        "seeds": [0, 1],
        "intervention": "ablate",
        "budget": 0.1,
        "budget_rows": 4,
        "report_rows": 5,
    },
}
N = 2 * (1 + 2 + 1)
"""Points of BODY: two sets at one size; inside, two random sets, outside."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved tiny model and its rows."""
    folder = tmp_path_factory.mktemp("study")
    model = learned()
    model.hf.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    for examples in rows():
        lines = [json.dumps({"id": row.id, "prompt": row.prompt, "response": row.response}) for row in examples]
        (folder / f"{examples.name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def study(folder):
    """The study file as BODY has it."""
    (folder / "study.yaml").write_text(yaml.safe_dump(BODY, sort_keys=False))
    return folder / "study.yaml"


def stamps(done: Path):
    return {path.name: path.stat().st_mtime_ns for path in (done / "points").glob("*.json")}


def numbers(done: Path):
    return pd.read_parquet(done / "verdict.parquet").drop(columns="seconds")


def test_from_file_to_page(study, tmp_path):
    done = run(study, out=tmp_path, show=False)
    assert done == tmp_path / "small"
    assert len(stamps(done)) == N
    frame = numbers(done)
    assert len(frame) == N
    assert list(dict.fromkeys(frame["set"])) == ["saliency", "by-size"]
    areas = pd.read_parquet(done / "areas.parquet")
    assert list(zip(areas["set"], areas["against"], strict=True)) == [
        (name, against) for name in ("saliency", "by-size") for against in ("random", "outside")
    ]
    assert len(list((done / "scores").glob("*.safetensors"))) == 2
    assert "A small one" in (done / "report.html").read_text()
    assert json.loads((done / "env.json").read_text())["torch"]
    assert list(tmp_path.rglob("*.partial")) == []


def test_every_entry_knows_both_kinds_of_study(study, tmp_path, monkeypatch, capsys):
    """`wb.study.run` and the report take either; runs of the judge are not compared arm by arm."""
    monkeypatch.setattr("workbench.study.localization.measure", instant)
    done = wb.study.run(study, out=tmp_path, show=False)
    assert (done / "verdict.parquet").exists()
    before = (done / "report.html").read_text()
    assert page(done).read_text() == before
    print_table(done)
    assert "advantage over random" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(InputError, match="a run of `workbench judge`, which has sets instead of arms"):
        wb.report.compare([done])


def test_the_resolved_config_repeats_the_run(study, tmp_path):
    done = run(study, out=tmp_path / "runs", show=False)
    again = run(done / "config.yaml", out=tmp_path / "again", show=False)
    pd.testing.assert_frame_equal(numbers(done), numbers(again), check_exact=True)
    assert set(stamps(done)) == set(stamps(again))


def test_a_finished_point_is_never_measured_again(study, tmp_path):
    done = run(study, out=tmp_path, show=False)
    before, frame = stamps(done), numbers(done)
    run(study, out=tmp_path, show=False)
    assert stamps(done) == before
    # a killed run: some points are absent, and only they are measured
    gone = sorted(before)[:3]
    for name in gone:
        (done / "points" / name).unlink()
    run(study, out=tmp_path, show=False)
    after = stamps(done)
    assert {name for name in before if after[name] != before[name]} == set(gone)
    pd.testing.assert_frame_equal(numbers(done), frame, check_exact=True)


def test_what_decides_a_point_and_what_does_not(study, tmp_path):
    done = run(study, out=tmp_path, show=False)
    before = stamps(done)
    # a title, another name of a set, fewer sets: nothing new
    run(study, out=tmp_path, overrides=["title=Another"], show=False)
    renamed = BODY | {"judge": BODY["judge"] | {"scores": {"large": {"method": "magnitude"}}}}
    other = study.with_name("other.yaml")
    other.write_text(yaml.safe_dump(renamed))
    run(other, out=tmp_path, show=False)
    assert stamps(done) == before
    assert set(numbers(done)["set"]) == {"large"}
    # one more seed: one random set a set
    run(study, out=tmp_path, overrides=["judge.seeds=[0, 1, 2]"], show=False)
    assert len(stamps(done)) == N + 2
    assert before.items() <= stamps(done).items()
    # another budget: every point
    run(study, out=tmp_path, overrides=["judge.budget=0.05", "judge.seeds=[0, 1]"], show=False)
    assert len(stamps(done)) == 2 * N + 2


def test_scores_are_found_without_the_rows_that_are_reported(study, tmp_path):
    plan = read(study, ["judge.scores={wagle: {}, magnitude: {}}"])
    forget, retain = rows()
    parts = split_retain(forget, retain, budget_rows=4, report_rows=5)
    model = learned()

    def located(plan):
        return locate(plan, model, forget, parts, score_paths(plan, model, forget, parts, tmp_path))

    found = located(plan)
    assert list(tmp_path.iterdir()) == [], "nothing is written before all is known to be good"
    alone = wb.attribute.wagle(learned(), forget, parts.train)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(found["wagle"][name], alone[name], rtol=1e-5, atol=0)  # float32, in one pass or in another
    elsewhere = wb.attribute.wagle(learned(), forget, retain)
    assert not torch.allclose(elsewhere[name], alone[name], rtol=0.1)
    # an option that one pass cannot share gives the score a pass of its own, and a file of its own
    narrow = read(study, ["judge.scores={wagle: {include: '*.mlp.*'}}"])
    assert all(".mlp." in name for name in located(narrow)["wagle"])
    paths = [score_paths(one, model, forget, parts, tmp_path)["wagle"] for one in (plan, narrow)]
    assert paths[0] != paths[1]
    # what is kept is read
    found["wagle"].save(paths[0])
    assert torch.equal(located(plan)["wagle"][name], found["wagle"][name])


def test_only_some_scores_and_registered_ones(study):
    assert [one.name for one in read(study).scores] == ["saliency", "by-size"]
    assert [(one.name, one.method) for one in read(study, only=["by-size", "random"]).scores] == [
        ("by-size", "magnitude"),
        ("random", "random"),
    ]
    with pytest.raises(UnknownNameError, match="unknown score 'salience'. Did you mean 'saliency'"):
        read(study, only=["salience"])


@pytest.mark.parametrize(
    ("override", "error", "match"),
    [
        ("judge.scores.saliency.method=wagel", UnknownNameError, "Did you mean 'wagle'"),
        ("judge.scores.saliency.gama=1", UnknownNameError, "option of saliency 'gama'"),
        ("judge.bugdet=0.1", UnknownNameError, "Did you mean 'budget'"),
        ("judge.budget=0", InputError, "budget is 0"),
        ("judge.sizes=[0.1, 2]", InputError, "sizes has 2"),
        ("judge.sizes=0.1", InputError, "option sizes of judge is 0.1"),
        ("judge.seeds=[]", InputError, "seeds is \\[\\]"),
        ("judge.show=true", StudyError, "show is not an option"),
        ("judge.scope=tensors", UnknownNameError, "Did you mean 'tensor'"),
        (
            "judge={scope: layer, scores: {heads: {method: snip, unit: head}}}",
            StudyError,
            "scope is 'layer', but heads chooses",
        ),
        ("judge.budget='0.1'", InputError, "option budget of judge is '0.1'"),
        ("judge.batch_size=2.5", InputError, "option batch_size of judge is 2.5"),
        ("judge.max_steps=2.5", InputError, "option max_steps of judge is 2.5"),
        ("judge.budget_rows=4.5", InputError, "option budget_rows of judge is 4.5"),
        ("judge.scores={}", StudyError, "judge has no scores"),
        ("jugde.budget=1", UnknownNameError, "Did you mean 'judge'"),
        ("name=a/b", StudyError, "it names a folder"),
        ("data.holdout=x.jsonl", UnknownNameError, "unknown key of data 'holdout'"),
        ("model=", StudyError, "there is no 'model'"),
    ],
)
def test_a_study_is_read_strictly(study, override, error, match):
    with pytest.raises(error, match=match):
        read(study, [override])


def test_bad_rows_stop_the_run_before_a_file_is_written(study, tmp_path):
    with pytest.raises(DataError, match="14 rows, but 13 are set aside"):
        run(study, out=tmp_path / "runs", overrides=["judge.budget_rows=13"], show=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["judge.scores={wagle: {gamma: -1}}"], "gamma"),
        (["judge.scores={saliency: {include: '*nothing*'}}"], "nothing"),
        (["judge.sizes=[1e-8]"], "1e-08"),
        (["judge.scores={heads: {method: saliency, include: '*.mlp.*', unit: head}}"], "'head' units need a score for"),
        (["judge.intervention=unlearn", "judge.options={beta: -1}"], "beta"),
    ],
)
def test_what_shows_only_with_the_model_stops_the_run_before_a_file_is_written(study, tmp_path, overrides, match):
    with pytest.raises(InputError, match=match):
        run(study, out=tmp_path / "runs", overrides=overrides, show=False)
    assert not (tmp_path / "runs").exists()


def instant(on, located, one):
    """A point without the intervention."""
    return Point(**asdict(one), weights=1, reached=True, budget_used=0.1, forget_change=0.1, retain_change=0.1)


KEYED = {
    "budget": "judge.budget=0.2",
    "intervention": "judge.intervention=unlearn",
    "objective": "judge.objective=simnpo",
    "options": "judge.options={beta: 0.3}",
    "lr": "judge.lr=1e-3",
    "max_steps": "judge.max_steps=7",
    "batch_size": "judge.batch_size=2",
    "size": "judge.sizes=[0.3]",
    "seed": "judge.seeds=[7]",
    "budget_rows": "judge.budget_rows=5",
    "report_rows": "judge.report_rows=4",
    "scope": "judge.scope=layer",
    "method": "judge.scores={saliency: {method: fisher}, by-size: {method: random}}",
    "option": "judge.scores={saliency: {method: random, seed: 1}, by-size: {method: random, seed: 2}}",
    "unit": "judge.scores={saliency: {unit: neuron}, by-size: {method: magnitude, unit: neuron}}",
    "dtype": "dtype=bfloat16",
}


@pytest.mark.parametrize("what", [*KEYED, "forget", "retain", "model"])
def test_whatever_decides_a_point_makes_a_new_one(study, folder, tmp_path, monkeypatch, what):
    monkeypatch.setattr("workbench.study.localization.measure", instant)
    start = ["judge.scores={saliency: {method: random}, by-size: {method: random, seed: 2}}"] if what == "option" else []
    before = stamps(run(study, out=tmp_path, overrides=start, show=False))
    override = KEYED.get(what)
    if what in ("forget", "retain"):
        lines = (folder / f"{what}.jsonl").read_text().replace("green", "blue").replace("very", "is")
        (tmp_path / "other.jsonl").write_text(lines)
        override = f"data.{what}={tmp_path / 'other.jsonl'}"
    if what == "model":
        shutil.copytree(folder / "model", tmp_path / "model")
        other = wb.load(folder / "model")
        with torch.no_grad():
            other.hf.model.norm.weight[0] += 1e-3
        other.hf.save_pretrained(tmp_path / "model")
        override = f"model={tmp_path / 'model'}"
    done = run(study, out=tmp_path, overrides=[override], show=False)
    frame = pd.read_parquet(done / "verdict.parquet")
    new = set(stamps(done)) - set(before)
    # a seed decides the random sets alone; with one seed there is one of them a set
    kept = {"seed": 2 * 2, "option": 1 + 2 + 1}.get(what, 0)
    assert len(new) == len(frame) - kept
    assert {name: stamps(done)[name] for name in before} == before


def test_units_and_scopes_choose_what_they_say(study, tmp_path):
    heads = run(study, out=tmp_path / "a", overrides=["judge.scores={by-size: {method: magnitude, unit: head}}"], show=False)
    model = wb.load(study.parent / "model")
    scores = wb.attribute.magnitude(model, *rows())
    mask = wb.attribute.structured(model, scores, unit="head", fraction=0.2)
    weights = pd.read_parquet(heads / "verdict.parquet").groupby("side")["weights"].unique()
    total = sum(p.numel() for p in model.hf.parameters())
    assert (weights["inside"].tolist(), weights["outside"].tolist()) == ([mask.count], [total - mask.count])
    assert weights["random"].tolist() == [mask.count], "a head in the same layer has as many weights"
    layers = run(study, out=tmp_path / "b", overrides=["judge.scope=layer", "judge.scores={saliency: {}}"], show=False)
    points = pd.read_parquet(layers / "verdict.parquet")
    assert points[points["side"] == "inside"]["weights"].tolist() == [round(0.2 * total)]
    plain = run(study, out=tmp_path / "c", overrides=["judge.scores={saliency: {}}"], show=False)
    other = pd.read_parquet(plain / "verdict.parquet")
    assert other["weights"].tolist() == points["weights"].tolist()
    assert other["forget_change"].tolist() != points["forget_change"].tolist(), "as many weights, but others"


def test_a_run_that_stops_leaves_no_verdict_of_another_study(study, tmp_path, monkeypatch):
    done = run(study, out=tmp_path, show=False)
    made = ("verdict.parquet", "areas.parquet", "report.html")

    def killed(on, located, one):
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.study.localization.measure", killed)
    # nothing changed: all points are there, and so is the verdict meanwhile
    gone = next((done / "points").iterdir())
    gone.unlink()
    with pytest.raises(KeyboardInterrupt):
        run(study, out=tmp_path, show=False)
    assert all((done / name).exists() for name in made)
    with pytest.raises(KeyboardInterrupt):
        run(study, out=tmp_path, overrides=["judge.scores={random: {}}"], show=False)
    assert not any((done / name).exists() for name in made)
    for command in (page, print_table):
        with pytest.raises(InputError, match="there is no verdict yet .* Run it again with `workbench run"):
            command(done)


def test_a_file_that_is_no_study_of_localizations(root, tmp_path):
    assert not has(root / "studies/quickstart.yaml", "judge")
    assert has(root / "studies/localization.yaml", "judge")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(StudyError, match="expected a mapping with name, model, data, and arms or judge"):
        read(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("name: [\n")
    with pytest.raises(StudyError, match="not valid YAML"):
        read(tmp_path / "broken.yaml")


def test_the_shipped_study_is_one(root):
    plan = read(root / "studies/localization.yaml")
    assert {"wagle", "saliency"} <= {one.name for one in plan.scores}
    assert len(plan.settings.sizes) >= 2
    assert len(plan.settings.seeds) >= 2


def command(*words):
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_the_command_line(study, tmp_path):
    said = command("judge", "by-size", "random", "--study", study, "--out", tmp_path, "-o", "sizes=[0.1]", "-o", "title=Here")
    assert "by-size" in said
    assert "saliency" not in said
    assert f"report: {tmp_path / 'small/report.html'}" in said
    again = command("report", tmp_path / "small")
    assert "by-size" in again
    assert "Here" in (tmp_path / "small/report.html").read_text()
    whole = command("run", study, "judge.sizes=[0.1]", "--out", tmp_path)
    assert "saliency" in whole
