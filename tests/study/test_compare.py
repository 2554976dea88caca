"""A whole comparison on models of a few thousand weights: its points, what becomes of them, and going on where it stopped."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import workbench as wb
from tests.reference import compare as truth
from workbench.core.delta import Delta, applied
from workbench.core.errors import DataError, InputError, NumericsError
from workbench.evaluate import TokenTable
from workbench.report.sheet import Sheet
from workbench.study import compare, compare_grid, organism
from workbench.study.compare_plan import BASELINES
from workbench.study.intervene import row_nll

WAGLE = {"attribute": "wagle", "fraction": 0.3}
SALIENCY = {"attribute": "saliency", "fraction": 0.5}
COMPARE = {
    "unlearn": {
        "gradient_ascent": {},
        "inside": {"objective": "gradient_ascent", "mask": SALIENCY},
        "twin": {"objective": "gradient_ascent", "mask": {**SALIENCY, "control": "matched_random"}},
    },
    "edits": {"dampen": {"alpha": 1.0}},
    "masks": {"none": {}, "wagle": WAGLE, "random": {**WAGLE, "control": "matched_random"}},
    "seeds": [0, 1],
    "rates": [2e-4, 4.5e-4],
    "validation": 3,
    "budget": 0.02,
    "max_steps": 4,
    "batch_size": 3,
    "budget_rows": 3,
    "report_rows": 6,
    "suite_rows": 4,
    "generate": 3,
}
COUNTS = {"forget": 6, "retain": 20, "real_authors": 5, "world_facts": 5}


@pytest.fixture(scope="module")
def study(root, tmp_path_factory):
    """A study file, its rows, and its three models, which differ in their random weights."""
    folder = tmp_path_factory.mktemp("compare")
    for split, n in COUNTS.items():
        lines = (root / f"data/tofu-mini/{split}.jsonl").read_text().splitlines()[:n]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    rows = [row for split in COUNTS for row in wb.examples(f"tofu:{split}", root=folder)]
    made = organism.tokenizer([f"{row.prompt} {row.response}" for row in rows], vocabulary=300)
    for seed, name in enumerate(("full", "retain", "retain-b")):
        hf = organism.untrained(made, seed, n_layers=1, d_model=8, d_mlp=12, n_heads=2)
        with torch.no_grad():
            for p in hf.parameters():
                p.mul_(4)  # far enough from uniform for its answers to be its own
        hf.save_pretrained(folder / name)
        made.save_pretrained(folder / name)
    data = {"root": ".", **{split: f"tofu:{split}" for split in COUNTS}}
    body = {"retrained": "retain", "retrained_b": "retain-b", **COMPARE}
    head = {"name": "small", "model": "full", "data": data, "device": "cpu", "dtype": "float32"}
    (folder / "study.yaml").write_text(yaml.safe_dump({**head, "compare": body}, sort_keys=False))
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def done(study, tmp_path_factory):
    """The run folder of the whole study, made in two parts that share it."""
    out = tmp_path_factory.mktemp("runs")
    first = compare.run(study, out=out, overrides=["compare.only=[inside, twin, dampen]"], show=False)
    part = Sheet.load(first)
    compare.run(study, out=out, overrides=["compare.only=[gradient_ascent]"], show=False)
    return first, part


def nll(folder, mask, seeds=(0, 1)):
    """Mean NLL of the forget rows of every seed of gradient ascent in a mask."""
    paths = [next((folder / "tokens").glob(f"gradient_ascent-{mask}@{seed}-*")) / "forget.parquet" for seed in seeds]
    return [float(TokenTable.load(path).answers.response.mean()) for path in paths]


def arms_points(folder, name):
    """The points of an arm's runs."""
    every = [json.loads(path.read_text()) for path in (folder / "points").iterdir()]
    return [one for one in every if any(f"/{name}@" in path for path in one.get("tokens", {}).values())]


def measurements(folder):
    return pd.read_parquet(folder / "measurements.parquet")


def test_a_part_says_what_is_missing(done):
    folder, part = done
    assert part.reading.startswith("Not finished: 3 combinations of methods and masks have not been run yet.")
    assert any("gradient_ascent, random" in one for one in part.cautions)
    whole = Sheet.load(folder)
    assert "Not finished" not in whole.reading
    assert "only" not in yaml.safe_load((folder / "config.yaml").read_text())["compare"]


def test_every_seed_is_a_row(done):
    found = measurements(done[0])
    runs = found[["method", "mask", "seed"]].drop_duplicates()
    told = runs[runs["mask"] != ""].groupby(["method", "mask"])["seed"].apply(list).to_dict()
    assert told == {
        ("gradient_ascent", "none"): [0, 1],
        ("gradient_ascent", "wagle"): [0, 1],
        ("gradient_ascent", "random"): [0, 1],
        ("inside", "saliency"): [0, 1],
        ("twin", "saliency-matched_random"): [0, 1],
        ("dampen", "edit"): [0],
    }
    assert not found.duplicated(["arm", "metric", "split"]).any()
    assert set(found.columns) >= {"run", "arm", "metric", "split", "value", "low", "high", "n", "unit", "seconds"}
    gold = found[found["arm"] == "retrained"].set_index("metric")["value"]
    assert "ks_distance" not in gold  # it is what the others are held against
    band = found[(found["arm"] == "retrained-b") & (found["metric"] == "ks_distance")]["value"].item()
    assert gold["ks_distance_second"] == band > 0


def test_numbers_of_a_run_are_those_of_its_delta(study, done):
    folder = done[0]
    model = wb.load(study.parent / "full", dtype="float32")
    plan = compare.read(study)
    on = compare.prepare(plan, folder)
    before = row_nll(model, on.parts.report)
    name = "gradient_ascent-wagle@1"
    delta = Delta.load(next((folder / "deltas").glob(f"{name}-*.safetensors")))
    with applied(model, delta):
        after, nll = row_nll(model, on.parts.report), row_nll(model, on.forget)
        budget = row_nll(model, on.parts.budget).mean()
    budget -= row_nll(model, on.parts.budget).mean()
    found = measurements(folder)
    value = found[found["arm"] == name].set_index(["metric", "split"])["value"]
    # tables hold float32: 6e-8 of a log-probability of about 10 nats
    assert value["retain_nll_rise", "report"] == pytest.approx((after - before).mean(), abs=2e-6)
    assert value["probability", "forget"] == pytest.approx(np.exp(-nll).mean(), rel=1e-5)
    assert value["budget_used", "budget"] == pytest.approx(budget, abs=1e-6)
    assert value["budget_used", "budget"] <= COMPARE["budget"]
    assert value["moved", "budget"] <= WAGLE["fraction"] + 1e-6
    assert value["lr", "training"] in COMPARE["rates"]


def test_rates_are_chosen_on_rows_that_are_not_trained_on(study, done):
    found = pd.read_parquet(done[0] / "searches.parquet")
    assert len(found) == 5 * len(COMPARE["rates"])
    epoch = math.ceil(COUNTS["forget"] / COMPARE["batch_size"])  # of a run, not of a trial, which has fewer rows
    for _, trials in found.groupby(["method", "mask"]):
        tried = trials[["lr", "validation_nll", "steps", "reached"]].values.tolist()
        assert trials.loc[trials["chosen"], "lr"].tolist() == [truth.best_rate(tried, epoch)]
    lr = found[found["chosen"]].set_index(["method", "mask"])["lr"]
    runs = measurements(done[0])
    for (method, mask), group in runs[runs["metric"] == "lr"].groupby(["method", "mask"]):
        assert set(group["value"]) == {lr[method, mask]}
    on = compare.prepare(compare.read(study), done[0])
    assert not set(on.fitting.ids) & set(on.validation.ids)
    assert not {row.id for part in on.parts for row in part} & set(on.forget.ids)
    assert len(set(on.parts.train.ids) | set(on.parts.budget.ids) | set(on.parts.report.ids)) == COUNTS["retain"]


def test_masks_are_compared_by_seed(done):
    found = pd.read_parquet(done[0] / "tests.parquet")
    assert found[["method", "mask", "against"]].drop_duplicates().values.tolist() == [
        ["gradient_ascent", "wagle", "none"],
        ["gradient_ascent", "wagle", "random"],
        ["gradient_ascent", "random", "none"],
        ["inside", "saliency", "gradient_ascent, none"],
        ["inside", "saliency", "twin, saliency-matched_random"],
        ["twin", "saliency-matched_random", "gradient_ascent, none"],
    ]
    assert (found["n"] == len(COMPARE["seeds"])).all()  # not rows
    assert (found["p_adjusted"] >= found["p"]).all()
    line = found[(found["mask"] == "wagle") & (found["against"] == "none") & (found["what"] == "forget_nll")].iloc[0]
    differences = [a - b for a, b in zip(nll(done[0], "wagle"), nll(done[0], "none"), strict=True)]
    expected = truth.student(differences)
    assert line[["difference", "low", "high", "p"]].tolist() == pytest.approx(expected, rel=1e-9)  # the same float32 tables


def test_the_front_is_one_of_arms_nobody_beats(done):
    found = pd.read_parquet(done[0] / "front.parquet")
    assert len(found) == 6
    assert found.set_index("arm")["runs"].to_dict()["dampen, edit"] == 1
    assert (found["budget_spent_by"] <= found["runs"]).all()
    table = Sheet.load(done[0]).sections[0]
    shown = {row[0]: [row[table.columns.index(one)][0] for one in ("in bands", "rise of retain NLL")] for row in table.rows}
    for _, one in found.iterrows():  # whatever the number of an arm's seeds
        assert [one["bands"], one["retain_rise"]] == pytest.approx(shown[one["arm"]], rel=1e-9)
    for _, one in found.iterrows():
        beaten = (found["bands"] <= one["bands"]) & (found["retain_rise"] <= one["retain_rise"])
        strictly = (found["bands"] < one["bands"]) | (found["retain_rise"] < one["retain_rise"])
        assert one["on_front"] == (not (beaten & strictly).any())
    assert found["on_front"].any()
    assert found["share_on_front"].between(0, 1).all()


def test_the_page_and_the_picture(done):
    sheet = Sheet.load(done[0])
    table = sheet.sections[0]
    assert [row[0] for row in table.rows[:3]] == list(BASELINES)
    assert len(table.rows) == 3 + 6
    bands = {row[0]: row[table.columns.index("in bands")] for row in table.rows}
    assert bands["retrained"][0] == 0
    assert bands["retrained-b"] == (1.0, 1.0, 1.0)
    assert {dot.group for dot in table.dots} == {"none", "wagle", "random", "saliency", "saliency-matched_random", "edit"}
    drawn = set(re.findall('data-arm="([^"]+)"', (done[0] / "plane.svg").read_text()))
    assert drawn >= {"inside, saliency", "twin, saliency-matched_random", "gradient_ascent", "dampen", *BASELINES}
    epochs = {row[0]: row[table.columns.index("epochs")] for row in table.rows}
    steps = [one for one in arms_points(done[0], "gradient_ascent-none") if "retain_nll" in one]
    assert epochs["gradient_ascent, none"] == pytest.approx(np.mean([one["steps"] for one in steps]) / 2)  # 6 rows, batches of 3
    assert any("for which the Deltas of 11 of 11 runs are kept" in one for one in sheet.cautions)
    assert not any("Without a matched random twin" in one for one in sheet.cautions)
    assert "at most 4 steps" in table.text
    assert "at most 4 steps" in sheet.sections[-1].text  # 3 rows in batches of 3: one step an epoch
    picture = (done[0] / "plane.svg").read_text()
    assert picture.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "gradient_ascent" in picture
    assert (done[0] / "report.html").stat().st_size > 5000


def test_a_run_goes_on_where_it_stopped(study, done, monkeypatch):
    folder = done[0]
    before = {path: path.stat().st_mtime_ns for path in (folder / "points").iterdir()}
    said = {path: json.loads(path.read_text()) for path in before}
    trial = next(path for path, one in said.items() if "validation_nll" in one)
    run = next(path for path, one in said.items() if any("ascent-none@1" in table for table in one.get("tokens", {}).values()))
    for path in (trial, run):
        path.unlink()
    trained = []
    real = compare_grid.at_budget
    monkeypatch.setattr(compare, "rehearse", lambda *_: None)
    monkeypatch.setattr(compare_grid, "at_budget", lambda *a, **k: trained.append(len(a[1])) or real(*a, **k))
    table = pd.read_parquet(folder / "measurements.parquet").drop(columns="seconds")
    compare.run(study, out=folder.parent, show=False)
    assert sorted(trained) == [COUNTS["forget"] - COMPARE["validation"], COUNTS["forget"]]  # a run trains on all forget rows
    for path in (trial, run):
        again = json.loads(path.read_text())
        assert {key: again[key] for key in again if key != "seconds"} == {key: said[path][key] for key in again if key != "seconds"}
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "measurements.parquet").drop(columns="seconds"), table)
    kept = {path: stamp for path, stamp in before.items() if path not in (trial, run)}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_loss_that_is_not_finite_is_told(study, tmp_path, monkeypatch):
    def never(*_, **__):
        raise NumericsError("train: the loss at step 0 is NaN")

    monkeypatch.setattr(compare_grid, "at_budget", never)
    rest = ["compare.seeds=[0]", "compare.masks={none: {}}", "compare.edits={}"]
    folder = compare.run(study, out=tmp_path, overrides=["compare.unlearn={gradient_ascent: {}}", *rest], show=False)
    sheet = Sheet.load(folder)
    assert "No arm has been run yet." in sheet.reading
    assert any("after no rate of the search was the loss finite" in one for one in sheet.cautions)
    assert not pd.read_parquet(folder / "searches.parquet")["chosen"].any()


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("compare.validation=5", "there are 6 forget rows, and 5 are held out"),
        ("compare.edits.dampen.alpha=9", "no weight can qualify"),
        ("compare.budget_rows=19", "19 are set aside to measure the budget"),
    ],
)
def test_what_cannot_be_done_stops_before_anything_is_written(study, tmp_path, override, match):
    with pytest.raises((DataError, InputError), match=match):
        compare.run(study, out=tmp_path, overrides=[override], show=False)
    assert not list(tmp_path.iterdir())
