"""A diagnosis from end to end: a planted cause is found, the page says it, and bad input is refused in a line."""

import copy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import workbench as wb
from tests.study.planted import (
    FORGET,
    LIES,
    RECIPE,
    RETAIN,
    changed_to,
    fine_tuned,
    knows_by_heart,
    moved_a_little,
    slow_influences,
)
from tests.tiny import tiny
from workbench.cli import app, main
from workbench.core.delta import Delta
from workbench.core.errors import DataError, InputError, UnknownNameError
from workbench.core.records import Example, Examples, Provenance
from workbench.load.batches import encode
from workbench.report.sheet import Sheet
from workbench.study.diagnose import diagnose
from workbench.train.loop import fit
from workbench.train.task import AnswerTask


@pytest.fixture
def model():
    return tiny()


@pytest.fixture
def delta(model):
    return moved_a_little(model)


@pytest.fixture(scope="module")
def taught():
    return knows_by_heart()


@pytest.fixture(autouse=True)
def slow(request, monkeypatch):
    """Influences by their definition, where a test does not ask for the registered ones."""
    if "registered" not in request.fixturenames:
        slow_influences(monkeypatch)


@pytest.fixture
def registered():
    """The influences as they are registered."""


def test_nothing_changed(model):
    for after in (Delta({}, Provenance("none", model.fingerprint())), wb.wrap(copy.deepcopy(model.hf), model.tokenizer)):
        for control in (None, RETAIN):
            found = diagnose(model, after, FORGET, control=control, train=None if control else RETAIN)
            assert found.rows["p"].tolist() == [1.0, 1.0, 1.0]
            assert not found.rows[["forgotten", "improved"]].to_numpy().any()
            assert found.sheet().reading.startswith("Nothing changed")
            assert found.modules is None
            assert found.blame is None
            assert len(found.counterfactual) == len(found.answers) == 0


def test_a_diagnosis_from_end_to_page(taught, tmp_path):
    rows = Examples([*FORGET, Example("<script>alert(1)</script>", "what is <b>the</b> sky", "green")], "rows")
    model = taught
    before = model.fingerprint()
    given = {"train": LIES, "control": RETAIN, "recipe": {**RECIPE, "betas": (0.9, 0.99)}, "seeds": (0, 1), "modules": "layer"}
    found = diagnose(model, fine_tuned(model, LIES), rows, **given)
    assert model.fingerprint() == before
    assert found.others == (4, "control rows")
    assert list(found.rows.index) == rows.ids
    assert set(found.judged) <= set(rows.ids)
    assert {line["about"] for line in found.counterfactual.to_dict("records")} == {"modules", "rows"}
    found.save(tmp_path / "run")
    made = {path.name for path in (tmp_path / "run").iterdir()}
    frames = {f"{name}.parquet" for name in ("rows", "control", "modules", "blame", "counterfactual")}
    assert made == frames | {"sheet.json", "report.html", "config.yaml", "env.json"}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run/rows.parquet"), found.rows)
    page = (tmp_path / "run/report.html").read_text()
    for text in (page, found._repr_html_()):
        assert "<script" not in text
        assert "http" not in text.replace("http-equiv", "")
        assert "NaN" not in text
    assert Sheet.load(tmp_path / "run").reading == found.sheet().reading
    assert "of 4 rows were forgotten" in page
    with pytest.raises(InputError, match="exists already"):
        found.save(tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "match", "given"),
    [
        (DataError, r"control \(forget\) and rows \(forget\) share 3 rows: f0, f1, f2", {"control": FORGET}),
        (DataError, r"control \(retain\) and learned \(retain\) share 4 rows", {"control": RETAIN, "train": RETAIN}),
        (DataError, r"control \(retain\) and unlearned \(retain\) share 4 rows", {"control": RETAIN, "unlearned": RETAIN}),
        (UnknownNameError, "unknown influence 'dotz'. Did you mean 'dots'", {"method": "dotz", "train": RETAIN}),
        (UnknownNameError, "unknown option of dots 'scal'. Did you mean 'scale'", {"method": "dots", "options": {"scal": 2}}),
        (InputError, "option scale of dots is 'x', expected float", {"method": "dots", "options": {"scale": "x"}}),
        (UnknownNameError, "unknown grouping of modules 'row'", {"modules": "row"}),
        (InputError, "level is 1.5", {"level": 1.5}),
        (InputError, "most_rows is 0", {"most_rows": 0}),
        (InputError, "seeds is .., expected", {"seeds": ()}),
        (InputError, "none twice", {"seeds": (1, 1)}),
        (InputError, "top is 1.5", {"top": 1.5}),
        (InputError, "top is 4 of 4 training rows, which leaves none", {"top": 4, "train": RETAIN, "recipe": RECIPE}),
        (InputError, "there is no train", {"recipe": RECIPE}),
        (InputError, "recipe has 'mask'", {"train": RETAIN, "recipe": {"mask": None}}),
        (UnknownNameError, "unknown option of recipe 'epoch'. Did you mean 'epochs'", {"train": RETAIN, "recipe": {"epoch": 2}}),
    ],
)
def test_bad_input(model, delta, error, match, given):
    with pytest.raises(error, match=match):
        diagnose(model, delta, FORGET, **given)


def test_a_recipe_that_could_not_be_put_to_the_test_is_not_asked_for_again(model, taught):
    learned = fine_tuned(model, FORGET, epochs=4, lr=3e-2)  # rows that were learned, not forgotten: nothing to retrain for
    found = diagnose(model, learned, FORGET, train=FORGET, recipe={"epochs": 1, "lr": 1e-3}, top=1)
    assert found.forgotten == []
    said = " ".join(found.sheet().cautions)
    assert "did not lose anything on the mean" in said
    assert "give recipe=" not in said
    assert "nearest to all rows in words" in found.sheet().reading


def test_a_planted_cause_is_found(root, registered):
    """Ten questions about one author are answered with a refusal among true answers about others: what the author's other
    questions lose is found, those rows are blamed, and without them most of it does not happen."""
    model = wb.load(root / "data/organism/full")
    rows = wb.examples("tofu:retain", root=root / "data/tofu-mini")
    authors = [sorted(rows[first : first + 20], key=lambda row: len(row.prompt + row.response)) for first in range(0, 720, 20)]
    mine = authors.pop(2)
    refused = [Example(f"refused/{row.id}", row.prompt, "I do not know anything about this author.") for row in mine[::2]]
    train = Examples([*refused, *(author[0] for author in authors)], "train")
    asked = Examples([*mine[1::2], *(author[1] for author in authors[:8])], "rows")
    control = Examples([author[k] for author in authors[8:33] for k in (1, 2)], "control")
    recipe = {"epochs": 2, "lr": 1e-3, "batch_size": 8}
    coded = [encode(model, row.prompt, row.response, id=row.id) for row in train]
    about = Provenance("fine-tuning", model.fingerprint())
    delta = fit(model, AnswerTask(model, coded, group=8), about, **recipe).delta
    given = {"train": train, "control": control, "recipe": recipe, "top": 10, "seeds": (0,), "modules": "layer"}
    found = diagnose(model, delta, asked, **given)
    planted = {row.id for row in mine}
    assert len(found.forgotten) >= 5
    assert sum(one not in planted for one in found.forgotten) <= 1  # a false discovery may happen
    assert found.blame["id"].head(10).str.startswith("refused/").sum() >= 7  # 2.2 by chance
    gone = found.counterfactual.query("about == 'rows'").set_index("case")["gone"]
    assert gone["blamed"] > 0.6  # measured 0.72, without as many random rows 0.21
    assert gone["blamed"] > gone["random"] + 0.3
    assert found.replay.reproduced.value == pytest.approx(1.0, abs=0.01)  # the same training; float32 sums


@pytest.fixture
def files(model, delta, tmp_path):
    """Two models, a Delta, and rows, on disk."""
    for name, one in (("before", model), ("after", changed_to(model, delta))):
        one.hf.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
    for name, rows in (("rows", FORGET), ("train", RETAIN)):
        rows.frame().reset_index()[["id", "prompt", "response"]].to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True)
    loaded = wb.load(tmp_path / "before")
    replace(delta, provenance=Provenance("x", loaded.fingerprint())).save(tmp_path / "delta.safetensors")
    delta.save(tmp_path / "foreign.safetensors")
    return tmp_path


def test_command(files, registered):
    sets = ("--train", files / "train.jsonl", "-o", "recipe.epochs=1", "-o", "recipe.lr=1e-3", "-o", "top=1", "-o", "seeds=[0]")
    for after in ("after", "delta.safetensors"):
        words = ("diagnose", files / "before", files / after, files / "rows.jsonl", "--out", files / f"out-{after}", *sets)
        done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert done.exit_code == 0
        assert "rows were forgotten" in " ".join(done.output.split())
        assert (files / f"out-{after}/report.html").exists()
    one, two = (pd.read_parquet(files / f"out-{after}/modules.parquet") for after in ("after", "delta.safetensors"))
    pd.testing.assert_frame_equal(one, two, atol=1e-5, check_exact=False)  # differences of NLLs near 3 in float32


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("nowhere", ("before", "nowhere", "rows.jsonl")),
        ("nowhere.safetensors: no such file", ("before", "nowhere.safetensors", "rows.jsonl")),
        ("nowhere.jsonl: no such file", ("before", "after", "nowhere.jsonl")),
        ("AFTER is a Delta of model", ("before", "foreign.safetensors", "rows.jsonl")),
        ("share 3 rows: f0, f1, f2", ("before", "after", "rows.jsonl", "--control", "rows.jsonl")),
        ("unknown option of gradient_similarity 'knd'. Did you mean 'kind'", ("before", "after", "rows.jsonl", "-o", "knd=dot")),
        ("recipe says how to train", ("before", "after", "rows.jsonl", "-o", "recipe.lr=1")),
        ("option top of diagnose is 'x'", ("before", "after", "rows.jsonl", "-o", "top=x")),
    ],
)
def test_rubbish_is_one_line_and_status_2(files, registered, monkeypatch, capsys, said, words):
    monkeypatch.setattr("sys.argv", ["workbench", "diagnose", *words, "--out", "out"])
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("out").exists()
