"""Located weights judged by intervention: one budget, planted sets, areas and intervals by hand, refusals."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.study.located import learned, renamed, rows, word_scores
from workbench.core.errors import DataError, InputError, MismatchError, UnknownNameError
from workbench.load.batches import encode_all
from workbench.study.intervene import Located, Question, Settings, bench, measure, row_nll
from workbench.study.judge import Ranked, judge, questions, split_retain
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


def test_ablation_finds_the_share_to_take_away(model):
    sets = [Ranked("sky", word_scores(model, "sky")), Ranked("grass", word_scores(model, "grass"))]
    found = judge(model, sets, *rows(), sizes=(0.05,), seeds=(0, 1, 2), intervention="ablate", budget=0.1, **ROWS)
    points = found.points
    assert len(points) == 2 * (1 + 3 + 1), "only the random set is drawn, once a seed"
    spent = points[points["reached"]]
    assert ((spent["budget_used"] - 0.1).abs() <= 0.011 * 0.1).all()
    assert ((points["removed"] > 0) & (points["removed"] <= 1)).all()
    # once more without the judge: (1 - a) w inside, a as reported, on rows encoded here
    row = points[(points["set"] == "sky") & (points["side"] == "inside")].iloc[0]
    mask = sets[0].inside(0.05)
    parts = split_retain(*rows(), **ROWS)
    before = set_nll(model, encode_all(model, parts.budget))
    kept = {n: p.detach().clone() for n, p in model.hf.named_parameters()}
    with torch.no_grad():
        for name, p in model.hf.named_parameters():
            p[mask[name]] *= 1 - row["removed"]
        rise = set_nll(model, encode_all(model, parts.budget)) - before
        for name, p in model.hf.named_parameters():
            p.copy_(kept[name])
    assert rise == pytest.approx(row["budget_used"], abs=2e-6)  # float32 forward passes of weights rounded in another order


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


def test_weights_that_cost_nothing_are_taken_away_altogether(model):
    sets = [Ranked("unused", word_scores(model, "no"))]
    on = bench(model, rows()[0], split_retain(*rows(), **ROWS), Settings((0.1,), (0,), intervention="ablate"))
    point = measure(on, sets[0], Question("unused", 16 / 5584, "inside", None))
    assert (point.removed, point.reached, point.budget_used) == (1.0, False, 0.0)
    assert point.note == "taking the weights away altogether cost 0.0000 of the budget of 0.05 nats per token"


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


def frame(values):
    """Points by (size, side, seed): forget change, or None where the budget was not spent."""
    return pd.DataFrame(
        [
            {"set": "s", "size": size, "side": side, "seed": seed, "reached": v is not None, "forget_change": v or 0.0}
            for (size, side, seed), v in values.items()
        ]
    ).astype({"seed": "Int64"})


def test_area_by_hand():
    # sizes 1 %, 10 %, 20 %: widths ln 10 and ln 2; trapezoids (1 + 3)/2 * ln 10 and (3 + 2)/2 * ln 2 over ln 20
    expected = (2 * math.log(10) + 2.5 * math.log(2)) / math.log(20)
    assert area([0.01, 0.1, 0.2], np.array([1.0, 3.0, 2.0])) == pytest.approx(expected, rel=1e-12)
    assert area([0.01, 0.1, 0.2], np.full(3, 0.7)) == pytest.approx(0.7, rel=1e-12)  # a constant is its own mean
    assert area([0.1], np.array([0.4])) == 0.4
    with pytest.raises(DataError, match="there is no size"):
        area([], np.array([]))


def test_student_interval_by_hand():
    # 1 and 2: mean 3/2, s = sqrt(1/2), s / sqrt(2) = 1/2; t(0.975) with one degree of freedom is tan(0.475 pi) = 12.7062
    found = student_interval(np.array([1.0, 2.0]))
    half = math.tan(0.475 * math.pi) / 2
    assert found == pytest.approx((1.5, 1.5 - half, 1.5 + half, 2), rel=1e-9)
    one = student_interval(np.array([0.3]))
    assert one.value == 0.3
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_words():
    assert word(student_interval(np.array([1.0, 1.01])), "random") == "beats random"
    assert word(student_interval(np.array([-1.0, -1.01])), "outside") == "worse than outside"
    assert word(student_interval(np.array([1.0, -1.0])), "random") == "not told apart"
    assert word(student_interval(np.array([1.0])), "random") == "not told apart"
    assert word(student_interval(np.array([math.nan])), "random") == "not measured"


def test_pairs_go_seed_by_seed_and_what_draws_nothing_serves_all_seeds():
    values = {(0.1, "inside", None): 1.0, (0.1, "outside", None): 3.0, (0.1, "random", 0): 0.4, (0.1, "random", 5): 0.8}
    areas = Verdict(frame(values), (0, 5)).areas().set_index("against")
    # differences 0.6 and 0.2: mean 0.4, s = sqrt(0.08), s / sqrt(2) = 0.2
    half = 0.2 * math.tan(0.475 * math.pi)
    assert areas.loc["random", ["area", "low", "high"]].tolist() == pytest.approx([0.4, 0.4 - half, 0.4 + half], rel=1e-9)
    # no seed changes anything here: one value, and so no interval, rather than one without a width
    assert areas.loc["outside", "area"] == -2.0
    assert areas.loc["outside", ["low", "high"]].isna().all()
    assert areas.loc["outside", ["seeds", "verdict"]].tolist() == [1, "not told apart"]
    assert areas.loc["outside", "note"] == "nothing is drawn at random here, so no interval"


def test_one_unspent_budget_takes_its_size_out_for_all_seeds():
    values = {
        (s, side, seed): 1.0 + (side == "inside") * s
        for s in (0.1, 0.2)
        for side in ("inside", "random", "outside")
        for seed in (0, 1)
    }
    values[0.1, "random", 1] = None
    areas = Verdict(frame(values), (0, 1)).areas().set_index("against")
    assert areas.loc["random", "sizes"] == "0.2"
    assert areas.loc["random", "area"] == pytest.approx(0.2)
    assert areas.loc["random", "note"] == "size 0.1 left out, the budget was not spent in a random set"
    assert areas.loc["outside", "sizes"] == "0.1, 0.2"
    assert areas.loc["outside", "area"] == pytest.approx(0.15)


def test_one_seed_has_a_number_and_no_interval():
    found = Verdict(frame({(0.1, side, 4): v for side, v in (("inside", 2.0), ("random", 0.5), ("outside", 0.0))}), (4,)).areas()
    assert found["area"].tolist() == [1.5, 2.0]
    assert found[["low", "high"]].isna().all(axis=None)
    assert (found["note"] == "one seed, so no interval").all()


def test_a_verdict_in_a_notebook(unlearned):
    html = unlearned._repr_html_()
    assert html.count("<svg") == 2 + 3, "a panel a set, and three dots in the legend"
    assert "beats random" in html
    assert "<script" not in html
    ax = unlearned.plot(name="chance")
    assert [line.get_label() for line in ax.lines[::2]] == ["inside", "random", "outside"]
    assert "beats random" in repr(unlearned)


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
    other = word_scores(learned_elsewhere())
    with pytest.raises(MismatchError, match="made for model"):
        judge(model, [Ranked("sky", other)], *rows(), **ROWS)


def learned_elsewhere():
    from tests.tiny import tiny

    return tiny(torch.float32, d_model=16, seed=9)


def test_questions_are_asked_set_by_set():
    asked = questions(["a"], Settings((0.2, 0.1), (3, 4), intervention="ablate"))
    assert [(q.size, q.side, q.seed) for q in asked] == [
        (size, side, seed)
        for size in (0.1, 0.2)
        for side, seed in (("inside", None), ("random", 3), ("random", 4), ("outside", None))
    ]
    assert len(questions(["a", "b"], Settings((0.2,), (3, 4)))) == 2 * 3 * 2
