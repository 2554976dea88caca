"""A suite from a file of three lines, and from the command line."""

import json

import pytest
import torch
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app
from workbench.core.errors import DataError, InputError, StudyError, UnknownNameError
from workbench.core.records import Provenance
from workbench.study.evaluate_file import READERS, evaluate, plan, read_keys


@pytest.fixture(scope="module")
def here(tmp_path_factory, root):
    """A model, a Delta of it, and a few rows of everything, with files beside them that name them by relative paths."""
    made = tmp_path_factory.mktemp("own")
    (made / "model").symlink_to(root / "data/models/stories260K")
    for split in ("forget", "retain", "real_authors", "world_facts"):
        lines = (root / f"data/tofu-mini/{split}.jsonl").read_text().splitlines()[:3]
        (made / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    for split in ("forget_text", "retain_text", "holdout_text"):
        lines = (root / f"data/muse-mini/{split}.jsonl").read_text().splitlines()[:2]
        (made / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    questions = [{"question": f"Is it {n}?", "choices": ["no", "yes it is"], "answer": n % 2} for n in range(4)]
    (made / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    model = wb.load(made / "model")
    changed = {"model.layers.0.mlp.up_proj.weight": torch.ones_like(model.hf.model.layers[0].mlp.up_proj.weight)}
    wb.Delta.of(changed, Provenance("ones", model.fingerprint())).save(made / "d.safetensors")
    return made


def write(here, name, *lines):
    (here / name).write_text("\n".join(lines) + "\n")
    return here / name


def run(*words):
    done = CliRunner().invoke(app, ["evaluate", *map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return {(row["metric"], row["split"]): row for row in json.loads(done.output)}


def test_tofu_in_three_lines(here, root):
    file = write(here, "tofu.yaml", "model: model", "data: .", "reference: model", "generate: 4")
    found = run("tofu", file)
    assert found["forget_quality", "forget"]["value"] == 1.0  # against itself
    rows = {split: wb.examples(f"tofu:{split}", root=here) for split in ("forget", "retain", "real_authors", "world_facts")}
    want = wb.evaluate.suite("tofu", wb.load(here / "model"), data=rows, generate=4)
    assert found["probability", "forget"]["value"] == want["probability", "forget"].value
    flags = run("tofu", here / "model", "--data", here, "-o", "generate=4")
    assert flags["probability", "forget"] == found["probability", "forget"]
    edited = run("tofu", file, "--delta", here / "d.safetensors", "--retain-rows", 2)
    assert edited["probability", "forget"]["value"] != found["probability", "forget"]["value"]
    assert (edited["probability", "retain"]["n"], found["probability", "retain"]["n"]) == (2, 3)


def test_sources_one_by_one(here):
    sources = (
        '{forget: "tofu:forget", retain: retain.jsonl, real_authors: real_authors.jsonl, world_facts: world_facts.jsonl, root: .}'
    )
    one = run("tofu", write(here, "sources.yaml", "model: model", f"data: {sources}", "generate: 4"))
    assert one["probability", "forget"] == run("tofu", here / "tofu.yaml")["probability", "forget"]


def test_muse_with_tofus_questions(here):
    file = write(
        here, "muse.yaml", "model: model", "data: .", "questions: .", "reference: model", "new_tokens: 6", "answer_tokens: 4"
    )
    found = run("muse", file, "-o", "prompt_tokens=8")
    assert {split for _, split in found} == {"forget_text", "retain_text", "forget_qa", "retain_qa", "forget_whole"}
    assert found["rouge_l_f", "forget_qa"]["n"] == 3
    with_shots = run("muse", file, "-o", "prompt_tokens=8", "-o", "shots=1")
    assert with_shots["rouge_l_f", "retain_qa"]["n"] == 2  # the solved one is not asked


def test_multiple_choice(here):
    file = write(here, "mc.yaml", "model: model", "questions: q.jsonl", "form: letters")
    assert run("multiple_choice", file)["accuracy", "questions"]["n"] == 4
    assert run("multiple_choice", here / "model", "--questions", here / "q.jsonl")["chance", "questions"]["value"] == 0.5


def test_conceptvectors_of_an_edit(here):
    own = "concepts: {name: up, places: [[0, 1], [0, 2]], qa: forget.jsonl, unrelated_qa: retain.jsonl}"
    file = write(here, "cv.yaml", "model: model", own, "delta: d.safetensors", "generate: 4", "k: 10")
    found = run("conceptvectors", file)
    assert found["cosine", "vectors"]["value"] == 1.0  # the Delta writes into another matrix
    assert found["rouge_l_f", "qa"]["n"] == 3
    without = plan("conceptvectors", read_keys(file) | {"delta": ""}, where="cv")
    with pytest.raises(InputError, match="needs the untouched model"):
        evaluate(without)


def test_a_concepts_file_that_is_not_there_or_has_another_name(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setattr("workbench.study.evaluate_file.load", lambda *_, **__: pytest.fail("a model was loaded first"))
    keys = {"model": "model", "concepts": "nowhere.json"}
    with pytest.raises(InputError, match="nowhere.json: no such file or folder"):
        evaluate(plan("conceptvectors", keys, where="x"))
    entry = {
        "Concept": "Poland", "Layer": 23, "Dim": 743, "QA": ["Where?"], "unrelated_QA": ["Who?"], "wikipedia_content": "Text.",
        "text_completion": [{"First_half": "a", "Second_half": "b"}],
    }  # fmt: skip
    (here / "renamed.json").write_text(json.dumps([entry]))
    with pytest.raises(StudyError, match="renamed.json: the name does not say which model it is about; say so with about, one of"):
        evaluate(plan("conceptvectors", keys | {"concepts": "renamed.json"}, where="x"))
    known = plan("conceptvectors", keys | {"concepts": "renamed.json", "about": "olmo-7b"}, where="x")
    assert READERS["conceptvectors"](known)[0].id == "olmo-7b/23/743"


def test_a_file_that_is_no_mapping_says_what_one_holds(here):
    for text in ("", "just words"):
        with pytest.raises(StudyError, match="expected a mapping with model, what the suite asks"):
            read_keys(write(here, "none.yaml", text))


def test_flags_that_would_be_ignored_are_refused(here):
    model, log = str(here / "model"), str(here / "q.jsonl")
    for words, match in (
        (["tofu", model, "--data", str(here), "--reference-logs", log], "--reference-logs go with --logs"),
        (["tofu", "--logs", log, "--device", "cpu"], "no --device and no --dtype"),
        (["tofu", "--logs", log, "--dtype", "float32"], "no --device and no --dtype"),
    ):
        with pytest.raises(InputError, match=match):
            CliRunner().invoke(app, ["evaluate", *words], catch_exceptions=False)


def test_numbers_are_kept(here, tmp_path):
    run("multiple_choice", here / "model", "--questions", here / "q.jsonl", "--out", tmp_path / "m.parquet")
    assert wb.Measurements.load(tmp_path / "m.parquet")["chance", "questions"].n == 4


WRONG = {
    "another suite": ("tofuu", {"model": "m"}, UnknownNameError, "unknown suite 'tofuu'. Did you mean 'tofu'"),
    "another key": ("tofu", {"modl": "m"}, UnknownNameError, "'modl'. Did you mean 'model'"),
    "an option of another suite": ("tofu", {"model": "m", "data": ".", "form": "texts"}, UnknownNameError, "unknown key .*'form'"),
    "no reference there": ("multiple_choice", {"model": "m", "questions": "q", "reference": "m"}, UnknownNameError, "'reference'"),
    "no data": ("tofu", {"model": "model"}, StudyError, "x.yaml: there is no 'data'; it is the folder with forget, retain"),
    "no tasks": ("lm_eval", {"model": "model"}, StudyError, "there is no 'tasks'; it is a list of the harness' tasks"),
    "no model": ("muse", {"data": "."}, StudyError, "there is no 'model'; it is a folder or a hub id"),
    "no such model": ("tofu", {"model": "./nowhere", "data": "."}, InputError, "no such folder"),
    "a value": ("tofu", {"model": "model", "data": ".", "generate": "much"}, InputError, "option generate of tofu is 'much'"),
    "a seed": ("tofu", {"model": "model", "data": ".", "seed": -1}, StudyError, "seed is -1, expected a whole number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case, here, monkeypatch):
    monkeypatch.chdir(here)
    suite, keys, kind, match = WRONG[case]
    with pytest.raises(kind, match=match):
        plan(suite, keys, where="x.yaml")


def test_data_that_is_wrong_is_said_before_the_model_is_loaded(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setattr("workbench.study.evaluate_file.load", None)
    with pytest.raises(InputError, match="no world_factz|unknown key of data 'world_factz'"):
        evaluate(plan("tofu", {"model": "model", "data": {"world_factz": "x"}}, where="x"))
    with pytest.raises(StudyError, match="retain_rows is 0"):
        evaluate(plan("tofu", {"model": "model", "data": ".", "retain_rows": 0}, where="x"))
    with pytest.raises(DataError, match="line 1: there are 1 choices"):
        (here / "bad.jsonl").write_text('{"question": "a", "choices": ["b"], "answer": 0}\n')
        evaluate(plan("multiple_choice", {"model": "model", "questions": "bad.jsonl"}, where="x"))


def test_a_model_alone_says_what_is_missing(here):
    for suite, missing in (("tofu", "--data"), ("multiple_choice", "--questions"), ("lm_eval", "-o tasks=")):
        with pytest.raises(InputError, match=f"a model needs {missing}"):
            CliRunner().invoke(app, ["evaluate", suite, str(here / "model")], catch_exceptions=False)
    with pytest.raises(InputError, match="no other suite, data or option goes with them"):
        CliRunner().invoke(app, ["evaluate", "muse", "--logs", str(here / "q.jsonl")], catch_exceptions=False)
