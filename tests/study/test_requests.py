"""Requests one after another and of growing size: every number again from its definition, step by step, on a tiny model."""

from contextlib import ExitStack

import numpy as np
import pandas as pd
import pytest
import torch

from tests.tiny import tiny
from workbench.core.delta import Delta, applied
from workbench.core.errors import DataError, InputError, NumericsError
from workbench.core.records import Example, Examples, Provenance
from workbench.core.statistics import LEAST
from workbench.load.batches import encode
from workbench.study import requests
from workbench.study.judge import split_retain
from workbench.study.methods import Method, Spent, Training, at_budget
from workbench.study.requests import COLUMNS, growing, in_sequence
from workbench.train import AnswerTask

NPO = Method("npo", "unlearn", "npo", {"objective": "npo"})
DAMPEN = Method("dampen", "edit", "dampen", {"alpha": 1.2})
TRAINING = Training(budget=0.02, max_steps=6, batch_size=2)
CUT = {"budget_rows": 3, "report_rows": 3}
SUBJECTS = ["the sky", "a sea", "grass", "the color of grass", "the green sea", "a very blue sky", "the color of a sea", "no grass"]


def rows(prefix, answer, subjects):
    return Examples([Example(f"{prefix}{i}", f"what is {s}", answer) for i, s in enumerate(subjects)], prefix)


FOLDS = [rows("one", "very blue", SUBJECTS[:2]), rows("two", "green and blue", SUBJECTS[2:5]), rows("three", "no", SUBJECTS[5:7])]
RETAIN = rows("kept", "is a color", SUBJECTS)


def nll_of(model, examples):
    """Mean NLL of every row, one row at a time, from the logits."""
    values = []
    for row in examples:
        coded = encode(model, row.prompt, row.response)
        with torch.no_grad():
            out = model.hf(torch.tensor([coded.tokens])).logits[0].double().log_softmax(-1)
        picked = [float(out[p - 1, coded.tokens[p]]) for p in range(coded.start, len(coded.tokens))]
        values.append(-sum(picked) / len(picked))
    return np.array(values)


def assert_state(line, model, request, earlier, parts, before):
    """A line of the frame says what the model says now."""
    assert line["nll"] == pytest.approx(nll_of(model, request).mean(), rel=1e-5)  # float32 logits, padded rows
    assert line["before"] == pytest.approx(before["request"], rel=1e-5)
    assert line["retain_nll"] == pytest.approx(nll_of(model, parts.report).mean(), rel=1e-5)
    assert line["retain_before"] == pytest.approx(before["report"], rel=1e-5)
    assert line["spent"] == pytest.approx(nll_of(model, parts.budget).mean() - before["budget"], abs=1e-5)
    if earlier:
        past = np.concatenate([nll_of(model, one) for one in earlier])
        assert line["earlier_nll"] == pytest.approx(past.mean(), rel=1e-5)
        if len(past) >= LEAST:
            assert (
                past.min() - 1e-5 <= line["earlier_nll_low"] <= line["earlier_nll"] <= line["earlier_nll_high"] <= past.max() + 1e-5
            )
        else:
            assert np.isnan([line["earlier_nll_low"], line["earlier_nll_high"]]).all()
    else:
        assert np.isnan(line["earlier_nll"])
        assert np.isnan(line["earlier_nll_low"])
    for name, rows in (("nll", request), ("retain_nll", parts.report)):
        if len(rows) >= LEAST:
            assert line[f"{name}_low"] <= line[name] <= line[f"{name}_high"]
        else:
            assert np.isnan([line[f"{name}_low"], line[f"{name}_high"]]).all()


@pytest.mark.parametrize("method", [NPO, DAMPEN], ids=["npo", "dampen"])
def test_a_sequence_is_what_its_steps_make_one_after_the_other(method):
    model = tiny(torch.float32)
    fingerprint = model.fingerprint()
    seeds = (0, 1) if method is NPO else (0,)
    frame = in_sequence(model, FOLDS, RETAIN, method, TRAINING, seeds=seeds, lr=5e-3, **CUT)
    assert model.fingerprint() == fingerprint
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame["request"]) == [1, 2, 3] * len(seeds)
    assert list(frame["set"]) == ["one", "two", "three"] * len(seeds)
    assert list(frame["rows"]) == [2, 3, 2] * len(seeds)
    assert (frame["note"] == "").all()
    parts = split_retain(FOLDS[0], RETAIN, **CUT)
    before = {"report": nll_of(model, parts.report).mean(), "budget": nll_of(model, parts.budget).mean()}
    first = [nll_of(model, fold).mean() for fold in FOLDS]
    lines = iter(frame.to_dict("records"))
    for seed in seeds:
        with ExitStack() as done:
            for k, fold in enumerate(FOLDS):
                spent = at_budget(model, fold, parts.train, parts.budget, method, TRAINING, lr=5e-3, seed=seed)
                done.enter_context(applied(model, spent.delta))
                line = next(lines)
                assert (line["seed"], line["used"], line["moved"]) == (seed, spent.used, spent.moved)
                assert line["reached"] == spent.reached
                assert_state(line, model, fold, FOLDS[:k], parts, before | {"request": first[k]})
    used = frame[frame["seed"] == 0]["used"]
    assert list(frame[frame["seed"] == 0]["spent"]) == pytest.approx(list(used.cumsum()), abs=1e-5)  # each from where it began
    if method is NPO:
        assert (frame["steps"] > 0).all()
        assert frame["part"].isna().all()
        assert (frame["nll"] > frame["before"]).all()
    else:
        assert frame["steps"].isna().all()
        assert (frame["part"] > 0).all()


def test_growing_sets_each_start_from_the_untouched_model():
    model = tiny(torch.float32)
    fingerprint = model.fingerprint()
    forget = rows("all", "very blue", SUBJECTS)
    sets = [forget[:2], forget[:5], forget]
    frame = growing(model, sets, RETAIN, NPO, TRAINING, lr=5e-3, **CUT)
    assert model.fingerprint() == fingerprint
    parts = split_retain(forget, RETAIN, **CUT)
    before = {"report": nll_of(model, parts.report).mean(), "budget": nll_of(model, parts.budget).mean()}
    for line, one in zip(frame.to_dict("records"), sets, strict=True):
        untouched = before | {"request": nll_of(model, one).mean()}
        spent = at_budget(model, one, parts.train, parts.budget, NPO, TRAINING, lr=5e-3)
        assert (line["rows"], line["used"]) == (len(one), spent.used)
        with applied(model, spent.delta):
            assert_state(line, model, one, [], parts, untouched)
    assert list(frame["spent"]) == pytest.approx(list(frame["used"]), abs=1e-5)
    assert (frame["used"] <= TRAINING.budget + 1e-5).all()


def test_a_method_that_does_nothing_can_do_it_twice(monkeypatch):
    # two empty Deltas are equal, and one Delta cannot be applied twice
    model = tiny(torch.float32)
    nothing = Spent(Delta({}, Provenance("nothing", model.fingerprint())), 0.0, False, 0.0, part=1.0)
    monkeypatch.setattr(requests, "at_budget", lambda *args, **options: nothing)
    for frame in (in_sequence(model, FOLDS, RETAIN, NPO, TRAINING, **CUT), growing(model, FOLDS[:2], RETAIN, NPO, TRAINING, **CUT)):
        assert list(frame["nll"]) == list(frame["before"])
        assert list(frame["spent"]) == [0.0] * len(frame)
        assert list(frame["retain_nll"]) == list(frame["retain_before"])


def test_the_model_is_left_as_it_was_after_an_error(monkeypatch):
    model = tiny(torch.float32)
    before, calls = {n: p.clone() for n, p in model.hf.named_parameters()}, iter(range(9))

    def breaks(*args, **options):
        if next(calls) == 2:
            raise ZeroDivisionError
        return at_budget(*args, **options)

    monkeypatch.setattr(requests, "at_budget", breaks)
    with pytest.raises(ZeroDivisionError):
        in_sequence(model, FOLDS, RETAIN, NPO, TRAINING, lr=5e-3, **CUT)
    assert not model.ledger
    assert all(torch.equal(p, before[n]) for n, p in model.hf.named_parameters())


def test_requests_that_cannot_be():
    model = tiny(torch.float32)
    with pytest.raises(InputError, match="0 sets of rows and the seeds"):
        in_sequence(model, [], RETAIN, NPO, TRAINING, **CUT)
    with pytest.raises(InputError, match=r"the seeds \[0, 0\]"):
        growing(model, FOLDS[:1], RETAIN, NPO, TRAINING, seeds=(0, 0), **CUT)
    again = Examples([*FOLDS[1], Example("again", FOLDS[0][0].prompt, FOLDS[0][0].response)], "two")
    with pytest.raises(DataError, match="the row 'again' of two is the same as 'one0' of one, asked for before; take one"):
        in_sequence(model, [FOLDS[0], again], RETAIN, NPO, TRAINING, **CUT)
    twice = Examples([*FOLDS[0], Example("again", FOLDS[0][0].prompt, FOLDS[0][0].response)], "one")
    with pytest.raises(DataError, match="the row 'again' of one is the same as 'one0' of one"):
        in_sequence(model, [twice], RETAIN, NPO, TRAINING, **CUT)
    for run in (in_sequence, growing):
        with pytest.raises(InputError, match="dampen is an edit, which draws nothing: 2 seeds are one result"):
            run(model, FOLDS[:1], RETAIN, DAMPEN, TRAINING, seeds=(0, 1), **CUT)
        with pytest.raises(DataError, match="no group for 1 rows of one, such as 'one1'"):
            run(model, FOLDS[:1], RETAIN, NPO, TRAINING, groups={"one0": "x"}, **CUT)
    with pytest.raises(InputError, match=r"the sets have \[3, 2\] rows"):
        growing(model, FOLDS[1:], RETAIN, NPO, TRAINING, **CUT)
    mixed = Examples([*RETAIN, *FOLDS[2]], "mixed")
    with pytest.raises(DataError, match=r"forget \(three\) and retain \(mixed\) share 2 rows"):
        in_sequence(model, FOLDS, mixed, NPO, TRAINING, **CUT)
    assert isinstance(growing(model, FOLDS[:1], RETAIN, NPO, TRAINING, **CUT), pd.DataFrame)


def test_groups_are_drawn_whole():
    """Eight rows of four authors, two each that say much the same: fewer than LEAST groups have no interval; copies add nothing."""
    model = tiny(torch.float32)
    forget, wide = rows("all", "very blue", SUBJECTS), {"budget_rows": 2, "report_rows": 5}
    nothing = Training(budget=50.0, max_steps=1, batch_size=8)
    ids = [*forget.ids, *RETAIN.ids]
    own = growing(model, [forget], RETAIN, NPO, nothing, lr=1e-9, groups={i: i for i in ids}, **wide).iloc[0]
    plain = growing(model, [forget], RETAIN, NPO, nothing, lr=1e-9, **wide).iloc[0]
    few = growing(
        model, [forget], RETAIN, NPO, nothing, lr=1e-9, groups={i: i[:-1] + str(int(i[-1]) // 2) for i in ids}, **wide
    ).iloc[0]
    for name in ("nll", "nll_low", "nll_high", "retain_nll"):
        assert own[name] == plain[name]
    assert few["nll"] == plain["nll"]
    assert np.isnan([few["nll_low"], few["nll_high"]]).all()
    # seven groups, of which one has two rows: sums and counts of groups drawn with replacement
    seven = {i: i for i in ids} | {"all1": "all0"}
    found = growing(model, [forget], RETAIN, NPO, nothing, lr=1e-9, groups=seven, **wide).iloc[0]
    each = nll_of(model, forget)
    total, count = np.array([each[0] + each[1], *each[2:]]), np.array([2, 1, 1, 1, 1, 1, 1])
    drawn = np.random.default_rng(0).integers(0, 7, size=(2000, 7))
    expected = np.quantile(total[drawn].sum(1) / count[drawn].sum(1), [0.025, 0.975])
    assert [found["nll_low"], found["nll_high"]] == pytest.approx(expected, rel=1e-5)  # float32 logits, padded rows


def test_a_request_that_is_not_finite_is_a_line_with_the_reason(monkeypatch):
    model = tiny(torch.float32)

    def breaks(model, fold, *args, **options):
        if fold.name == "two":
            raise NumericsError("train: the loss at step 0 is NaN")
        return at_budget(model, fold, *args, **options)

    whole = in_sequence(model, [FOLDS[0], FOLDS[2]], RETAIN, NPO, TRAINING, lr=5e-3, **CUT)
    monkeypatch.setattr(requests, "at_budget", breaks)
    frame = in_sequence(model, FOLDS, RETAIN, NPO, TRAINING, lr=5e-3, **CUT)
    assert list(frame["note"]) == ["", "train: the loss at step 0 is NaN", ""]
    assert list(frame["rows"]) == [2, 3, 2]
    assert frame.loc[1, [*COLUMNS[5:-1]]].isna().all()
    for name in ("nll", "used", "spent", "retain_nll"):
        assert list(frame[name][[0, 2]]) == list(whole[name])  # the third goes on from where the second began
    grown = growing(model, [FOLDS[0], FOLDS[1]], RETAIN, NPO, TRAINING, lr=5e-3, **CUT)
    assert list(grown["nll"].isna()) == [False, True]
    assert not model.ledger


def test_a_sequence_whose_steps_break_the_model_ends_within_the_budget():
    model = tiny(torch.float32)
    ascent = Method("ascent", "unlearn", "gradient_ascent", {"clip_norm": None})
    frame = in_sequence(model, FOLDS, RETAIN, ascent, TRAINING, lr=1e30, **CUT)
    assert frame["reached"].all()
    assert (frame["used"] <= TRAINING.budget).all()
    assert list(frame["nll"]) == pytest.approx(list(frame["before"]), rel=1e-5)  # nothing of such a step is within the budget
