"""A whole comparison on models of a few thousand weights: its points, what becomes of them, and going on where it stopped."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import workbench as wb
from workbench.core.delta import Delta, applied
from workbench.core.errors import DataError, InputError, NumericsError
from workbench.report.sheet import Sheet
from workbench.study import compare, compare_grid, organism
from workbench.study.compare_grid import BASELINES
from workbench.study.compare_result import _against
from workbench.study.config import MaskPlan
from workbench.study.intervene import row_nll

WAGLE = {"attribute": "wagle", "fraction": 0.3}
COMPARE = {
    "unlearn": {
        "gradient_ascent": {},
        "inside": {"objective": "gradient_ascent", "mask": {"attribute": "saliency", "fraction": 0.5}},
    },
    "edits": {"dampen": {"alpha": 1.0}},
    "masks": {"none": {}, "wagle": WAGLE, "random": {**WAGLE, "control": "matched_random"}},
    "seeds": [0, 1],
    "rates": [3e-3, 1e-2],
    "validation": 2,
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
    first = compare.run(study, out=out, overrides=["compare.only=[inside, dampen]"], show=False)
    part = Sheet.load(first)
    compare.run(study, out=out, overrides=["compare.only=[gradient_ascent]"], show=False)
    return first, part


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
    assert len(found) == 4 * len(COMPARE["rates"])
    for _, trials in found.groupby(["method", "mask"]):
        assert trials["chosen"].sum() == 1
        assert trials.loc[trials["chosen"], "validation_nll"].item() == trials["validation_nll"].max()
    lr = found[found["chosen"]].set_index(["method", "mask"])["lr"]
    runs = measurements(done[0])
    for (method, mask), group in runs[runs["metric"] == "lr"].groupby(["method", "mask"]):
        assert set(group["value"]) == {lr[method, mask]}
    on = compare.prepare(compare.read(study), done[0])
    assert not set(on.fitting.ids) & set(on.validation.ids)
    assert not {row.id for part in on.parts for row in part} & set(on.forget.ids)
    assert len(set(on.parts.train.ids) | set(on.parts.budget.ids) | set(on.parts.report.ids)) == COUNTS["retain"]


def test_masks_are_compared_row_by_row(done):
    found = pd.read_parquet(done[0] / "tests.parquet")
    assert found[["method", "mask", "against"]].drop_duplicates().values.tolist() == [
        ["gradient_ascent", "wagle", "none"],
        ["gradient_ascent", "wagle", "random"],
        ["gradient_ascent", "random", "none"],
    ]
    assert (found["n"] == COUNTS["forget"]).all()  # rows, not rows times seeds
    assert (found["p_adjusted"] >= found["p"]).all()
    value = measurements(done[0]).set_index(["arm", "metric", "split"])["value"]
    for what, sign in (("forget_nll", 1), ("gap", 1)):
        line = found[(found["mask"] == "wagle") & (found["against"] == "none") & (found["what"] == what)].iloc[0]
        assert line["low"] <= sign * line["difference"] <= line["high"]
    assert math.isfinite(value["gradient_ascent-none@0", "ks_distance", "forget"])


def test_a_mask_is_held_against_none_and_its_random_twin():
    plans = {
        "none": None,
        "wagle": MaskPlan("wagle", 0.1),
        "random": MaskPlan("wagle", 0.1, control="matched_random"),
        "other": MaskPlan("wagle", 0.2, control="matched_random"),
    }
    assert _against(plans, "wagle") == ["none", "random"]
    assert _against(plans, "random") == ["none"]
    assert _against(plans, "none") == []
    assert _against({"saliency": MaskPlan("saliency", 0.5)}, "saliency") == []


def test_the_front_is_one_of_arms_nobody_beats(done):
    found = pd.read_parquet(done[0] / "front.parquet")
    assert len(found) == 5
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
    assert len(table.rows) == 3 + 5
    bands = {row[0]: row[table.columns.index("in bands")] for row in table.rows}
    assert bands["retrained"][0] == 0
    assert bands["retrained-b"] == (1.0, 1.0, 1.0)
    assert {dot.group for dot in table.dots} == {"none", "wagle", "random", "saliency", "edit"}
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
