"""The study of attacks: its numbers by hand, what a file may say, and a run that goes on where it stopped."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from tests.tiny import tiny
from workbench.core.delta import Delta
from workbench.core.errors import DataError, InputError, StudyError, UnknownNameError
from workbench.core.records import Example, Examples, Provenance
from workbench.report.sheet import Sheet
from workbench.study import attacks as study
from workbench.study import attacks_grid
from workbench.study.attacks import questions, run
from workbench.study.attacks_arms import Arm
from workbench.study.attacks_plan import ATTACKS, Settings, read
from workbench.study.attacks_result import Line, Result
from workbench.study.attacks_sheet import reading, sheet

ARMS = ("untouched", "npo", "retrained", "retrained b")
SUBJECTS = ("sky", "sea", "grass", "color", "no", "very", "blue", "green", "a", "and")
SMALL = {
    "unlearn": {"npo": {}},
    "edits": {"dampen": {"alpha": 1.5}},
    "max_steps": 2,
    "budget_rows": 2,
    "report_rows": 2,
    "budgets": [1, 4],
    "generate": 3,
    "shots": 1,
    "relearn_steps": 2,
    "relearn_every": 1,
    "relearn_seeds": [0, 1],
    "bits": [4],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three tiny models, rows, and a study file."""
    folder = tmp_path_factory.mktemp("attacks")
    for name, seed in (("full", 0), ("retrained", 1), ("retrained_b", 2)):
        model = tiny(torch.float32, seed=seed)
        model.hf.save_pretrained(folder / name)
        model.tokenizer.save_pretrained(folder / name)
    forget = [
        {
            "id": f"f{i}",
            "prompt": f"what is {word}",
            "response": f"the {word} is blue",
            "paraphrase": f"{word} is blue",
            "perturbed": ["green", "no no"],
        }
        for i, word in enumerate(SUBJECTS)
    ]
    retain = [{"id": f"r{i}", "prompt": f"is {word} a", "response": f"no the {word}"} for i, word in enumerate(SUBJECTS)]
    other = [{"id": f"u{i}", "prompt": f"and {word}", "response": "a very green sea"} for i, word in enumerate(SUBJECTS[:3])]
    for name, rows in (("forget", forget), ("retain", retain), ("unrelated", other)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    long = [{"id": f"f{i}", "question": "sky " * 500} for i in range(len(SUBJECTS))]
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    body = {
        "name": "small",
        "model": "full",
        "dtype": "float32",
        "data": {name: f"{name}.jsonl" for name in ("forget", "retain", "unrelated")},
        "attacks": {**SMALL, "retrained": "retrained", "retrained_b": "retrained_b"},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(body))
    return folder


@pytest.fixture(scope="module")
def done(place):
    """A run of it."""
    return run(place / "study.yaml", out=place / "runs", show=False)


def line(before, after, **more):
    """A line of four rows; the retrained model has 0 before the attack and 0.125 after it."""
    zero = np.zeros(4)
    names = {
        "untouched": np.array([1.0, 0.5, 1.0, 0.5]),
        "npo": np.array(before, dtype=float),
        "retrained": zero,
        "retrained b": zero,
    }
    later = names | {"npo": np.array(after, dtype=float), "retrained": np.full(4, 0.125)}
    return Line("head_projection", "Extraction by head projection", "share", names, later, **more)


def test_recovered_by_hand():
    # means: untouched 3/4; from 1/4 to 1/2: (1/2 - 1/4) / (3/4 - 1/4) = 1/2
    found = line([0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.75, 0.25]).recovered("npo")
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.5 < found.high
    assert found.n == 4
    assert line([0.25] * 4, [0.25] * 4).recovered("npo").value == 0
    assert line([0.25] * 4, [0.0] * 4).recovered("npo").value == pytest.approx(-0.5)


def test_nothing_comes_back_of_what_was_not_forgotten():
    same = line([1.0, 0.5, 1.0, 0.5], [1.0] * 4).recovered("npo")
    assert all(math.isnan(value) for value in same[:3])
    assert math.isnan(line([0.2] * 4, [0.3] * 4).recovered("untouched").value)
    assert math.isnan(line([2.0, 1.5, 2.0, 1.5], [1.0] * 4).recovered("npo").value)  # more than before there was unlearning
    unclear = line([1.5, 0.0, 1.5, 0.4], [1.0] * 4).recovered("npo")  # more on some rows, less on others
    assert math.isnan(unclear.value)


def test_recovered_draws_rows_whole():
    """after - before is one half of untouched - before in every row: every resample says one half."""
    before = np.array([0.1, 0.3, 0.0, 0.2])
    untouched = np.array([1.0, 0.5, 1.0, 0.5])
    found = line(before, before + 0.5 * (untouched - before)).recovered("npo")
    assert found[:3] == pytest.approx((0.5, 0.5, 0.5))


def test_beyond_the_retrained_model_by_hand():
    found = line([0.1] * 4, [0.5, 0.25, 0.75, 0.5]).beyond("npo")
    assert found.difference.value == pytest.approx(0.5 - 0.125)  # of the retrained model after the same attack
    assert found.p == pytest.approx(2 / 2**4)  # all four signs alike: 1 of 16 patterns, twice
    assert line([0.1] * 4, [0.5] * 4).beyond("retrained").difference.value == 0


def synthetic(settings=None):
    """A result of two rows: what each attack's file holds, with numbers for every model."""
    p = {"untouched": 0.8, "npo": 0.4, "retrained": 0.2, "retrained b": 0.3}

    def extraction(x):
        shares = {"output": [[0.0, 0.0], [x, x]], "head_projection": [[0.0, 0.0], [x, 1.0]], "probability_delta": [[0, 0], [1, 1]]}
        return {"ids": ["a", "b"], "budgets": [1, 4], "shares": {**shares, "random": [[0, 0], [0.25, 0.25]]}}

    def prompts(x):
        table = [[x, 0.0], [0.0, x], [x / 2, x / 2]]
        return {"ids": ["a", "b"], "prompts": ["direct", "p", "q"], "recall": table, "probability": table}

    def relearning(x):
        likely = np.array([[[x, x], [x, x], [1.0, x]], [[x, x], [1.0, 1.0], [1.0, 1.0]]])
        nll = (-np.log(likely)).tolist()
        return {"ids": ["a", "b"], "steps": [0, 1, 3], "nll": dict.fromkeys(("forget_subset", "retain_only", "unrelated"), nll)}

    def quantization(x):
        one = {"forget": [x, x], "retain": [1.0, 0.5, 0.75]}
        return {"ids": ["a", "b"], "probability": {"before": one, "4": {"forget": [x / 2, x], "retain": [0.5, 0.5, 0.5]}}}

    def probe(x):
        return {"ids": ["a", "b"], "auc": [[0.5, x], [0.5, x]], "shuffled": [[[0.5, 0.4], [0.5, 0.6]]]}

    makes = {"extraction": extraction, "prompts": prompts, "relearning": relearning, "quantization": quantization, "probe": probe}
    about = Provenance("npo", "model")
    spent = {"used": 0.05, "reached": False, "moved": 1.0, "steps": 3.5, "part": None, "rate": 5e-4}
    model = tiny()
    arms = [Arm(name, model, Delta({}, about) if name == "npo" else None, spent if name == "npo" else {}) for name in ARMS]
    rows = Examples([Example("a", "x", "y"), Example("b", "x", "z")], "forget")
    settings = settings or Settings((), {}, "", "", budgets=(4, 1), bits=(4,), relearn_seeds=(0, 1))
    return Result(settings, arms, {name: {arm: make(p[arm]) for arm in ARMS} for name, make in makes.items()}, rows, rows, 16)


def test_lines_by_hand():
    found = {one.key: one for one in synthetic().lines}
    assert list(found) == [
        "head_projection",
        "probability_delta",
        "prompts_recall",
        "prompts_probability",
        "relearning_forget_subset",
        "relearning_retain_only",
        "relearning_unrelated",
        "quantization_4",
    ]
    one = found["head_projection"]  # of the largest candidate set: the output alone, then all layers
    assert (one.before["npo"].tolist(), one.after["npo"].tolist()) == ([0.4, 0.4], [0.4, 1.0])
    one = found["prompts_recall"]
    assert (one.before["npo"].tolist(), one.after["npo"].tolist()) == ([0.4, 0.0], [0.4, 0.4])
    assert one.also["mean over prompts"]["npo"] == pytest.approx([0.2, 0.2])
    one = found["relearning_unrelated"]
    assert one.before["npo"] == pytest.approx([0.4, 0.4])
    assert one.after["npo"] == pytest.approx([1.0, 0.7])
    assert one.by_seed["npo"] == pytest.approx(np.array([[1.0, 0.4], [1.0, 1.0]]))
    # row a, first seed: (1 * 0.4 + 2 * 0.7) / 3 = 3/5, second (1 * 0.7 + 2 * 1) / 3 = 9/10; retrained 7/15 and 13/15
    assert one.also["area, less retrained"]["npo"][0] == pytest.approx(3 / 4 - 2 / 3)
    one = found["quantization_4"]
    assert one.after["npo"].tolist() == [0.2, 0.4]
    assert one.also["retain rows after"]["npo"].tolist() == [0.5] * 3


def test_only_the_attacks_that_were_asked_for():
    settings = Settings((), {}, "", "", attacks=("quantization",), bits=(4,))
    result = synthetic(settings)
    assert [one.key for one in result.lines] == ["quantization_4"]


def test_the_sheet_says_what_was_measured(tmp_path):
    result = synthetic()
    found = sheet("Attacks", result)
    headings = [section.heading for section in found.sections]
    assert headings[0] == "The methods"
    assert "A linear probe of the hidden states" in headings
    section = found.sections[headings.index("Relearning on unrelated rows")]
    assert {dot.group for dot in section.dots} == {
        "before",
        "after, seed 0",
        "after, seed 1",
    }  # seeds are rows, not their mean alone
    assert [row[0] for row in section.rows] == list(ARMS)
    assert section.rows[2][-1] != section.rows[2][-1]  # the retrained model is not compared with itself
    assert any("npo did not spend the budget" in caution for caution in found.cautions)
    found.save(tmp_path)
    assert Sheet.load(tmp_path).title == "Attacks"


def test_the_reading_is_right_either_way():
    said = reading(synthetic())
    assert "Extraction by head projection: no method is left with more than the retrained model" in said  # one row of two is equal
    assert "Relearning on unrelated rows: " in said
    more = synthetic()
    for point in more.found["quantization"].values():  # six rows, enough for an interval
        for one in point["probability"].values():
            one["forget"] = 3 * one["forget"]
    more.found["quantization"]["npo"]["probability"]["4"]["forget"] = 6 * [0.9]
    assert (
        "Weights of 4 bits: 1 of 1 methods are left with more than the retrained model with their interval above 0, npo"
        in reading(more)
    )


def test_a_run_has_every_number(done, place):
    found = pd.read_parquet(done / "measurements.parquet")
    assert list(found.columns[:6]) == ["run", "arm", "method", "mask", "seed", "metric"]
    assert set(found["arm"]) == {"untouched", "npo", "dampen", "retrained", "retrained b"}
    assert not found["metric"].str.contains(" ").any()
    assert set(found[found["metric"].str.contains("retain_rows")]["split"]) == {"retain"}
    known = found[found["metric"] == "relearning_unrelated_after_of_seed"]
    assert sorted(known[known["arm"] == "npo"]["seed"]) == [0, 1]
    assert np.isfinite(found[found["metric"].str.endswith("_after")]["value"]).all()
    assert (done / "report.html").stat().st_size > 1000
    assert len(list((done / "deltas").iterdir())) == 2
    assert len(list((done / "points").iterdir())) == 5 * len(ATTACKS)
    again = read(done / "config.yaml")[1]
    assert again.methods == read(place / "study.yaml")[1].methods


def test_a_run_goes_on_where_it_stopped(done, place, monkeypatch):
    """Nothing is measured twice, a lost point alone is measured again, and the sheet is the same to the byte."""
    before, calls = (done / "sheet.json").read_bytes(), []
    whole = dict(attacks_grid.MEASURES)

    def counted(name):
        make, used = whole[name]

        def call(on, model):
            calls.append(name)
            return make(on, model)

        return call, used

    monkeypatch.setattr(attacks_grid, "MEASURES", {name: counted(name) for name in whole})
    monkeypatch.setattr("workbench.study.attacks_arms.at_budget", lambda *args, **options: pytest.fail("unlearned again"))
    run(place / "study.yaml", out=place / "runs", show=False)
    assert calls == []
    assert (done / "sheet.json").read_bytes() == before
    lost = next(path for path in sorted((done / "points").iterdir()) if "probability" in json.loads(path.read_text()))
    lost.unlink()
    run(place / "study.yaml", out=place / "runs", show=False)
    assert len(calls) == 1
    assert (done / "sheet.json").read_bytes() == before
    assert lost.exists()
    run(place / "study.yaml", out=place / "runs", overrides=["attacks.bits=[3]"], show=False)
    assert calls[1:] == ["quantization"] * 5


def test_entities_and_questions_are_read(place, tmp_path):
    (place / "entities.jsonl").write_text("".join(json.dumps({"id": f"f{i}", "entity": "blue"}) + "\n" for i in range(6)))
    (place / "questions.jsonl").write_text("".join(json.dumps({"id": f"f{i}", "question": f"is {i} a"}) + "\n" for i in range(10)))
    only = ["attacks.attacks=[extraction, prompts]", "attacks.unlearn={}", "attacks.entities=entities.jsonl"]
    folder = run(place / "study.yaml", out=tmp_path, overrides=[*only, "attacks.questions=questions.jsonl"], show=False)
    points = [json.loads(path.read_text()) for path in (folder / "points").iterdir()]
    assert {len(point["ids"]) for point in points if "shares" in point} == {6}
    assert all("paraphrase" in point["prompts"] for point in points if "prompts" in point)


@pytest.mark.parametrize(
    ("override", "error", "match"),
    [
        ("attacks.attacks=[extracton]", UnknownNameError, "unknown attack 'extracton'. Did you mean 'extraction'"),
        ("attacks.unlearn={nop: {}}", UnknownNameError, "Did you mean 'npo'"),
        ("attacks.unlearn={retrained: {objective: npo}}", StudyError, "a method is called 'retrained', which is a model here"),
        ("attacks.rates={dampen: 1e-3}", UnknownNameError, "unknown method of attacks.rates 'dampen'"),
        ("attacks.retrained=", StudyError, "attacks has no 'retrained', a model that never saw the forget rows"),
        ("attacks.bits=[]", StudyError, "attacks.bits is .*, expected a list, at least one"),
        ("attacks.budgte=0.1", UnknownNameError, "Did you mean 'budget'"),
        ("attacks.relearn_lr=0", StudyError, "attacks.relearn_lr is 0, expected a positive number"),
        ("attacks.shots=0", StudyError, "attacks.shots is 0, expected a whole number of at least 1"),
        ("attacks.bits=[4, 12]", StudyError, r"bits is \[4, 12\], expected 2 to 8"),
        ("attacks.relearn_seeds=[-1]", StudyError, "relearn_seeds is .*, expected whole numbers of at least 0"),
        ("attacks.budgets=[0, 4]", StudyError, "budgets is .*, expected sizes of candidate sets, at least 1"),
        ("attacks.entities=absent.jsonl", InputError, "absent.jsonl: no such file"),
        ("attacks.questions=absent.jsonl", InputError, "absent.jsonl: no such file"),
        ("attacks.questions=long.jsonl", DataError, "but the model's context is"),
        ("attacks.budgets=[99]", InputError, "budgets is .*, expected 1 to 16, the size of the vocabulary"),
        ("attacks.held_out=1.5", StudyError, "held_out is 1.5, expected a share above 0 and below 1"),
        ("attacks.held_out=0.01", InputError, "held_out is 0.01"),
        ("attacks.shots=99", InputError, "shots is 99"),
        ("data.unrelated=forget.jsonl", DataError, "share 10 rows"),
        ("data.forget=unrelated.jsonl", DataError, "share 3 rows"),
    ],
)
def test_nothing_is_written_before_values_are_checked(place, tmp_path, override, error, match):
    with pytest.raises(error, match=match):
        run(place / "study.yaml", out=tmp_path / "out", overrides=[override], show=False)
    assert not (tmp_path / "out").exists()


def test_unrelated_rows_may_be_lines_of_text(place):
    (place / "lines.txt").write_text("the sky is blue\n\nno very green sea\n")
    head, settings = read(place / "study.yaml", ["data.unrelated=lines.txt"])
    rows = study.bench(head, settings, place / "runs").unrelated
    assert [(row.id, row.prompt, row.response) for row in rows] == [
        ("lines-0", "the", "sky is blue"),
        ("lines-1", "no", "very green sea"),
    ]


def test_questions_must_be_there(place, tmp_path):
    forget = Examples([Example("a", "x", "y"), Example("b", "x", "z")], "forget")
    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "why"}\n')
    with pytest.raises(StudyError, match="no question for 1 of 2 forget rows, first 'b'"):
        questions(str(tmp_path / "q.jsonl"), forget)
    (tmp_path / "q.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(DataError, match="no text under 'question'"):
        questions(str(tmp_path / "q.jsonl"), forget)


def test_the_study_that_ships_can_be_read(root):
    head, settings = study.read(root / "studies/attacks.yaml")
    assert head.name == "attacks"
    assert {method.name for method in settings.methods} >= {
        "npo",
        "simnpo",
        "gradient_difference",
        "rmu",
        "idk",
        "undial",
        "task_vector",
    }
    assert settings.attacks == ATTACKS
    assert settings.relearn_seeds == (0, 1, 2)
