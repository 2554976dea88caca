"""Areas, intervals, bounds and words of a verdict, by hand."""

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


def frame(values):
    """Points by (size, side, seed): forget change, or None where the budget was not spent."""
    return pd.DataFrame(
        [
            {"set": "s", "size": size, "side": side, "seed": seed, "reached": v is not None, "forget_change": v or 0.0}
            for (size, side, seed), v in values.items()
        ]
    ).astype({"seed": "Int64"})


def verdict_of(values, seeds):
    """A verdict on points by hand."""
    return Verdict(frame(values), Settings((0.1,), seeds), Provenance("judge", "model"))


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
    assert word(student_interval(np.array([1.0])), "random") == "no interval"
    assert word(student_interval(np.array([math.nan])), "random") == "not measured"


def test_pairs_go_seed_by_seed_and_what_draws_nothing_serves_all_seeds():
    values = {(0.1, "inside", None): 1.0, (0.1, "outside", None): 3.0, (0.1, "random", 0): 0.4, (0.1, "random", 5): 0.8}
    areas = verdict_of(values, (0, 5)).areas().set_index("against")
    # differences 0.6 and 0.2: mean 0.4, s = sqrt(0.08), s / sqrt(2) = 0.2
    half = 0.2 * math.tan(0.475 * math.pi)
    assert areas.loc["random", ["area", "low", "high"]].tolist() == pytest.approx([0.4, 0.4 - half, 0.4 + half], rel=1e-9)
    # no seed changes anything here: one value, and so no interval, rather than one without a width
    assert areas.loc["outside", "area"] == -2.0
    assert areas.loc["outside", ["low", "high"]].isna().all()
    assert areas.loc["outside", ["seeds", "verdict"]].tolist() == [1, "no interval"]
    assert areas.loc["outside", "note"] == "nothing is drawn at random here, so no interval"


def test_one_unspent_budget_takes_its_size_out_for_all_seeds():
    values = {
        (s, side, seed): 1.0 + (side == "inside") * s
        for s in (0.1, 0.2)
        for side in ("inside", "random", "outside")
        for seed in (0, 1)
    }
    values[0.1, "random", 1] = None
    areas = verdict_of(values, (0, 1)).areas().set_index("against")
    assert areas.loc["random", "sizes"] == "0.2"
    assert areas.loc["random", "area"] == pytest.approx(0.2)
    assert areas.loc["random", "note"] == "size 0.1 left out, the budget was not spent in a random set"
    assert areas.loc["outside", "sizes"] == "0.1, 0.2"
    assert areas.loc["outside", "area"] == pytest.approx(0.15)


def test_one_seed_has_a_number_and_no_interval():
    found = verdict_of({(0.1, side, 4): v for side, v in (("inside", 2.0), ("random", 0.5), ("outside", 0.0))}, (4,)).areas()
    assert found["area"].tolist() == [1.5, 2.0]
    assert found[["low", "high"]].isna().all(axis=None)
    assert (found["note"] == "one seed, so no interval").all()


def bounded(values, unspent, seeds=(0, 1)):
    """The comparison with random; unspent: the points whose budget was not spent, whose values count all the same."""
    made = frame({(size, side, seed): v for (size, side), v in values.items() for seed, v in zip(seeds, v, strict=True)})
    made["reached"] = [(row["size"], row["side"], row["seed"]) not in unspent for row in made.to_dict("records")]
    return Verdict(made, Settings((0.1,), seeds), Provenance("judge", "model")).areas().set_index("against").loc["random"]


BOTH = {(0.1, "inside"): (1.348, 1.352), (0.1, "outside"): (0.0, 0.0), (0.1, "random"): (0.019, 0.021)}


HALF = math.tan(0.475 * math.pi) * 0.001  # t(0.975, 1) s / sqrt(2), s = 0.002 / sqrt(2): differences 1.329 and 1.331


def test_a_side_that_spent_less_and_forgot_more_is_a_lower_bound():
    found = bounded(BOTH, {(0.1, "inside", 0), (0.1, "inside", 1)})
    assert found["area"] == pytest.approx(1.33, rel=1e-12)
    assert found["low"] == pytest.approx(1.33 - HALF, rel=1e-9)
    assert (found["high"], found["bound"], found["verdict"], found["sizes"]) == (math.inf, "at least", "beats random", "0.1")
    assert "size 0.1 counts as at least what was found: the budget was not spent inside the set, where more" in found["note"]
    # one seed of it is enough to open the interval
    assert bounded(BOTH, {(0.1, "inside", 1)})["high"] == math.inf


def test_a_random_set_that_spent_less_and_forgot_more_is_an_upper_bound():
    turned = {(0.1, "inside"): (0.019, 0.021), (0.1, "outside"): (0.0, 0.0), (0.1, "random"): (1.348, 1.352)}
    found = bounded(turned, {(0.1, "random", 0), (0.1, "random", 1)})
    assert found["high"] == pytest.approx(-1.33 + HALF, rel=1e-9)
    assert (found["low"], found["bound"], found["verdict"]) == (-math.inf, "at most", "worse than random")
    assert "not spent in a random set, where more was forgotten" in found["note"]


def test_what_could_have_gone_either_way_is_left_out():
    for unspent in (
        {(0.1, "random", 0)},  # it spent less and forgot less
        {(0.1, "random", 0), (0.1, "inside", 0)},  # neither budget was spent
    ):
        found = bounded(BOTH, unspent)
        assert (found["sizes"], found["verdict"], found["bound"]) == ("", "not measured", "")
        assert "left out, the budget was not spent" in found["note"]
    # seed 0 is at least +1, seed 1 at most -1
    crossed = {(0.1, "inside"): (1.0, 0.0), (0.1, "outside"): (0.0, 0.0), (0.1, "random"): (0.0, 1.0)}
    found = bounded(crossed, {(0.1, "inside", 0), (0.1, "random", 1)})
    assert found["sizes"] == ""
    assert "the seeds bound the advantage in both directions" in found["note"]


def test_few_steps_are_said():
    made = frame({(0.1, side, seed): 1.0 for side in ("inside", "random", "outside") for seed in (0, 1)})
    made["steps"] = [6.0, 7.0, 4.5, 8.0, 9.0, 9.0]
    areas = Verdict(made, Settings((0.1,), (0, 1)), Provenance("judge", "model")).areas().set_index("against")
    assert areas.loc["random", ["steps", "steps_against"]].tolist() == [6.5, 6.25]
    assert areas.loc["random", "note"] == "fewer than 5 steps in a random set"
    assert areas.loc["outside", "note"] == ""


def test_sizes_bounded_in_both_directions_give_a_number_without_a_verdict():
    more = {(0.2, "inside"): (0.0, 0.0), (0.2, "outside"): (0.0, 0.0), (0.2, "random"): (0.1, 0.1)}
    found = bounded(BOTH | more, {(0.1, "inside", 0), (0.2, "random", 0)})
    assert (found["low"], found["high"], found["bound"]) == (-math.inf, math.inf, "neither")
    assert found["verdict"] == "not told apart"
    # a lower bound never says that the set is worse: -3 at one size, at least +1.33 at the other
    low = {(0.2, "inside"): (0.0, 0.0), (0.2, "outside"): (0.0, 0.0), (0.2, "random"): (9.0, 9.0)}
    assert bounded(BOTH | low, {(0.1, "inside", 0)})["verdict"] == "not told apart"
