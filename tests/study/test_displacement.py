"""The study of displacement: its statistics, its arms, its points, and a run that goes on where it stopped."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

import workbench as wb
from tests.reference import preference as truth
from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError, ShapeError, StudyError, UnknownNameError
from workbench.core.records import Example, Examples, PreferencePair, PreferencePairs
from workbench.core.statistics import wilson
from workbench.load.batches import encode_pairs
from workbench.report import page
from workbench.report.sheet import Sheet
from workbench.study import displacement as study
from workbench.study.displacement import read, run
from workbench.study.displacement_grid import (
    ALL,
    DROPS,
    RANDOM,
    SCORES,
    PairSet,
    Point,
    Question,
    Training,
    arms,
    kept_pairs,
    measure,
    prepare,
    questions,
)
from workbench.study.displacement_numbers import Draws, Resampled, draws, means, rank_correlations, share_estimate
from workbench.study.displacement_pairs import _components, perturbed_pairs, split
from workbench.study.displacement_reading import reading
from workbench.study.displacement_result import MAIN, Result
from workbench.unlearn.prefer import pair_logprobs, prefer

SEEDS = (0, 1)
SHIPPED = (("instructions", 160, 60, True), ("slm4096", 100, 40, True), ("persona", 80, 40, False))  # as in the study


def numbers(n=12):
    """A score with ties and the outcome of two runs on n pairs."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 4, n).astype(float), rng.normal(size=(2, n))


def test_rank_correlations_equal_the_loop():
    score, outcome = numbers()
    n = len(score)
    times = np.vstack([np.ones(n), np.random.default_rng(1).integers(0, 3, (6, n))]).astype(float)
    seeds = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [2.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    found = rank_correlations({"score": score, "same": np.ones(n)}, outcome, Draws(times, seeds))
    for weights, drawn, value in zip(times, seeds, found["score"].values, strict=True):
        index = np.repeat(np.arange(n), weights.astype(int))
        each = [truth.spearman(score[index].tolist(), run[index].tolist()) for run in outcome]
        assert value == pytest.approx(np.average(each, weights=drawn), rel=1e-12)
    assert np.isnan(found["same"].values).all()
    assert math.isnan(found["same"].estimate().value)


def test_rank_correlations_by_hand():
    # ranks 1, 2, 3 against 1, 3, 2: 1 - 6 * 2 / (3 * 8) = 1/2; against 1, 2, 3: 1; their mean 3/4
    drawn = draws(["a", "b", "c"], 2)
    outcome = np.array([[0.0, 9.0, 5.0], [-1.0, 0.0, 7.0]])
    found = rank_correlations({"up": np.array([1.0, 2.0, 3.0]), "down": np.array([3.0, 2.0, 1.0])}, outcome, drawn)
    assert found["up"].estimate().value == pytest.approx(0.75)
    assert found["up"].minus(found["down"]).estimate().value == pytest.approx(1.5)
    with pytest.raises(ShapeError, match="expected one row for each of 2 seeds and one column for each of 3 pairs"):
        rank_correlations({}, outcome[:1], drawn)


def test_pairs_of_one_prompt_are_drawn_together():
    drawn = draws(["a", "b", "a", "c", "b"], 3)
    assert drawn.pairs[0].tolist() == [1] * 5
    assert drawn.seeds[0].tolist() == [1] * 3
    np.testing.assert_array_equal(drawn.pairs[:, 0], drawn.pairs[:, 2])
    np.testing.assert_array_equal(drawn.pairs[:, 1], drawn.pairs[:, 4])
    assert set((drawn.pairs[1:, 0] + drawn.pairs[1:, 1] + drawn.pairs[1:, 3]).tolist()) == {3}  # as many prompts as there are
    assert set(drawn.seeds[1:].sum(1).tolist()) == {3}
    with pytest.raises(DataError, match="there are 0 pairs and 1 seeds"):
        draws([], 1)


def test_means_by_hand():
    drawn = Draws(np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 2.0], [1.0, 1.0]]))
    outcome = np.array([[2.0, math.nan, 4.0], [6.0, 1.0, 2.0]])
    # seed means 3 and 3; the second run alone, its first pair: 6; the first run knows nothing of the pair that is drawn
    np.testing.assert_array_equal(means(outcome, drawn).values, [3.0, 6.0, math.nan])
    assert means(outcome, drawn).n == 3


def test_a_share_of_all_pairs_has_an_interval_of_some_width():
    drawn = draws([f"question {i % 10}" for i in range(20)], 2)
    outcome = np.ones((2, 20))
    # 10 prompts, all of them: n / (n + z^2) = 10 / 13.8415
    assert share_estimate(means(outcome, drawn), 10)[:3] == pytest.approx((1.0, 0.722467, 1.0), abs=1e-6)
    assert share_estimate(means(1 - outcome, drawn), 10)[:3] == pytest.approx((0.0, 0.0, 0.277533), abs=1e-6)
    outcome[:, 3] = 0
    mixed = means(outcome, drawn)
    assert share_estimate(mixed, 10) == mixed.estimate()
    assert all(math.isnan(v) for v in share_estimate(Resampled(np.full(3, np.nan), 20), 10)[:3])


def test_the_interval_covers_what_it_should():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(60):
        sample = rng.normal(size=(1, 40)) + 1
        found = means(sample, draws([str(i) for i in range(40)], 1, seed=trial)).estimate()
        inside += found.low <= 1 <= found.high
    assert inside >= 50  # 57 expected of 60; 49 or fewer have a chance below 1e-4


def texts(*sets):
    """All texts of some kinds in pairs."""
    return {text for pair in sets[0] for text in (getattr(pair, name) for name in sets[1:])}


def test_splits_share_no_prompt_and_no_answer():
    # six blocks of three questions, each against the answers to the other two
    rows = [
        PreferencePair(f"{block}-{q}-{k}", f"question {block} {q}", f"answer {block} {q}", f"answer {block} {(q + k) % 3}")
        for block in range(6)
        for q in range(3)
        for k in (1, 2)
    ]
    pairs = PreferencePairs(random.Random(0).sample(rows, len(rows)), "pairs")
    train, held, apart = split(pairs, 20, 8)
    assert apart
    assert (len(train), len(held)) == (20, 8)
    assert len({pair.id[0] for pair in held}) == 2  # 6 of one block, 2 of another; the 4 that are left are in neither
    assert not texts(train, "prompt") & texts(held, "prompt")
    assert not texts(train, "chosen", "rejected") & texts(held, "chosen", "rejected")
    assert len(split(pairs, 24, 8).train) == 24
    with pytest.raises(DataError, match="in 6 groups that share no prompt or answer do not give 25 to train on and 8"):
        split(pairs, 25, 8)


def test_answers_that_link_all_pairs_leave_the_prompts():
    rows = [PreferencePair(f"{q}-{k}", f"question {q}", "yes", f"no {k}") for q in range(10) for k in range(3)]
    train, held, apart = split(PreferencePairs(rows, "pairs"), 15, 7)
    assert not apart
    assert (len(train), len(held)) == (15, 7)
    assert not texts(train, "prompt") & texts(held, "prompt")
    with pytest.raises(DataError, match="in 10 groups that share no prompt do not give 28 to train on and 3"):
        split(PreferencePairs(rows, "pairs"), 28, 3)


def test_what_joins_two_groups_joins_all_their_members():
    rows = [{("answer", text) for text in row} for row in ("ab", "cd", "xy", "bc", "de")]
    assert _components(rows) == [0, 0, 2, 0, 0]  # bc joins ab and cd, so de, which shares d alone, is of the same group


def test_groups_are_joined_by_chains():
    # a text that is a prompt in one pair and an answer in another links nothing; the last pair joins the first two groups
    rows = [("p", "a", "b"), ("q", "c", "d"), ("a", "e", "f"), ("r", "b", "c")]
    pairs = PreferencePairs([PreferencePair(str(i), *row) for i, row in enumerate(rows)], "chain")
    train, held, apart = split(pairs, 1, 3)
    assert apart
    assert {train.ids[0], *held.ids} == {"0", "1", "2", "3"}
    assert train.ids == ["2"]


@pytest.mark.parametrize(("name", "rows", "held_out", "apart"), SHIPPED)
def test_no_held_out_answer_of_the_pairs_that_ship_is_trained_on(root, name, rows, held_out, apart):
    found = split(wb.pairs(root / f"data/preferences/{name}.jsonl"), rows, held_out)
    assert found.answers_apart == apart
    shared = texts(found.train, "chosen", "rejected") & texts(found.held_out, "chosen", "rejected")
    assert bool(shared) != apart


def test_perturbed_pairs():
    rows = Examples([Example("a", "q", "true", perturbed=("x", "y", "z")), Example("b", "q", "true", perturbed=("x",))], "rows")
    found = perturbed_pairs(rows, each=2, seed=1)
    assert found.ids == ["a-0", "a-1"]
    assert len({pair.rejected for pair in found} & {"x", "y", "z"}) == 2
    assert {pair.chosen for pair in found} == {"true"}
    assert [pair.rejected for pair in perturbed_pairs(rows)] == [pair.rejected for pair in perturbed_pairs(rows)]
    with pytest.raises(DataError, match="no row of rows has 4 false answers"):
        perturbed_pairs(rows, each=4)


@pytest.fixture(scope="module")
def on(root):
    """Twelve pairs of slm4096 to train on, four held out."""
    about = PairSet("slm", str(root / "data/models/slm4096"), "pairs", rows=12, held_out=4, lr=1e-3)
    pairs = wb.pairs(root / "data/preferences/slm4096.jsonl")[:40]
    return prepare(about, wb.load(about.model), pairs)


def test_what_is_known_before(on):
    coded = encode_pairs(on.model, on.train)
    np.testing.assert_allclose(on.before, pair_logprobs(on.model, coded).numpy(), rtol=1e-4, atol=1e-4)  # float32, other batches
    np.testing.assert_array_equal(on.scores["ln p(chosen) before"], on.before[:, 0])
    assert on.lengths.tolist() == [len(pair.chosen.tokens) - pair.chosen.start for pair in coded]
    assert set(on.scores) == set(SCORES)


def test_arms(on):
    asked = questions(on, ("dpo", "ipo"), SEEDS, "dpo", 0.25)
    assert [(q.objective, q.without) for q in asked[:4:2]] == [("dpo", ALL), ("ipo", ALL)]
    by_first = arms(on, 0.25)
    assert {q.without for q in asked} == {ALL, *by_first, RANDOM}
    assert sorted(name for names in by_first.values() for name in names) == sorted(DROPS)
    assert len(asked) == 2 * (2 + len(by_first) + 1)
    assert kept_pairs(on, asked[0], 0.25) == list(range(12))
    kept = kept_pairs(on, Question("dpo", 0, MAIN), 0.25)
    scores = on.scores[MAIN]
    left_out = [i for i in range(12) if i not in kept]
    assert len(kept) == 9
    assert max(scores[kept]) <= min(scores[left_out])
    chance = [kept_pairs(on, Question("dpo", seed, RANDOM), 0.25) for seed in (0, 0, 1)]
    assert chance[0] == chance[1] != chance[2]
    assert len(set(chance[0])) == 9


def test_an_arm_that_cannot_choose_is_not_run(on):
    bench = replace(on, scores={**on.scores, "CHES": np.ones(12)})
    assert "CHES" not in {q.without for q in questions(bench, ("dpo",), SEEDS, "dpo", 0.25)}


def test_scores_that_leave_out_the_same_pairs_are_run_once(on):
    bench = replace(
        on, scores={**on.scores, MAIN: np.arange(12.0), "CHES": 4 * np.arange(12.0), "length of both": -np.arange(12.0)}
    )
    asked = {q.without for q in questions(bench, ("dpo",), SEEDS, "dpo", 0.25)}
    assert "CHES" not in asked
    assert {MAIN, "length of both"} < asked
    assert arms(bench, 0.25)[MAIN] == [MAIN, "CHES"]
    every = list(range(12))
    points = [a_point(s, arm, every[:9], [-1.0] * 9, [0.0] * 4) for arm in (ALL, MAIN, RANDOM) for s in SEEDS]
    assert Result(bench, points, 0.25).arms == {MAIN: f"{MAIN} = CHES", RANDOM: RANDOM}


def test_a_point(on):
    training = Training(batch_size=4, drop=0.5)
    point = measure(on, Question("ipo", 1, "length of both"), training)
    pairs = on.train.take(point.trained)
    assert len(pairs) == 6
    found = prefer(on.model, pairs, objective="ipo", batch_size=4, lr=1e-3, seed=1)
    before = pair_logprobs(on.model, encode_pairs(on.model, pairs))
    with applied(on.model, found.delta):
        change = pair_logprobs(on.model, encode_pairs(on.model, pairs)) - before
    np.testing.assert_allclose(np.array([point.chosen, point.rejected]).T, change.numpy(), rtol=0, atol=1e-4)  # float32 ln p of 1e2
    assert len(point.held_chosen) == len(point.held_rejected) == 4
    assert on.model.fingerprint() == on.model.base_fingerprint()
    full = point.table("chosen", 12)
    assert np.flatnonzero(np.isfinite(full)).tolist() == point.trained


def a_point(seed, without, trained, chosen, held):
    rejected = [-3.0] * len(trained)
    return Point("slm", "dpo", seed, without, trained, chosen, rejected, held, [0.0] * len(held))


def test_results_by_hand(on):
    every = list(range(12))
    points = [a_point(s, ALL, every, [-float(i) for i in every], [1.0, 1.0, -1.0, -1.0 - 4 * s]) for s in SEEDS]
    points += [a_point(s, "CHES", every[4:], [1.0 + s] * 8, [2.0] * 4) for s in SEEDS]
    points += [a_point(s, RANDOM, every[:6], [-1.0] * 6, [0.5 + s] * 4) for s in SEEDS]
    result = Result(on, points, 0.5)
    moved = result.moved("dpo")
    assert moved.chosen.value == pytest.approx(-5.5)  # mean of 0 ... -11
    assert moved.displaced.value == pytest.approx(11 / 12)
    assert moved.margin.value == pytest.approx(3 / 12)  # ln p(rejected) fell by 3, ln p(chosen) by less in three pairs
    assert moved.accuracy_before.value == pytest.approx(np.mean(on.before[:, 0] > on.before[:, 1]))
    assert moved.accuracy.value == pytest.approx(np.mean(on.before[:, 0] - on.before[:, 1] - np.arange(12) + 3 > 0))
    assert moved.margin.low < 3 / 12 < moved.margin.high
    assert result.moved("dpo").held_displaced.n == 4
    prompts = len({pair.prompt for pair in on.held_out})
    sunk = [replace(point, held_chosen=[-1.0] * 4) for point in points]
    assert Result(on, sunk, 0.5).moved("dpo").held_displaced == wilson(1.0, prompts)
    assert moved.held_chosen.value == pytest.approx(-0.5)  # (0 - 1) / 2
    assert moved.held_displaced.value == pytest.approx(0.5)
    effect = result.effect("dpo", "CHES")
    assert effect.held_out.value == pytest.approx(2.0)
    assert effect.held_out_more.value == pytest.approx(1.0)  # against 0.5 and 1.5
    assert effect.kept.value == pytest.approx(1.5)  # 1 and 2 with the two seeds
    # kept by both: pairs 4 and 5, 1 + 1 and 2 + 1 more than by chance
    assert effect.both_more.value == pytest.approx(2.5)
    assert effect.both_more.n == 2
    assert result.effect("dpo", RANDOM).held_out_more[:3] == (0.0, 0.0, 0.0)  # paired with itself
    scores = {**on.scores, MAIN: np.arange(12.0), "CHES": -np.arange(12.0)}
    exact = Result(replace(on, scores=scores), points, 0.5)
    found = exact.correlations("dpo")
    assert found[MAIN].estimate()[:3] == pytest.approx((1.0, 1.0, 1.0))  # displacement is 0 ... 11: the score's own order
    assert found["CHES"].estimate().value == pytest.approx(-1.0)
    assert math.isnan(exact.given("dpo", "CHES").estimate().value)  # the control is the score: nothing is left
    # higher ln p(chosen) or CHES with less displacement: ln p is turned round, for it claims nothing; CHES is not
    assert exact.versus("dpo", "CHES").estimate().value == pytest.approx(2.0)
    turned = Result(replace(on, scores={**scores, "ln p(chosen) before": -np.arange(12.0)}), points, 0.5)
    assert turned.versus("dpo", "ln p(chosen) before").estimate().value == pytest.approx(0.0)
    # the score is the displacement, so nothing that is held constant takes anything from it
    assert exact.given("dpo", "ln p(chosen) before").estimate().value == pytest.approx(1.0)
    with pytest.raises(InputError, match="has 0 runs of ipo without 'nothing', expected one for each of 2 seeds"):
        result.moved("ipo")


def test_the_reading_is_right_either_way(on):
    every = list(range(12))
    points = [a_point(s, ALL, every, [-float(i) for i in every], [-1.0] * 4) for s in SEEDS]
    left_out = ((MAIN, 2.0), ("CHES", -2.0), ("length of both", 0.0), (RANDOM, 0.0))
    points += [a_point(s, arm, every[:6], [-1.0] * 6, [value] * 4) for arm, value in left_out for s in SEEDS]
    for turn, words in ((1.0, "went with more displacement on slm (1.00"), (-1.0, "with less on slm (-1.00")):
        other = np.roll(np.arange(12.0), 3)
        before = -np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 10])  # displacement turned round, but for the last two
        scores = {**on.scores, MAIN: turn * np.arange(12.0), "CHES": other, "ln p(chosen) before": before}
        said = reading([Result(replace(on, scores=scores), points, 0.5)], "dpo", "dpo", 0.5)
        assert f"Before DPO, a high length-normalized CHES {words}" in said
        assert "DPO displaced 92% (slm)" in said
        best = MAIN if turn > 0 else "ln p(chosen) before"
        assert f"the highest rank correlation had “{best}” on slm (" in said
        assert ("either sign" in said) == (turn < 0)
        assert "by chance, ln p of held-out preferred answers came out higher on slm (2.00 [2.00, 2.00])" in said
        assert "Of the other scores, it came out lower without the highest “CHES” on slm." in said
        assert said.count(". ") < 8
    same = Result(replace(on, scores={**on.scores, MAIN: np.ones(12)}), points, 0.5)
    assert "a high length-normalized CHES" not in reading([same], "dpo", "dpo", 0.5)
    calm = [replace(point, held_chosen=[0.0] * 4) for point in points]
    said = reading([Result(on, calm, 0.5)], "dpo", "dpo", 0.5)
    assert "came out no different on slm" in said
    assert "With no other score did it come out clearly different." in said


def test_partial_correlations_by_the_formula(on):
    outcome = np.random.default_rng(0).normal(size=(2, 12))
    control = "ln p(rejected) before"
    found = Result(on, [a_point(s, ALL, list(range(12)), outcome[s].tolist(), [0.0] * 4) for s in SEEDS], 0.5).given("dpo", control)
    x, z = on.scores[MAIN].tolist(), on.scores[control].tolist()
    xy, yz = (np.mean([truth.spearman(side, (-run).tolist()) for run in outcome]) for side in (x, z))
    xz = truth.spearman(x, z)
    assert found.estimate().value == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)), rel=1e-9)


@pytest.fixture
def file(root, tmp_path):
    """A study of one set of few pairs."""
    lines = (root / "data/preferences/slm4096.jsonl").read_text().splitlines()[:40]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    one = {"name": "slm", "model": str(root / "data/models/slm4096"), "pairs": "pairs.jsonl", "rows": 12, "held_out": 4, "lr": 1e-3}
    body = {"name": "small", "displacement": {"sets": [one], "objectives": ["dpo", "ipo"], "seeds": list(SEEDS), "batch_size": 4}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(body))
    return tmp_path / "study.yaml"


def test_from_file_to_page_and_on(file, tmp_path, monkeypatch):
    done = run(file, out=tmp_path / "runs", show=False)
    frame = pd.read_parquet(done / "pairs.parquet")
    everything = frame[(frame["without"] == "") & ~frame["held_out"] & (frame["objective"] == "dpo")]
    assert len(everything) == 2 * 12
    sheet = Sheet.load(done)
    assert sheet.sections[0].rows[0][1][0] == pytest.approx(everything["chosen"].mean())
    expected = np.mean([truth.spearman(one[MAIN].tolist(), (-one["chosen"]).tolist()) for _, one in everything.groupby("seed")])
    assert sheet.sections[1].rows[0][1][0] == pytest.approx(expected)
    assert "DPO displaced" in sheet.reading
    assert any("CHES was" in text for text in sheet.cautions)
    first = page(done).read_text()
    assert "<script" not in first
    points = [json.loads(path.read_text()) for path in (done / "points").iterdir()]
    apart = {p["without"] for p in points}
    assert {ALL, MAIN, RANDOM} < apart <= {ALL, *DROPS, RANDOM}  # scores that leave out the same are run once
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("a point was measured again"))
    assert run(file, out=tmp_path / "runs", show=False) == done
    assert page(done).read_text() == first
    run(done / "config.yaml", out=tmp_path / "runs", show=False)  # what was written repeats the run
    again = []
    monkeypatch.setattr(study, "measure", lambda on, one, training: again.append(one) or measure(on, one, training))
    run(file, out=tmp_path / "runs", overrides=["displacement.drop=0.25"], show=False)
    assert {MAIN, RANDOM} < {one.without for one in again}
    assert ALL not in {one.without for one in again}  # runs on all pairs are of any share
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("a point was measured again"))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run(file, out=tmp_path / "runs", overrides=["displacement.batch_size=3"], show=False)
    assert not (done / "report.html").exists()  # it was of another batch size


@pytest.mark.parametrize(
    ("error", "match", "override"),
    [
        (UnknownNameError, "Did you mean 'ipo'", "displacement.objectives=[ipoo]"),
        (UnknownNameError, "unknown preference 'npo'", "displacement.drop_objective=npo"),
        (UnknownNameError, "unknown key of displacement 'dropp'", "displacement.dropp=1"),
        (StudyError, "drop is 1: that leaves out 12 of the 12 pairs of set 'slm', expected from 1 to 11", "displacement.drop=1"),
        (StudyError, "drop is 0.04: that leaves out 0 of the 12", "displacement.drop=0.04"),
        (StudyError, "displacement.drop is 1.5, expected a share", "displacement.drop=1.5"),
        (StudyError, "displacement.seeds is 3, expected a list", "displacement.seeds=3"),
        (StudyError, "displacement.epochs is 0, expected a whole number", "displacement.epochs=0"),
        (StudyError, r"displacement.sets is \[\], expected a list", "displacement.sets=[]"),
        (StudyError, "an entry of displacement.sets: expected a mapping", "displacement.sets=[tofu]"),
        (StudyError, "has model None, expected a text", "displacement.sets=[{name: a}]"),
        (UnknownNameError, "unknown key of a study with 'displacement' 'arms'", "arms={}"),
    ],
)
def test_bad_settings(file, error, match, override):
    with pytest.raises(error, match=match):
        read(file, [override])


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (UnknownNameError, "unknown key of a set of displacement 'row'. Did you mean 'rows'", {"row": 3}),
        (StudyError, "set 'slm' of displacement: rows is 3, expected a whole number of at least 8", {"rows": 3}),
        (StudyError, "set 'slm' of displacement: lr is 0", {"lr": 0}),
        (StudyError, "end is 'no', expected true or false", {"end": "no"}),
        (StudyError, "names a folder", {"name": "a/b"}),
        (InputError, "no such folder", {"model": "./nowhere"}),
    ],
)
def test_bad_sets(file, error, match, change):
    body = yaml.safe_load(file.read_text())
    body["displacement"]["sets"][0] |= change
    file.write_text(yaml.safe_dump(body))
    with pytest.raises(error, match=match):
        read(file)


def test_names_of_sets_differ(file):
    body = yaml.safe_load(file.read_text())
    body["displacement"]["sets"] *= 2
    file.write_text(json.dumps(body))
    with pytest.raises(StudyError, match="each must have one of its own"):
        read(file)
