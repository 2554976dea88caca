"""Located weights judged by intervention: one budget, planted sets, areas and intervals by hand, refusals."""

import inspect
import math

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.reference.answers import answer_statistics
from tests.study.located import learned, renamed, rows, word_scores
from tests.tiny import tiny
from workbench import unlearn
from workbench.core.components import GRIDS, Components, Place
from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError, MismatchError, UnknownNameError
from workbench.core.records import Provenance
from workbench.load.batches import encode_all
from workbench.study.intervene import Located, Question, Settings, bench, measure, row_nll
from workbench.study.judge import Fixed, Ranked, from_components, judge, named, questions, sizes_of, split_retain
from workbench.study.verdict import Verdict, area, student_interval, word
from workbench.unlearn.pairs import set_nll

ROWS = {"budget_rows": 4, "report_rows": 5}


UNLEARN = {"objective": "npo", "budget": 0.05, "lr": 4e-3, "max_steps": 60, "batch_size": 2, **ROWS}


SIZE = 0.02  # 112 of 5,584 weights: the 16 of one word's embedding and 96 others


@pytest.fixture(scope="module")
def model():
    return learned()


@pytest.fixture(scope="module")
def unlearned(model):
    """Two sets at two sizes, three seeds: one that provably matters, one that is chance."""
    sets = [Ranked("sky", word_scores(model, "sky")), Ranked("chance", word_scores(model, seed=1))]
    return judge(model, sets, *rows(), sizes=(0.1, SIZE), seeds=(0, 1, 2), **UNLEARN)


def test_the_model_knows_its_rows(model):
    assert max(row_nll(model, examples).max() for examples in rows()) < 0.3


def test_every_intervention_spends_the_same_budget(unlearned):
    points = unlearned.points
    assert len(points) == 2 * 2 * 3 * 3
    assert points["reached"].all()
    # the search ends within 0.01 of the budget below it, and the Delta is rounded to float32 once more
    assert ((points["budget_used"] - 0.05).abs() <= 0.011 * 0.05).all()
    assert (points["budget_used"] <= 0.05 * (1 + 1e-4)).all()
    assert (points["steps"] > 0).all()
    assert points["steps"].max() <= 60
    assert points["removed"].isna().all()
    assert (points["forget_low"] <= points["forget_change"]).all()
    assert (points["forget_change"] <= points["forget_high"]).all()


def test_the_planted_set_beats_random_and_chance_does_not(unlearned):
    # no retain row has the word "sky": what its embedding does to the forget rows costs nothing on the retain rows
    areas = unlearned.areas().set_index(["set", "against"])
    assert areas.loc[("sky", "random"), "verdict"] == "beats random"
    assert areas.loc[("sky", "random"), "low"] > 0
    assert areas.loc[("chance", "random"), "verdict"] == "not told apart"
    assert areas.loc[("sky", "random"), "sizes"] == "0.02, 0.1"


def test_areas_follow_from_the_points(unlearned):
    points = unlearned.points
    per_seed = []
    for seed in (0, 1, 2):
        one = points[(points["set"] == "sky") & (points["seed"] == seed)].set_index(["side", "size"])["forget_change"]
        # with two sizes the trapezoid divided by the width is the mean of both ends, whatever the axis
        per_seed.append(np.mean([one["inside", s] - one["random", s] for s in (SIZE, 0.1)]))
    found = unlearned.areas().set_index(["set", "against"]).loc[("sky", "random")]
    assert found["area"] == pytest.approx(np.mean(per_seed), rel=1e-12)
    half = 4.302652729911275 * np.std(per_seed, ddof=1) / math.sqrt(3)  # t(0.975) with two degrees of freedom
    assert (found["low"], found["high"]) == pytest.approx((found["area"] - half, found["area"] + half), rel=1e-9)


def test_a_lr_is_scaled_to_the_share_of_the_weights(unlearned, model):
    total = sum(p.numel() for p in model.hf.parameters())
    for row in unlearned.points.to_dict("records"):
        assert row["lr"] == pytest.approx(4e-3 / math.sqrt(row["weights"] / total), rel=1e-12)
    sides = unlearned.points[unlearned.points["size"] == SIZE].groupby("side")["weights"].unique()
    assert list(sides["inside"]) == list(sides["random"]) == [round(SIZE * total)]
    assert list(sides["outside"]) == [total - round(SIZE * total)]


def test_the_model_keeps_its_bits(model):
    before = {n: p.detach().clone() for n, p in model.hf.named_parameters()}
    for intervention in ("unlearn", "ablate"):
        sets = [Ranked("sky", word_scores(model, "sky"))]
        judge(model, sets, *rows(), sizes=(SIZE,), seeds=(0,), intervention=intervention, **UNLEARN | {"max_steps": 2})
    assert all(torch.equal(p, before[n]) for n, p in model.hf.named_parameters())
    assert model.ledger == []


def test_a_budget_that_is_not_spent_is_said_and_left_out(model):
    sets = [Ranked("sky", word_scores(model, "sky"))]
    found = judge(model, sets, *rows(), sizes=(SIZE,), seeds=(0, 1), **UNLEARN | {"lr": 1e-6, "max_steps": 2})
    assert not found.points["reached"].any()
    assert found.points["note"].str.contains("2 steps cost .* of the budget of 0.05").all()
    areas = found.areas()
    assert areas["area"].isna().all()
    assert (areas["verdict"] == "not measured").all()
    assert "size 0.02 left out, the budget was not spent inside the set and in a random set" in areas["note"][0]


def test_weights_that_no_row_uses_spend_nothing(model):
    # the embeddings of words that occur nowhere have no gradient: 16 of 5,584 weights and no others
    sets = [Ranked("unused", word_scores(model, "no"))]
    found = judge(model, sets, *rows(), sizes=(16 / 5584,), seeds=(0, 1), **UNLEARN | {"max_steps": 4})
    inside = found.points[found.points["side"] == "inside"]
    assert (inside["budget_used"] == 0).all()
    assert (inside["forget_change"] == 0).all()
    assert (found.areas()["verdict"] == "not measured").all()


def test_nothing_lies_outside_a_set_of_all_weights(model):
    sets = [Ranked("all", word_scores(model))]
    found = judge(model, sets, *rows(), sizes=(1.0,), seeds=(0, 1), **UNLEARN)
    outside = found.points[found.points["side"] == "outside"]
    assert outside["weights"].tolist() == [0, 0]
    assert outside["forget_change"].isna().all()
    assert outside["note"].str.contains("nothing lies outside it").all()
    areas = found.areas().set_index("against")
    assert areas.loc["outside", "verdict"] == "not measured"
    # all weights are their own random choice: the same runs, so a difference of exactly zero
    assert areas.loc["random", "area"] == 0
    assert areas.loc["random", "verdict"] == "not told apart"


def test_a_verdict_in_a_notebook(unlearned):
    html = unlearned._repr_html_()
    assert html.count("<svg") == 2 + 3, "a panel a set, and three dots in the legend"
    assert "beats random" in html
    assert "<script" not in html
    ax = unlearned.plot(name="chance")
    assert [line.get_label() for line in ax.lines[::2]] == ["inside", "random", "outside"]
    assert "beats random" in repr(unlearned)
    for said in (html, repr(unlearned)):
        assert "unlearning (npo), until the mean NLL on retain rows had risen by 0.05 nats per token" in said
    with pytest.raises(UnknownNameError, match="unknown located set 'chnace'. Did you mean 'chance'"):
        unlearned.plot(name="chnace")


def test_the_retain_rows_are_cut_in_three():
    forget, retain = rows()
    parts = split_retain(forget, retain, **ROWS)
    assert [len(part) for part in parts] == [5, 4, 5]
    assert sorted(i for part in parts for i in part.ids) == sorted(retain.ids)
    assert split_retain(forget, retain, **ROWS).budget.ids == parts.budget.ids
    assert [len(part) for part in split_retain(forget, retain, budget_rows=4, report_rows=2)] == [8, 4, 2]
    assert parts.budget.ids != retain.ids[:4], "the first rows are of one kind"


def test_rows_that_cannot_be_used(model):
    forget, retain = rows()
    sets = [Ranked("sky", word_scores(model, "sky"))]
    with pytest.raises(DataError, match="14 rows, but 48 are set aside"):
        judge(model, sets, forget, retain)
    twice = wb.Examples([*retain, *renamed(retain[:1], "again", "again-")], "retain")
    with pytest.raises(DataError, match="one row twice, as 'r0' and 'again-r0'"):
        judge(model, sets, forget, twice, **ROWS)
    with pytest.raises(DataError, match="share 1 rows: f0"):
        judge(model, sets, forget, wb.Examples([*retain, *renamed(forget[:1], "f", "x")], "retain"), **ROWS)
    with pytest.raises(InputError, match="report_rows is 0"):
        judge(model, sets, forget, retain, budget_rows=4, report_rows=0)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"sizes": (0.0, 0.1)}, InputError, "sizes has 0.0"),
        ({"sizes": (0.1, 1.5)}, InputError, "sizes has 1.5"),
        ({"sizes": ()}, InputError, "sizes is \\[\\], expected at least one"),
        ({"sizes": (0.1, 0.1)}, InputError, "none twice"),
        ({"seeds": ()}, InputError, "seeds is \\[\\]"),
        ({"budget": 0.0}, InputError, "budget is 0.0"),
        ({"budget": math.nan}, InputError, "budget is nan"),
        ({"lr": -1.0}, InputError, "lr is -1.0"),
        ({"max_steps": 0}, InputError, "max_steps is 0"),
        ({"objective": "nppo"}, UnknownNameError, "Did you mean 'npo'"),
        ({"options": {"bata": 1.0}}, UnknownNameError, "Did you mean 'beta'"),
    ],
)
def test_options_that_cannot_be(model, options, error, match):
    with pytest.raises(error, match=match):
        judge(model, [Ranked("sky", word_scores(model, "sky"))], *rows(), **ROWS | options)


def test_sets_that_cannot_be_judged(model):
    one = Ranked("sky", word_scores(model, "sky"))
    assert isinstance(one, Located)
    with pytest.raises(InputError, match="located is \\[\\]"):
        judge(model, [], *rows(), **ROWS)
    with pytest.raises(InputError, match="each with a name of its own"):
        judge(model, [one, one], *rows(), **ROWS)
    with pytest.raises(UnknownNameError, match="Did you mean 'ablate'"):
        Settings((0.1,), (0,), intervention="ablation")
    on = bench(model, rows()[0], split_retain(*rows(), **ROWS), Settings((0.1,), (0,)))
    with pytest.raises(UnknownNameError, match="unknown side 'insides'"):
        measure(on, one, Question("sky", 0.1, "insides", 0))
    other = word_scores(tiny(torch.float32, d_model=16, seed=9))
    with pytest.raises(MismatchError, match="made for model"):
        judge(model, [Ranked("sky", other)], *rows(), **ROWS)


def test_questions_are_asked_set_by_set():
    settings = Settings((0.2, 0.1), (3, 4), intervention="ablate")
    asked = questions(sizes_of({"a": Ranked("a", word_scores(tiny(torch.float32, d_model=16)))}, settings), settings)
    assert [(q.size, q.side, q.seed) for q in asked] == [
        (size, side, seed)
        for size in (0.1, 0.2)
        for side, seed in (("inside", None), ("random", 3), ("random", 4), ("outside", None))
    ]
    assert len(questions({"a": [0.2], "b": [0.2]}, Settings((0.2,), (3, 4)))) == 2 * 3 * 2


def test_steps_stand_beside_the_advantage(unlearned):
    found = unlearned.areas().set_index(["set", "against"]).loc[("sky", "random")]
    for column, side in (("steps", "inside"), ("steps_against", "random")):
        here = unlearned.points[(unlearned.points["set"] == "sky") & (unlearned.points["side"] == side)]
        assert found[column] == pytest.approx(here["steps"].mean(), rel=1e-12)


def test_a_verdict_says_what_it_was_measured_on(unlearned, model):
    forget, retain = rows()
    parts = split_retain(forget, retain, **ROWS)
    about = unlearned.provenance
    assert about.model == model.fingerprint()
    assert about.data == {
        "forget": forget.fingerprint(),
        "train": parts.train.fingerprint(),
        "budget": parts.budget.fingerprint(),
        "report": parts.report.fingerprint(),
    }
    assert (about.options["budget"], about.options["lr"]) == (0.05, 4e-3)
    assert unlearned.settings.budget == 0.05
