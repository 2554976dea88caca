"""One point: redone by hand, in half precision, and where the budget was not spent."""

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
SIZE = 0.02


@pytest.fixture(scope="module")
def model():
    return learned()


def test_the_limit_that_was_crossed_counts_in_half_precision():
    fine = learned()
    coarse = wb.wrap(fine.hf.to(torch.bfloat16), fine.tokenizer, name="coarse")
    parts = split_retain(*rows(), **ROWS)
    on = bench(coarse, rows()[0], parts, Settings((0.2,), (0,), intervention="ablate", budget=0.02))
    # the 16 weights of one word's embedding: few enough that no scaling in bfloat16 comes within 2 % of the budget
    found = measure(on, Ranked("grass", word_scores(coarse, "grass")), Question("grass", 16 / 5584, "inside", None))
    assert found.reached
    assert 0 < found.budget_used < 0.98 * 0.02
    assert found.removed < 1
    assert "of the budget of 0.02 nats per token: it could not come closer in bfloat16" in found.note


def test_an_unspent_budget_names_the_steps_that_were_taken(model):
    # four rows, three a step: two steps an epoch, so three steps are rounded up to four
    sets = [Ranked("sky", word_scores(model, "sky"))]
    found = judge(model, sets, *rows(), sizes=(SIZE,), seeds=(0,), **UNLEARN | {"lr": 1e-6, "max_steps": 3, "batch_size": 3})
    assert found.points["steps"].tolist() == [4.0] * 3
    assert found.points["note"].str.startswith("4 steps cost").all()


@pytest.mark.parametrize("side", ["inside", "random", "outside"])
def test_a_point_done_by_hand(model, side):
    """The same unlearning by `unlearn.run`, and every row's NLL by a plain loop over tokens in float64."""
    forget, retain = rows()
    parts = split_retain(forget, retain, **ROWS)
    chosen = {"objective": "npo", "options": {"beta": 0.7}, "batch_size": 3}
    on = bench(model, forget, parts, Settings((0.05,), (3,), budget=0.04, lr=4e-3, max_steps=9, **chosen))
    located = Ranked("sky", word_scores(model, "sky"))
    point = measure(on, located, Question("sky", 0.05, side, 3))

    inside = located.inside(0.05)
    mask = {"inside": inside, "random": inside.matched_random(seed=3), "outside": ~inside}[side]
    share = mask.count / sum(p.numel() for p in model.hf.parameters())
    stop = {"retain_budget": 0.04, "budget_rows": parts.budget, "budget_every": 1}
    # four rows, three a step: nine steps are five epochs of two
    rate = {"lr": 4e-3 / math.sqrt(share), "schedule": "constant", "epochs": 5, "seed": 3}
    found = unlearn.run(model, forget, parts.train, mask=mask, **chosen, **rate, **stop)
    before = {name: nlls(model, part) for name, part in (("forget", forget), ("retain", parts.report), ("budget", parts.budget))}
    with applied(model, found.delta):
        after = {name: nlls(model, part) for name, part in (("forget", forget), ("retain", parts.report), ("budget", parts.budget))}
    for name in ("forget", "retain"):
        # abs: float32 forward passes, padded in the judge and alone here; sums of at most five tokens of about one nat
        assert getattr(point, f"{name}_change") == pytest.approx(np.mean(after[name] - before[name]), abs=2e-6)
        likelier = np.mean(np.exp(-after[name]) - np.exp(-before[name]))
        assert getattr(point, f"{name}_probability_change") == pytest.approx(likelier, abs=2e-6)
    assert point.forget_change > 0 > point.forget_probability_change, "what was unlearned is less likely"
    assert point.budget_used == pytest.approx(np.mean(after["budget"]) - np.mean(before["budget"]), abs=2e-6)
    assert point.steps == found.audit.steps - 1 + found.audit.part
    assert (point.weights, point.n_forget, point.n_retain) == (mask.count, 4, 5)
    assert point.lr == pytest.approx(rate["lr"], rel=1e-12)
    assert point.reached == bool(found.audit.stopped)
    plain = unlearn.run(model, forget, parts.train, mask=mask, **chosen | {"options": {}}, **rate, **stop)
    with applied(model, plain.delta):
        assert np.mean(nlls(model, forget) - before["forget"]) != pytest.approx(point.forget_change, abs=1e-4), "beta was passed"


def nlls(model, examples):
    """Mean NLL per answer token of each row, one row at a time."""
    each = (answer_statistics(model.hf, row.tokens, row.start) for row in encode_all(model, examples))
    return np.array([-np.mean([token["logprob"] for token in row]) for row in each])


def test_weights_that_cost_nothing_are_taken_away_altogether(model):
    sets = [Ranked("unused", word_scores(model, "no"))]
    on = bench(model, rows()[0], split_retain(*rows(), **ROWS), Settings((0.1,), (0,), intervention="ablate"))
    point = measure(on, sets[0], Question("unused", 16 / 5584, "inside", None))
    assert (point.removed, point.reached, point.budget_used) == (1.0, False, 0.0)
    assert point.note == "taking the weights away altogether cost 0.0000 of the budget of 0.05 nats per token"


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
