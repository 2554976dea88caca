"""Whatever the user gets wrong is one line on standard error with exit status 2, and nothing is written."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench.cli import main

FOLDER = Path(__file__).resolve().parent.parent
MODEL = str(FOLDER / "data/models/slm4096")
TOFU = ["--forget", "forget.jsonl", "--retain", "retain.jsonl"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with two good files of rows."""
    monkeypatch.chdir(tmp_path)
    for name, words in (("forget", ("one", "two")), ("retain", ("three", "four", "five"))):
        rows = [{"id": w, "prompt": f"Q: What is {w}?\nA:", "response": f"It is {w}."} for w in words]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def fails(monkeypatch, capsys, *words):
    """The error line of a command that must fail with status 2."""
    monkeypatch.setattr("sys.argv", ["workbench", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1, f"more than one line: {said}"
    return said


def study(**changes):
    """A study file that is right but for `changes`."""
    body = {
        "name": "s",
        "model": MODEL,
        "data": {
            "root": str(FOLDER / "data/tofu-mini"),
            **{s: f"tofu:{s}" for s in ("forget", "retain", "real_authors", "world_facts")},
        },
        "arms": {"untouched": {"role": "untouched"}},
    } | changes
    Path("study.yaml").write_text(json.dumps(body))  # JSON is YAML
    return "study.yaml"


def nan_model():
    shutil.copytree(MODEL, "nan")
    weights = load_file("nan/model.safetensors")
    weights["transformer.ln_f.weight"][2] = float("nan")
    save_file(weights, "nan/model.safetensors", metadata={"format": "pt"})
    return "nan"


def pickle_model():
    shutil.copytree(MODEL, "pickle")
    torch.save(load_file("pickle/model.safetensors"), "pickle/pytorch_model.bin")
    Path("pickle/model.safetensors").unlink()
    return "pickle"


def other_mask():
    stories = wb.load(FOLDER / "data/models/stories260K")
    wb.attribute.magnitude(stories, wb.examples("forget.jsonl"), wb.examples("retain.jsonl")).mask(0.1).save("mask.safetensors")
    return "mask.safetensors"


def rows(name, *lines):
    Path(name).write_text("".join(line + "\n" for line in lines))
    return name


GOOD = '{"prompt": "Q: a?\\nA:", "response": "b"}'


def pair(name, chosen):
    """A line with a preference pair."""
    return json.dumps({"id": name, "prompt": "why", "chosen": chosen, "rejected": "no"})


CASES = {
    "missing file": (
        lambda: ["attribute", "wagle", MODEL, "--forget", "no.jsonl", "--retain", "retain.jsonl"],
        "no.jsonl: no such file",
    ),
    "no model folder": (lambda: ["attribute", "wagle", str(FOLDER / "tests"), *TOFU], "not a model folder"),
    "no model": (lambda: ["attribute", "wagle", "./nowhere", *TOFU], "no such folder"),
    "hub without network": (lambda: ["attribute", "wagle", "owner/name", *TOFU], "hub could not be reached"),
    "pickle": (lambda: ["attribute", "wagle", pickle_model(), *TOFU], "the weights are a pickle"),
    "nan weights": (lambda: ["attribute", "wagle", nan_model(), *TOFU], "transformer.ln_f.weight holds NaN"),
    "broken line": (
        lambda: ["attribute", "wagle", MODEL, "--forget", rows("x.jsonl", GOOD, "{"), "--retain", "retain.jsonl"],
        "x.jsonl, line 2: not a JSON object",
    ),
    "empty set": (
        lambda: ["attribute", "wagle", MODEL, "--forget", rows("x.jsonl"), "--retain", "retain.jsonl"],
        "the set is empty",
    ),
    "too long": (
        lambda: [
            "attribute",
            "wagle",
            MODEL,
            "--retain",
            "retain.jsonl",
            "--forget",
            rows("x.jsonl", json.dumps({"id": "long one", "prompt": "why " * 60, "response": "no"})),
        ],
        "row 'long one'",
    ),
    "shared rows": (
        lambda: ["unlearn", "npo", MODEL, "--forget", "forget.jsonl", "--retain", "forget.jsonl"],
        "share 2 rows: one, two",
    ),
    "unknown method": (lambda: ["attribute", "wagel", MODEL, *TOFU], "Did you mean 'wagle'"),
    "unknown objective": (lambda: ["unlearn", "nppo", MODEL, *TOFU], "Did you mean 'npo'"),
    "unknown edit": (lambda: ["edit", "damp", MODEL, *TOFU], "Did you mean 'dampen'"),
    "unknown option": (lambda: ["attribute", "wagle", MODEL, *TOFU, "-o", "gama=1"], "Did you mean 'gamma'"),
    "unknown loop option": (lambda: ["unlearn", "npo", MODEL, *TOFU, "-o", "epoch=1"], "Did you mean 'epochs'"),
    "no option": (lambda: ["unlearn", "npo", MODEL, *TOFU, "-o", "lr"], "expected key=value"),
    "mask of another model": (lambda: ["unlearn", "npo", MODEL, *TOFU, "--mask", other_mask()], "mask: made for model"),
    "no mask file": (lambda: ["unlearn", "npo", MODEL, *TOFU, "--mask", "forget.jsonl"], "not a safetensors file"),
    "value of another type": (
        lambda: ["unlearn", "npo", MODEL, *TOFU, "-o", "lr=fast"],
        "option lr of unlearn is 'fast', expected float",
    ),
    "unknown form": (lambda: ["attribute", "wagle", MODEL, *TOFU, "-o", "form=abs"], "option form of wagle is 'abs'"),
    "option that has a flag": (lambda: ["unlearn", "npo", MODEL, *TOFU, "-o", "mask=x"], "option 'mask' is not given with -o"),
    "unknown preference": (lambda: ["prefer", "dop", MODEL, "--pairs", "x"], "Did you mean 'dpo'"),
    "pairs that are rows": (
        lambda: ["prefer", "dpo", MODEL, "--pairs", "forget.jsonl"],
        "forget.jsonl, line 1: no text under 'chosen'",
    ),
    "pairs too long": (
        lambda: ["prefer", "dpo", MODEL, "--pairs", rows("p.jsonl", pair("short", "ok"), pair("endless", "why " * 200))],
        "1 of 2 pairs do not fit the model's context of 128 tokens: row 'endless, chosen'",
    ),
    "empty answer of a pair": (lambda: ["prefer", "dpo", MODEL, "--pairs", rows("p.jsonl", pair("p", ""))], "p.jsonl, line 1"),
    "unknown score": (lambda: ["score", "chess", MODEL, "forget.jsonl"], "Did you mean 'ches'"),
    "filter of single rows": (lambda: ["score", "loss", MODEL, "forget.jsonl", "--keep", "0.5"], "--keep filters preference pairs"),
    "bad dtype": (lambda: ["edit", "dampen", MODEL, *TOFU, "--dtype", "int4"], "dtype 'int4'"),
}
STUDIES = {
    "no study": (lambda: "nowhere.yaml", "no such file"),
    "broken yaml": (lambda: rows("study.yaml", "a: [1"), "not valid YAML: expected ',' or ']', but got '<stream end>' in line 2"),
    "no arms": (lambda: study(arms={}), "there is no 'arms'"),
    "unknown key": (lambda: study(arm={}), "Did you mean 'arms'"),
    "unknown objective": (lambda: study(arms={"a": {"unlearn": {"objective": "npoo"}}}), "Did you mean 'npo'"),
    "unknown option": (lambda: study(arms={"a": {"unlearn": {"objective": "npo", "lrr": 1}}}), "Did you mean 'lr'"),
    "unknown attribution": (
        lambda: study(arms={"a": {"unlearn": {"objective": "npo"}, "mask": {"attribute": "wagl", "fraction": 0.1}}}),
        "Did you mean 'wagle'",
    ),
    "bad fraction": (
        lambda: study(arms={"a": {"unlearn": {"objective": "npo"}, "mask": {"attribute": "wagle", "fraction": 7}}}),
        "mask.fraction is 7",
    ),
    "two kinds": (lambda: study(arms={"a": {"unlearn": {"objective": "npo"}, "edit": {"method": "dampen"}}}), "give one of model"),
    "no such split": (lambda: study(data={"forget": "x"}), "no source for retain, real_authors, world_facts"),
    "no such model": (lambda: study(model="./nowhere"), "no such folder"),
    "arm with a path": (lambda: study(arms={"../a": {"role": "untouched"}}), "it names a folder"),
    "seeds": (lambda: study(seeds=[0, 0]), "a list of different whole numbers"),
    "suite": (lambda: study(evaluate={"suite": "muse"}), "unknown suite 'muse'"),
    "rows": (lambda: study(evaluate={"retain_rows": 0}), "evaluate.retain_rows is 0"),
    "retain rows without false answers": (lambda: study(evaluate={"retain_rows": 500}), "retain"),
    "a late arm's model": (lambda: study(arms={"a": {"role": "untouched"}, "b": {"model": "./nowhere"}}), "no such folder"),
    "unlearn is no mapping": (lambda: study(arms={"a": {"unlearn": "npo"}}), "expected a mapping, got 'npo'"),
    "a value of another type": (lambda: study(arms={"a": {"unlearn": {"objective": "npo", "lr": "fast"}}}), "option lr"),
    "retain term": (
        lambda: study(arms={"a": {"unlearn": {"retain_term": "foo"}}}),
        "expected Optional[Literal['none', 'nll', 'kl', 'states']]",
    ),
    "a key twice": (lambda: rows("study.yaml", "name: a", "name: b"), "the key 'name' stands twice"),
    "name with a path": (lambda: study(name="../x"), "it names a folder"),
}


@pytest.mark.parametrize("case", CASES)
def test_commands(here, monkeypatch, capsys, case):
    build, match = CASES[case]
    words = build()
    before = sorted(os.listdir(here))
    assert match in fails(monkeypatch, capsys, *words, "--out", "result")
    assert sorted(os.listdir(here)) == before


@pytest.mark.parametrize("case", STUDIES)
def test_studies(here, monkeypatch, capsys, case):
    build, match = STUDIES[case]
    words = build()
    before = sorted(os.listdir(here))
    assert match in fails(monkeypatch, capsys, "run", words, "--out", "runs")
    assert sorted(os.listdir(here)) == before


def test_an_override_makes_no_new_arm(here, monkeypatch, capsys):
    assert "unknown arm 'untuched'. Did you mean 'untouched'" in fails(monkeypatch, capsys, "run", study(), "arms.untuched.title=x")


def test_a_folder_with_something_in_it_is_not_overwritten(here, monkeypatch, capsys):
    assert "exists already" in fails(monkeypatch, capsys, "attribute", "wagle", MODEL, *TOFU, "--out", str(here))
    assert Path("forget.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["evaluate", "tofu"], "give a MODEL with --data, or --logs"),
        (["evaluate", "tofu", MODEL], "a model needs --data"),
        (["evaluate", "tofu", "--logs", "forget.jsonl"], "forget.jsonl"),
        (["report", "nowhere"], "nowhere"),
        (["compare", "nowhere"], "nowhere"),
    ],
)
def test_readers(here, monkeypatch, capsys, words, match):
    assert match in fails(monkeypatch, capsys, *words)
