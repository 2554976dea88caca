"""The study of concepts: arms do what they say, are measured against the untouched model, and a run goes on where it stopped."""

import json
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import workbench as wb
from workbench.core.components import Place
from workbench.core.errors import DataError, StudyError, UnknownNameError
from workbench.report import page
from workbench.report.sheet import Sheet
from workbench.study import concepts as study
from workbench.study.concept_arms import Arm, as_many_others, chosen, measure
from workbench.study.concepts import Settings, prepare, read, run
from workbench.study.concepts_sheet import sheet
from workbench.study.folder import state

SETTINGS = Settings(rows=4, vectors=2, candidates=4, against=8, report_rows=5, generate=8)


@pytest.fixture(scope="module")
def model(root):
    return wb.load(root / "data/organism/full")


@pytest.fixture(scope="module")
def on(model, root):
    """The bench on two concepts of four rows."""
    forget, retain = (wb.examples(f"tofu:{split}", root=root / "data/tofu-mini") for split in ("forget", "retain"))
    return prepare(model, forget.take([0, 1, 2, 3, 40, 41, 42, 43]), retain.take(range(0, 720, 20)), SETTINGS)


def test_the_rows_are_apart(on):
    ids = [{row.id for row in rows} for rows in (on.held_out, on.unrelated, on.train)]
    assert len(on.held_out) == 4  # half of each concept
    assert not ids[0] & {row.id for one in on.found for row in one.held_out.unrelated}
    assert not ids[1] & ids[2]
    sought = {row.id for one in on.found for row in one.held_out.unrelated}
    assert not sought & (ids[1] | ids[2])  # the rows of the search are neither measured nor trained on
    assert [len(concept.qa) for concept in on.concepts] == [2, 2]


def test_other_vectors_are_others_of_the_same_layers(model, on):
    assert not set(chosen(on.found, 4)) & set(on.others)
    assert sorted(p.layer for p in on.places) == sorted(p.layer for p in on.others)
    with pytest.raises(DataError, match="layer 0 has 2 vectors that are no candidates, but 3 are compared with"):
        as_many_others(model, [(Place(0, i)) for i in range(3)], [Place(0, i) for i in range(model.d_mlp - 2)])


def test_the_untouched_model_is_untouched(on):
    point = measure(on, Arm("untouched"))
    assert set(point.vectors["cosine"]) == set(point.vectors["jaccard"]) == {1.0}
    assert set(point.vectors["relative_l2"]) == {0.0}
    assert set(point.nll["concept"]) == {0.0}
    assert set(point.rouge_l_f["qa"]) == set(point.bleu["unrelated_qa"]) == {1.0}


def test_zeroed_vectors_are_gone_and_others_are_not(model, on):
    point = measure(on, Arm("zeroed", ablate={"kind": "zero", "vectors": 2}))
    assert set(point.vectors["cosine"]) == {0.0}
    assert set(point.vectors["relative_l2"]) == {1.0}
    assert set(point.others["cosine"]) == {1.0}
    one = measure(on, Arm("one", ablate={"kind": "zero", "vectors": 1}))
    expected = [float(place not in chosen(on.found, 1)) for place in on.places]
    assert one.vectors["cosine"] == expected
    assert len(point.nll["unrelated"]) == len(point.rouge_l_f["unrelated_qa"]) == 5
    assert model.fingerprint() == model.base_fingerprint()


def test_unlearning_and_another_model(root, on):
    learned = measure(on, Arm("npo", unlearn={"objective": "npo", "epochs": 2, "lr": 2e-3}))
    assert np.mean(learned.nll["concept"]) > 0.1
    assert 0.9 < np.mean(learned.vectors["cosine"]) < 1
    retrained = measure(on, Arm("retrained", model=str(root / "data/organism/retain")))
    assert np.mean(retrained.nll["concept"]) > 3  # it never saw them
    assert abs(np.mean(retrained.nll["unrelated"])) < 0.1
    with torch.no_grad():
        there = wb.load(root / "data/organism/retain").sites.value_vectors(0).view(wb.load(root / "data/organism/retain").hf)
    layer, index = on.places[0]
    if layer == 0:
        mine = on.model.sites.value_vectors(0).view(on.model.hf)[index]
        expected = torch.cosine_similarity(mine.double(), there[index].double(), dim=0)
        assert retrained.vectors["cosine"][0] == pytest.approx(float(expected), abs=1e-6)


def test_what_is_said_of_the_arms(on):
    arms = {
        "untouched": Arm("untouched"),
        "zeroed": Arm("zeroed", ablate={"kind": "zero", "vectors": 2}),
        "elsewhere": Arm("elsewhere", ablate={"kind": "zero", "vectors": 2, "control": "place"}),
        "other": Arm("other", model="elsewhere"),
    }
    same = measure(on, arms["untouched"])

    def said(*names):
        return sheet("x", [arms[name] for name in names], [replace(same, arm=name) for name in names], on, {})

    plain, whole = said("untouched", "zeroed"), said(*arms)
    assert "the concept's answers lose more than unrelated ones do" in plain.reading
    assert "and more so than for a random vector of its norm" in plain.reading
    assert "Another model: other (" in whole.reading
    assert "Retrain" not in whole.reading
    for text in ("Retrained models start", "elsewhere: one random draw"):
        assert text in " ".join(whole.cautions)
        assert text not in " ".join(plain.cautions)


def test_versions_decide_a_measurement(model, monkeypatch):
    before = state(model)
    for package in ("torch", "transformers"):
        monkeypatch.setattr("importlib.metadata.version", lambda name, package=package: "0" if name == package else version(name))
        assert state(model) != before
        monkeypatch.undo()
    assert state(model) == before


@pytest.fixture
def file(root, tmp_path):
    """A study of one concept on few rows, with two cheap arms."""
    for split, step in (("forget", 20), ("retain", 20)):
        rows = (root / f"data/tofu-mini/{split}.jsonl").read_text().splitlines()[::step]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    arms = {"zeroed": {"ablate": {"kind": "zero"}}, "retrained": {"model": str(root / "data/organism/retain")}}
    body = {
        "name": "small",
        "model": str(root / "data/organism/full"),
        "data": {"forget": "forget.jsonl", "retain": "retain.jsonl"},
        "concepts": {"rows": 4, "vectors": 2, "candidates": 3, "against": 8, "report_rows": 5, "generate": 8, "arms": arms},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    return tmp_path / "study.yaml"


def test_from_file_to_page_and_on(file, tmp_path, monkeypatch):
    done = wb.study.run(file, out=tmp_path / "runs", show=False)
    shown = Sheet.load(done)
    table = {row[0]: row for row in shown.sections[0].rows}
    assert list(table) == ["untouched", "zeroed", "retrained"]
    assert table["zeroed"][1][0] == 0.0
    assert table["zeroed"][2][0] == table["untouched"][1][0] == 1.0
    assert "Ablation: zeroed (cosine 0.000, other vectors 1.000" in shown.reading
    assert len(pd.read_parquet(done / "found.parquet")) == 2
    first = page(done).read_text()
    points = [json.loads(path.read_text()) for path in (done / "points").iterdir()]
    assert {point["arm"] for point in points} == {"untouched", "zeroed", "retrained"}
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("an arm was measured again"))
    run(file, out=tmp_path / "runs", show=False)
    assert page(done).read_text() == first
    run(done / "config.yaml", out=tmp_path / "runs", show=False)  # what was written repeats the run
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run(file, out=tmp_path / "runs", overrides=["concepts.generate=9"], show=False)
    assert not (done / "report.html").exists()


@pytest.mark.parametrize(
    ("error", "match", "override"),
    [
        (StudyError, "concepts.vectors is 0", "concepts.vectors=0"),
        (StudyError, "only 3 candidates", "concepts.vectors=4"),
        (StudyError, "vectors is 9, expected a whole number from 1 to 3", "concepts.arms.zeroed.ablate.vectors=9"),
        (StudyError, "concepts has no arms", "concepts.arms={}"),
        (StudyError, "give one of unlearn, ablate, model", "concepts.arms.zeroed.model=x"),
        (UnknownNameError, "unknown key of concepts 'vektors'", "concepts.vektors=1"),
        (UnknownNameError, "unknown option of arm zeroed 'kindd'", "concepts.arms.zeroed.ablate.kindd=zero"),
        (UnknownNameError, "unknown kind of ablation 'foo'", "concepts.arms.zeroed.ablate.kind=foo"),
        (UnknownNameError, "unknown control 'foo'", "concepts.arms.zeroed.ablate.control=foo"),
        (StudyError, "arm zeroed: std is -1", "concepts.arms.zeroed.ablate.std=-1"),
        (StudyError, "arm zeroed: std is nan", "concepts.arms.zeroed.ablate.std=.nan"),
        (StudyError, "arm zeroed: .* factor inf", "concepts.arms.zeroed.ablate.factor=.inf"),
        (StudyError, "arm zeroed: a study file has no direction", "concepts.arms.zeroed.ablate.kind=project_out"),
        (StudyError, "arm zeroed: a study file has no direction", "concepts.arms.zeroed.ablate={direction: null}"),
        (UnknownNameError, "unknown objective 'npoo'", "concepts.arms.npo={unlearn: {objective: npoo}}"),
    ],
)
def test_bad_settings(file, error, match, override):
    with pytest.raises(error, match=match):
        read(file, [override])


def test_rows_that_make_no_whole_concepts(model, on):
    with pytest.raises(DataError, match="do not make concepts of 4"):
        prepare(model, on.forget[:6], on.unrelated, SETTINGS)
