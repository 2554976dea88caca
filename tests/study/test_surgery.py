"""The study of surgery: the cases are what their names say, all cost the same, and a run goes on where it stopped."""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import workbench as wb
from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError, StudyError, UnknownNameError
from workbench.report import page
from workbench.report.sheet import Sheet
from workbench.study import surgery as study
from workbench.study.intervene import row_nll
from workbench.study.surgery import Settings, prepare, read, run
from workbench.study.surgery_grid import CASES, Point, Question, advantage, delta_of, mean_change, measure, questions

SETTINGS = Settings(matrices=("gate", "v"), fraction=0.1, budget=0.02, probe_rows=20, budget_rows=8, report_rows=6, seeds=(0, 1))


@pytest.fixture(scope="module")
def model(root):
    return wb.load(root / "data/organism/full")


@pytest.fixture(scope="module")
def on(model, root):
    """The bench on twelve forget and forty retain rows."""
    forget, retain = (wb.examples(f"tofu:{split}", root=root / "data/tofu-mini") for split in ("forget", "retain"))
    return prepare(model, forget.take(range(0, 80, 7)), retain.take(range(0, 720, 18)), SETTINGS)[1]


def lines(model, delta):
    """Every row that a Delta moves, by parameter, as a dense difference."""
    return {name: change.dense() for name, change in delta.changes.items()}


def test_the_cases_are_what_they_are_called(model, on):
    found = {name: lines(model, delta_of(on, Question("gate", name, 3))) for name in CASES}
    rows = {name: {n: set(d.any(1).nonzero().flatten().tolist()) for n, d in each.items()} for name, each in found.items()}
    count = {name: sum(len(r) for r in each.values()) for name, each in rows.items()}
    total = model.n_layers * model.d_mlp
    assert count["probe, all rows"] == count["random, all rows"] == total
    assert {count[name] for name in CASES if "all" not in name} == {round(0.1 * total)}
    assert rows["random, chosen rows"] == rows["probe, chosen rows"]
    assert rows["random, random rows"] == rows["probe, random rows"]
    for name, chosen in rows["probe, chosen rows"].items():
        assert not chosen & rows["probe, random rows"].get(name, set())  # elsewhere, and as many in every layer
        assert len(chosen) == len(rows["probe, random rows"].get(name, set()))
        assert not chosen & rows["probe subtracted, aligned rows"].get(name, set())
    for name in found["random, chosen rows"]:  # one random direction a layer, shared by the random cases
        one, two, three = (found[f"random, {which} rows"][name] for which in ("chosen", "random", "all"))
        some = [each[each.any(1)][0] for each in (one, two, three)]
        for other in some[1:]:
            assert float(torch.cosine_similarity(some[0], other, dim=0)) == pytest.approx(1.0, abs=1e-6)
    along = {d.layer: d.vector for d in on.directions["mlp_in"]}
    for case, difference in found.items():
        for name, moved in difference.items():
            layer = int(name.split(".")[2])
            used = moved[moved.any(1)]
            cosine = (used @ along[layer]) / used.norm(dim=1)
            expected = {"probe": 1.0, "probe subtracted": -1.0}.get(case.split(",")[0])
            if expected is None:
                assert float(cosine.abs().max()) < 0.5  # a random direction of 256 features
            else:
                torch.testing.assert_close(cosine, torch.full_like(cosine, expected), rtol=0, atol=1e-5)  # float32 rows
            norms = model.hf.get_parameter(name).detach()[moved.any(1)].norm(dim=1)
            torch.testing.assert_close(used.norm(dim=1), 0.5 * norms, rtol=1e-5, atol=0)


def test_what_is_drawn_depends_on_the_seed_alone(on):
    for case in ("probe, random rows", "random, chosen rows", "random, all rows"):
        one, again, other = (delta_of(on, Question("v", case, seed)).id for seed in (0, 0, 1))
        assert one == again != other


def test_a_point(model, on):
    point = measure(on, Question("gate", "probe, chosen rows", None))
    delta = delta_of(on, Question("gate", "probe, chosen rows", None))
    with applied(model, delta):
        np.testing.assert_array_equal(point.forget, row_nll(model, on.forget) - on.before["forget"])
        np.testing.assert_array_equal(point.retain, row_nll(model, on.retain) - on.before["retain"])
    with applied(model, delta.scaled(point.factor)):
        np.testing.assert_array_equal(point.forget_at_budget, row_nll(model, on.forget) - on.before["forget"])
    assert 0.98 * on.budget <= point.used <= on.budget
    assert point.parameters == delta.n_touched
    assert model.fingerprint() == model.base_fingerprint()


def test_a_budget_out_of_reach_is_said(on):
    point = measure(replace(on, budget=1e6), Question("v", "random, chosen rows", 0))
    assert point.factor is None
    assert point.forget_at_budget == []
    assert "it costs only" in point.note
    broken = measure(replace(on, strength=1e38), Question("v", "probe, chosen rows", None))
    assert broken.forget == broken.retain == []  # it breaks the model: no number, rather than an infinite one
    assert 0.98 * on.budget <= broken.used <= on.budget  # a small part of it does not


def a_point(case, seed, forget):
    return Point("gate", case, seed, 1, 0.1, forget, [0.0], 1.0, 0.05, forget, [0.0], "")


def test_estimates_by_hand():
    recipe = [a_point("probe, chosen rows", None, [1.0, 2.0, 6.0])]
    drawn = [a_point("random, chosen rows", 0, [0.0, 0.0, 2.0]), a_point("random, chosen rows", 1, [0.0, 2.0, 4.0])]
    assert mean_change(drawn, "forget").value == pytest.approx(4 / 3)  # rows (0, 1, 3)
    assert mean_change(drawn, "forget").n == 3  # rows, not rows times seeds
    apart = [a_point("random, chosen rows", seed, [float(seed)] * 3) for seed in (0, 10)]
    assert mean_change(apart, "forget")[:3] == (5.0, 0.0, 10.0)  # the rows agree, the seeds do not: the interval says so
    assert advantage(apart, apart, "forget").low < 0  # seeds of two cases are drawn apart
    assert advantage(recipe, drawn, "forget").value == pytest.approx(5 / 3)  # (1, 1, 3)
    assert mean_change([*drawn, a_point("random, chosen rows", 2, [])], "forget") is None


def test_questions():
    asked = questions(("gate", "v"), (0, 1))
    assert len(asked) == 2 * (3 + 4 * 2)
    assert {q.seed for q in asked if q.case == "probe, all rows"} == {None}


@pytest.fixture
def file(root, tmp_path):
    """A study of one matrix on few rows."""
    for split, step in (("forget", 7), ("retain", 18)):
        rows = (root / f"data/tofu-mini/{split}.jsonl").read_text().splitlines()[::step]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    chosen = {key: value for key, value in asdict(SETTINGS).items() if key not in ("matrices", "seeds")}
    body = {
        "name": "small",
        "model": str(root / "data/organism/full"),
        "data": {"forget": "forget.jsonl", "retain": "retain.jsonl"},
        "surgery": {**chosen, "matrices": ["o"], "seeds": [0]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(body))
    return tmp_path / "study.yaml"


def test_from_file_to_page_and_on(file, tmp_path, monkeypatch):
    done = wb.study.run(file, out=tmp_path / "runs", show=False)
    frame = pd.read_parquet(done / "points.parquet")
    assert list(frame["case"]) == list(CASES)
    sheet = Sheet.load(done)
    recipe = Point(**json.loads(next(p for p in (done / "points").iterdir() if "probe, chosen" in p.read_text()).read_text()))
    assert sheet.sections[0].rows[0][1][0] == pytest.approx(np.mean(recipe.forget_at_budget))
    assert "answers' NLL by" in sheet.reading
    first = page(done).read_text()
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("a point was measured again"))
    assert run(file, out=tmp_path / "runs", show=False) == done
    assert page(done).read_text() == first
    run(done / "config.yaml", out=tmp_path / "runs", show=False)  # what was written repeats the run
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run(file, out=tmp_path / "runs", overrides=["surgery.strength=0.25"], show=False)
    assert not (done / "report.html").exists()  # it was of another strength


@pytest.mark.parametrize(
    ("error", "match", "override"),
    [
        (UnknownNameError, "Did you mean 'gate'", "surgery.matrices=[gat]"),
        (UnknownNameError, "unknown key of surgery 'strenght'", "surgery.strenght=1"),
        (StudyError, "surgery.fraction is 2", "surgery.fraction=2"),
        (StudyError, "surgery.strength is 0", "surgery.strength=0"),
        (StudyError, "none twice", "surgery.seeds=[1, 1]"),
        (StudyError, "surgery.seeds is 3, expected a list", "surgery.seeds=3"),
        (StudyError, "each a int", "surgery.seeds=[a]"),
        (StudyError, "surgery.budget is nan", "surgery.budget=.nan"),
        (StudyError, "report_rows is 2.5, expected a whole number", "surgery.report_rows=2.5"),
        (UnknownNameError, "unknown probe 'meen_difference'", "surgery.method=meen_difference"),
        (UnknownNameError, "unknown key of a study with 'surgery'", "arms={}"),
    ],
)
def test_bad_settings(file, error, match, override):
    with pytest.raises(error, match=match):
        read(file, [override])


def test_too_few_rows(model, on):
    with pytest.raises(DataError, match="at least 8 are needed"):
        prepare(model, on.forget[:3], on.retain, SETTINGS)
    with pytest.raises(InputError, match="no such file"):
        run("nowhere.yaml")
