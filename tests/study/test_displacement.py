"""The study of displacement: its statistics, its arms, its points, and a run that goes on where it stopped."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import rankdata

import workbench as wb
from tests.reference import preference as truth
from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError, ShapeError, StudyError, UnknownNameError
from workbench.core.records import Example, Examples, PreferencePair, PreferencePairs
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
    kept_pairs,
    measure,
    perturbed_pairs,
    prepare,
    questions,
    split,
)
from workbench.study.displacement_numbers import Draws, average_ranks, draws, means, rank_correlations
from workbench.study.displacement_reading import reading
from workbench.study.displacement_result import MAIN, Result
from workbench.unlearn.prefer import pair_logprobs, prefer

SEEDS = (0, 1)


def numbers(n=12):
    """A score with ties and the outcome of two runs on n pairs."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 4, n).astype(float), rng.normal(size=(2, n))


def test_ranks_are_of_the_sample_as_it_is_drawn():
    values = np.array([3.0, 1.0, 3.0, 2.0])
    # drawn: 1 twice, 2 three times, each 3 once: places 1-2, 3-5, 6-7
    assert average_ranks(values, np.array([[1.0, 2.0, 1.0, 3.0]])).tolist() == [[6.5, 1.5, 6.5, 4.0]]
    score, _ = numbers()
    times = np.random.default_rng(1).integers(0, 4, (5, len(score))).astype(float)
    for weights, found in zip(times, average_ranks(score, times), strict=True):
        drawn = np.repeat(np.arange(len(score)), weights.astype(int))
        np.testing.assert_allclose(found[drawn], rankdata(score[drawn]), rtol=1e-12)  # halves are exact


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


def test_the_interval_covers_what_it_should():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(60):
        sample = rng.normal(size=(1, 40)) + 1
        found = means(sample, draws([str(i) for i in range(40)], 1, seed=trial)).estimate()
        inside += found.low <= 1 <= found.high
    assert inside >= 50  # 57 expected of 60; 49 or fewer have a chance below 1e-4


def test_splits_share_no_prompt():
    rows = [PreferencePair(f"{q}-{k}", f"question {q}", "yes", f"no {k}") for q in range(10) for k in range(3)]
    train, held = split(PreferencePairs(rows, "pairs"), 15, 7)
    assert (len(train), len(held)) == (15, 7)
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in held}
    with pytest.raises(DataError, match="do not give 28 to train on and 3"):
        split(PreferencePairs(rows, "pairs"), 28, 3)


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
    asked = questions(on, ("dpo", "ipo"), SEEDS, "dpo")
    assert [(q.objective, q.without) for q in asked[:4:2]] == [("dpo", ALL), ("ipo", ALL)]
    assert {q.without for q in asked} == {ALL, *DROPS, RANDOM}
    assert len(asked) == 2 * (2 + 7)
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
    assert "CHES" not in {q.without for q in questions(bench, ("dpo",), SEEDS, "dpo")}


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
    points += [a_point(s, "CHES", every[6:], [1.0] * 6, [2.0] * 4) for s in SEEDS]
    points += [a_point(s, RANDOM, every[:6], [-1.0] * 6, [0.5 + s] * 4) for s in SEEDS]
    result = Result(on, points)
    moved = result.moved("dpo")
    assert moved.chosen.value == pytest.approx(-5.5)  # mean of 0 ... -11
    assert moved.displaced.value == pytest.approx(11 / 12)
    assert moved.margin.value == pytest.approx(3 / 12)  # ln p(rejected) fell by 3, ln p(chosen) by less in three pairs
    assert moved.accuracy_before.value == pytest.approx(np.mean(on.before[:, 0] > on.before[:, 1]))
    assert moved.accuracy.value == pytest.approx(np.mean(on.before[:, 0] - on.before[:, 1] - np.arange(12) + 3 > 0))
    assert moved.held_chosen.value == pytest.approx(-0.5)  # (0 - 1) / 2
    assert moved.held_displaced.value == pytest.approx(0.5)
    effect = result.effect("dpo", "CHES")
    assert effect.held_out.value == pytest.approx(2.0)
    assert effect.held_out_more.value == pytest.approx(1.0)  # against 0.5 and 1.5
    assert effect.kept_more.value == pytest.approx(2.0)  # 1 against -1
    assert effect.relief.value == pytest.approx(9.5)  # 1 less the mean of -6 ... -11
    assert effect.relief_more.value == pytest.approx(8.0)  # the random arm: -1 less the mean of 0 ... -5, 1.5
    assert result.effect("dpo", RANDOM).held_out_more[:3] == (0.0, 0.0, 0.0)  # paired with itself
    scores = {**on.scores, MAIN: np.arange(12.0), "CHES": -np.arange(12.0)}
    exact = Result(replace(on, scores=scores), points)
    found = exact.correlations("dpo")
    assert found[MAIN].estimate()[:3] == pytest.approx((1.0, 1.0, 1.0))  # displacement is 0 ... 11: the score's own order
    assert found["CHES"].estimate().value == pytest.approx(-1.0)
    assert math.isnan(exact.given("dpo", "CHES").estimate().value)  # the control is the score: nothing is left
    # higher ln p(chosen) or CHES with less displacement: ln p is turned round, for it claims nothing; CHES is not
    assert exact.versus("dpo", "CHES").estimate().value == pytest.approx(2.0)
    turned = Result(replace(on, scores={**scores, "ln p(chosen) before": -np.arange(12.0)}), points)
    assert turned.versus("dpo", "ln p(chosen) before").estimate().value == pytest.approx(0.0)
    # the score is the displacement, so nothing that is held constant takes anything from it
    assert exact.given("dpo", "ln p(chosen) before").estimate().value == pytest.approx(1.0)
    with pytest.raises(InputError, match="has 0 runs of ipo without 'nothing', expected one for each of 2 seeds"):
        result.moved("ipo")


def test_the_reading_is_right_either_way(on):
    every = list(range(12))
    points = [a_point(s, ALL, every, [-float(i) for i in every], [-1.0] * 4) for s in SEEDS]
    arms = ((MAIN, 2.0), ("CHES", -2.0), (RANDOM, 0.0))
    points += [a_point(s, arm, every[:6], [-1.0] * 6, [value] * 4) for arm, value in arms for s in SEEDS]
    for turn, words in ((1.0, "went with more displacement on slm (1.00"), (-1.0, "with less on slm (-1.00")):
        scores = {**on.scores, MAIN: turn * np.arange(12.0), RANDOM: -turn * np.arange(12.0)}
        said = reading([Result(replace(on, scores=scores), points)], ["dpo"], "dpo", 0.5)
        assert f"Before DPO, a high length-normalized CHES {words}" in said
        assert f"{'more' if turn > 0 else 'less'} closely than" in said
        assert "DPO displaced 92% (slm)" in said
        assert (
            "highest length-normalized CHES, rather than without as many by chance, ln p of held-out preferred answers came "
            in said
        )
        assert "out higher on slm (2.00 [2.00, 2.00])" in said
        assert "out lower on slm (-2.00 [-2.00, -2.00])" in said
        assert "the most tokens in the rejected" not in said  # there is no such arm
    same = Result(replace(on, scores={**on.scores, MAIN: np.ones(12)}), points)
    assert "followed displacement" not in reading([same], ["dpo"], "dpo", 0.5)


def test_partial_correlations_by_the_formula(on):
    outcome = np.random.default_rng(0).normal(size=(2, 12))
    control = "ln p(rejected) before"
    found = Result(on, [a_point(s, ALL, list(range(12)), outcome[s].tolist(), [0.0] * 4) for s in SEEDS]).given("dpo", control)
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
    assert {p["without"] for p in points} == {ALL, *DROPS, RANDOM}
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("a point was measured again"))
    assert run(file, out=tmp_path / "runs", show=False) == done
    assert page(done).read_text() == first
    run(done / "config.yaml", out=tmp_path / "runs", show=False)  # what was written repeats the run
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run(file, out=tmp_path / "runs", overrides=["displacement.drop=0.25"], show=False)
    assert not (done / "report.html").exists()  # it was of another share


@pytest.mark.parametrize(
    ("error", "match", "override"),
    [
        (UnknownNameError, "Did you mean 'ipo'", "displacement.objectives=[ipoo]"),
        (UnknownNameError, "unknown preference 'npo'", "displacement.drop_objective=npo"),
        (UnknownNameError, "unknown key of displacement 'dropp'", "displacement.dropp=1"),
        (StudyError, "displacement.drop is 1: no pair would be left", "displacement.drop=1"),
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
