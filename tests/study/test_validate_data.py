"""The study of data attribution: from a file to a page on a micro bank, and on where it stopped; what it adds up, by hand."""

import json
from dataclasses import replace
from inspect import unwrap
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

import workbench as wb
from workbench.cli.validate import validate_data
from workbench.core.errors import DataError, InputError, ModelError, NumericsError, StudyError, UnknownNameError
from workbench.core.influence import Influence
from workbench.core.registry import influence
from workbench.report.sheet import Sheet
from workbench.study import validate_data as study
from workbench.study.bank import Bank, Bench, small_start
from workbench.study.lds import lds
from workbench.study.validate_data import read, run
from workbench.study.validate_data_methods import Full, labels_of, method, place
from workbench.study.validate_data_rehearsal import rehearse
from workbench.study.validate_data_result import mean_rise, removal
from workbench.study.validate_data_sheet import _who

METHODS = {
    "random": {"influence": "random"},
    "BM25": {"influence": "text_match"},
    "topic": {"labels": "group"},
    "right": {"labels": "clean"},
    "loss": {"score": "loss"},
    "TracIn": {"influence": "gradient_similarity", "kind": "dot", "checkpoints": True},
    "LESS": {"influence": "gradient_similarity", "checkpoints": True, "moments": True},
}


@pytest.fixture
def file(root, tmp_path):
    """A study of 5 subsets x 2 seeds of 24 rows."""
    for name, rows in (("train", 24), ("query", 4)):
        lines = (root / f"data/capitals/{name}.jsonl").read_text().splitlines()[:rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    body = {
        "name": "micro",
        "data": {"train": "train.jsonl", "query": "query.jsonl"},
        "validate_data": {
            "subsets": 5,
            "recipe": {"epochs": 2, "batch_size": 12, "lr": 5e-3},
            "remove": 0.1,
            "random_drops": 2,
            "methods": METHODS,
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    return tmp_path / "study.yaml"


def test_from_file_to_page_and_on(file, tmp_path, monkeypatch):
    done = wb.study.run(file, out=tmp_path / "runs", show=False)
    frame = pd.read_parquet(done / "methods.parquet").set_index("method")
    assert list(frame.index) == list(METHODS)
    bank = Bank.load(done / "bank.safetensors")
    assert bank.losses.shape == (5, 2, 4)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (tmp_path / "query.jsonl").read_text().splitlines()]
    topic = np.array([[float(row["group"] == one["group"]) for row in rows] for one in asked])
    right = topic * np.array([row["clean"] for row in rows])
    for name, values in (("topic", topic), ("right", right)):
        expected = lds(values, bank.subsets, bank.losses).estimate.value
        assert frame.loc[name, "lds"] == pytest.approx(expected, nan_ok=True)
    assert all(len(removed) == 2 for removed in frame["removed"])  # a tenth of 24
    text = Sheet.load(done)
    assert [row[0] for row in text.sections[0].rows] == list(METHODS)
    assert text.sections[1].rows[-1][0] == "2 random rows, 2 draws"
    assert "5 models were trained on 50% of 24 rows each, with 2 seeds" in text.reading
    assert "with an interval above 0:" not in text.reading
    page = (done / "report.html").read_text()
    assert "<script" not in page
    influence = sorted(p.name for p in (done / "influence").iterdir())
    assert len(influence) == 2 * len(METHODS)
    monkeypatch.setattr("workbench.study.bank.fit", lambda *_, **__: pytest.fail("a model was trained again"))
    assert run(file, out=tmp_path / "runs", show=False) == done
    assert (done / "report.html").read_text() == page
    run(done / "config.yaml", out=tmp_path / "runs", show=False)  # what was written repeats the run
    assert (done / "report.html").read_text() == page


def test_the_command(file, tmp_path, monkeypatch):
    asked = []

    def kept_in(study, *, out, overrides):
        asked.append((study, out, overrides))
        raise StudyError("as far as this goes")

    monkeypatch.setattr("workbench.study.validate_data.run", kept_in)
    with pytest.raises(StudyError, match="as far as this goes"):
        validate_data(file, out=tmp_path, option=["subsets=20", "data.train=mine.jsonl"])
    assert asked == [(file, tmp_path, ["validate_data.subsets=20", "data.train=mine.jsonl"])]


def test_removal_by_hand():
    """Rises 3 and 5 (one seed, two queries), random drops 1, 1 and 2, 2: means 4 and 1.5, beyond 2.5."""
    found = removal(np.array([[3.0, 5.0]]), np.array([[[1.0, 1.0]], [[2.0, 2.0]]]))
    assert found.rise.value == 4.0
    assert found.beyond.value == 2.5
    assert (found.rise.low, found.rise.high) == (3.0, 5.0)
    assert (found.beyond.low, found.beyond.high) == (1.0, 4.0)  # 3 - 2 and 5 - 1
    assert mean_rise(np.array([[[1.0, 1.0]], [[2.0, 2.0]]]))[:3] == (1.5, 1.0, 2.0)


def test_the_same_query_is_compared_under_the_same_seed():
    """Queries and seeds that differ by 100 on both sides: the difference is 1 in every draw."""
    base = np.array([[0.0, 100.0, 300.0], [50.0, 900.0, 20.0]])
    found = removal(base + 1.0, np.stack([base, base]))
    assert found.beyond[:3] == pytest.approx((1.0, 1.0, 1.0))
    assert found.rise.high - found.rise.low > 100


def test_methods_are_read():
    one = method("a", {"influence": "gradient-similarity", "kind": "dot", "checkpoints": True})
    assert (one.kind, one.member, one.options) == ("influence", "gradient_similarity", {"kind": "dot", "checkpoints": True})
    assert one.plain == {"influence": "gradient_similarity", "kind": "dot", "checkpoints": True}
    assert method("b", {"labels": "group"}).plain == {"labels": "group"}


@pytest.mark.parametrize(
    ("error", "match", "raw"),
    [
        (StudyError, "expected exactly one of the keys influence, score, labels", {"kind": "dot"}),
        (StudyError, "expected exactly one", {"influence": "random", "score": "loss"}),
        (StudyError, "expected a mapping", "random"),
        (UnknownNameError, "Did you mean 'text_match'", {"influence": "textmatch"}),
        (UnknownNameError, "option of text_match", {"influence": "text_match", "checkpoints": True}),
        (StudyError, "checkpoints is 3, expected true", {"influence": "gradient_similarity", "checkpoints": 3}),
        (InputError, "option damping of ekfac is 'small'", {"influence": "ekfac", "damping": "small"}),
        (StudyError, "expected labels: group or labels: clean", {"labels": "color"}),
        (StudyError, "ches scores preference pairs", {"score": "ches"}),
    ],
)
def test_bad_methods(error, match, raw):
    with pytest.raises(error, match=match):
        method("mine", raw)


@pytest.mark.parametrize(
    ("error", "match", "override"),
    [
        (StudyError, "validate_data.subsets is 2, expected a whole number of at least 3", "subsets=2"),
        (StudyError, "validate_data.share is 1.5", "share=1.5"),
        (StudyError, "must be below 1", "share=1"),
        (StudyError, "validate_data.seeds is 3, expected a list", "seeds=3"),
        (StudyError, "random_drops is 1", "random_drops=1"),
        (StudyError, "validate_data.recipe.lr is 0", "recipe.lr=0.0"),
        (UnknownNameError, "unknown option of recipe 'epoch'", "recipe.epoch=3"),
        (InputError, "option schedule of recipe is 'cosin'", "recipe.schedule=cosin"),
        (UnknownNameError, "Did you mean 'subsets'", "subset=3"),
        (StudyError, "methods is empty", "methods={}"),
        (ModelError, "no such folder", "start=./nowhere"),
    ],
)
def test_bad_settings(file, error, match, override):
    with pytest.raises(error, match=match):
        read(file, [f"validate_data.{override}"])


def test_the_usual_methods_are_compared_without_a_list(file):
    raw = yaml.safe_load(file.read_text())
    del raw["validate_data"]["methods"]
    file.write_text(yaml.safe_dump(raw))
    assert [one.name for one in read(file).settings.methods] == list(study.DEFAULTS)


def test_the_shipped_study_is_read(root):
    plan = read(root / "studies/validate-data.yaml")
    assert len(plan.settings.methods) == 13
    assert plan.settings.start == "small"


def test_a_bank_may_start_from_a_checkpoint(file, root):
    found = read(file, [f"validate_data.start={root / 'data/models/stories260K'}"]).settings.start
    assert wb.load(found).n_layers == 5


def test_labels_must_be_there(file, root):
    bare = file.parent / "bare.jsonl"
    bare.write_text('{"prompt": "The capital of Peru is", "response": "Lima"}\n')
    with pytest.raises(DataError, match="line 1: no 'group', which a method with 'labels' needs"):
        run(file, overrides=["data.query=bare.jsonl"])
    assert not (file.parent / "runs").exists()  # said before anything is written
    rows = wb.examples(root / "data/capitals/query.jsonl")
    with pytest.raises(DataError, match="20 labels for 3 rows"):
        labels_of(str(root / "data/capitals/query.jsonl"), "group", rows[:3])
    with pytest.raises(DataError, match="labels are read from JSON lines"):
        labels_of("rows.parquet", "group", rows)


def test_changed_labels_are_read_anew(file, tmp_path):
    """The rows' texts stay, one row turns wrong: the method with `clean` has other values, the one with `group` the same."""
    run(file, out=tmp_path / "runs", overrides=FEW, show=False)
    before = kept_methods(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    asked = {json.loads(line)["group"] for line in (tmp_path / "query.jsonl").read_text().splitlines()}
    row = next(row for row in lines if row["group"] in asked and row["clean"])
    row["clean"] = False
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in lines) + "\n")
    run(file, out=tmp_path / "runs", overrides=FEW, show=False)
    new = kept_methods(tmp_path) - before
    assert len(new) == 2  # of two seeds
    for path in new:
        found = Influence.load(path)
        assert found.provenance.options == {"labels": "clean"}
        assert not found.values[:, found.train.index(row["id"])].any()


FEW = ["validate_data.methods={topic: {labels: group}, right: {labels: clean}}", "validate_data.subsets=3"]


def kept_methods(folder):
    return set((folder / "runs/micro/influence").iterdir())


def test_another_kronfluence_is_another_point(file, monkeypatch):
    one = method("E", {"influence": "ekfac"})
    full = SimpleNamespace(on=SimpleNamespace(causes=["a"]), folder=file.parent)
    first = unwrap(place)(full, one, 0, None)
    monkeypatch.setattr("importlib.metadata.version", lambda package: f"{package} 2")
    assert unwrap(place)(full, one, 0, None) != first
    assert unwrap(place)(full, method("r", {"influence": "random"}), 0, None) == unwrap(place)(
        full, method("s", {"influence": "random"}), 0, None
    )


@pytest.mark.parametrize(
    ("match", "override"),
    [
        (r"train: warmup is 2", "recipe.warmup=2.0"),
        ("weight_decay -1", "recipe.weight_decay=-1.0"),
        ("ekfac: damping is -1.0, expected a finite number above 0", "methods={E: {influence: ekfac, damping: -1.0}}"),
        ("ekfac: modules 'nowhere' matches no linear map", "methods={E: {influence: ekfac, modules: [nowhere]}}"),
        ("unknown parameter in names 'nowhere'", "methods={G: {influence: gradient_similarity, names: [nowhere]}}"),
        ("text_match: b is 3.0", "methods={B: {influence: text_match, b: 3.0}}"),
        ("batch_tokens is -3", "methods={L: {score: loss, batch_tokens: -3}}"),
    ],
)
def test_nothing_is_written_before_values_are_checked(file, match, override):
    out = file.parent / "runs"
    with pytest.raises(InputError, match=match):
        run(file, out=out, overrides=[f"validate_data.{override}"], show=False)
    assert not out.exists()


def test_the_rehearsal_leaves_the_start_alone_and_passes_what_is_right(file, monkeypatch):
    """Also with a schedule and a warm-up that leave one step no rate; numbers that are NaN on two rows stop nothing."""
    calls = []

    def undefined(model, query, train, **options):
        calls.append((len(query), len(train), [one.lr for one in options["checkpoints"]]))
        raise NumericsError("a gradient is zero")

    plan = read(file, ["validate_data.recipe.warmup=0.9", "validate_data.recipe.schedule=linear"])
    train, query = (plan.head.rows(split) for split in ("train", "query"))
    model = small_start(train, query)
    full = Full(Bench(file.parent / "runs", model, train, query, plan.settings.recipe), file.parent / "runs")
    rehearse(full, plan.settings.methods[-1:], (0,), None)
    member = influence["gradient_similarity"]
    monkeypatch.setitem(influence._members, "gradient_similarity", replace(member, function=undefined))
    rehearse(full, plan.settings.methods[-1:], (0,), None)
    assert calls == [(1, 2, [5e-3])]
    assert model.fingerprint() == small_start(train, query).fingerprint()
    assert not (file.parent / "runs").exists()


def test_sentences_about_methods():
    assert _who([], "better than words alone with its interval above 0") == (
        "No method was better than words alone with its interval above 0."
    )
    assert _who(["A"], "better, with its interval above 0") == "A was better, with its interval above 0."
    assert _who(["A", "B"], "better, with its interval above 0") == "A and B were better, with their interval above 0."
