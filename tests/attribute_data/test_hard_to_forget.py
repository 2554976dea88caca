"""The worst-case forget set: the projection against every active set, planted rows that retain data protects, and the records."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import score as truth
from tests.tiny import tiny
from workbench.attribute.data.hard_set import compared
from workbench.attribute.data.hard_to_forget import HardSet, check_options, hard_to_forget, project
from workbench.core.errors import DataError, InputError, MismatchError
from workbench.core.records import Example

PLANTED = ("c1", "c6")


def rows(prefix, texts):
    return wb.Examples([Example(f"{prefix}{i}", *text) for i, text in enumerate(texts)], prefix)


def candidates():
    """Eight rows; two of them are retained too, see `retain`."""
    return rows(
        "c",
        [
            ("what is the color of the sky", "blue"),
            ("is the sea a sea", "very very green"),
            ("what is grass", "no"),
            ("the sea", "is blue and blue"),
            ("what is the color of grass", "and a sky"),
            ("is grass blue", "a sea"),
            ("the grass", "no no no"),
            ("is the sky a color", "green and very"),
        ],
    )


def retain():
    """Three copies of each planted candidate, the same to the tokenizer, which splits at white space; and one more row.

    Unlearned in a set of three, a planted row has the weight 3/7 - 1/3 > 0: it is learned, not unlearned.
    """
    planted = [(row.prompt, row.response) for row in candidates() if row.id in PLANTED]
    copies = [(prompt.replace(" ", gap, 1), response) for prompt, response in planted for gap in ("  ", "   ", "    ")]
    return rows("r", [*copies, ("is a color a color", "no")])


def trained():
    """The tiny model after it learned every row: there is something to forget."""
    from workbench.core.delta import apply
    from workbench.core.records import Provenance
    from workbench.load.batches import encode_all
    from workbench.train.loop import fit
    from workbench.train.task import AnswerTask

    model = tiny(d_model=16)
    task = AnswerTask(model, encode_all(model, candidates()) + encode_all(model, retain()))
    apply(model, fit(model, task, Provenance("learn", model.fingerprint()), epochs=60, lr=1e-2, batch_size=15).delta)
    return model


@pytest.fixture(scope="module")
def learned():
    return trained()


OPTIONS = {"size": 3, "rounds": 10, "epochs": 6, "lr": 2e-3, "weight_lr": 0.05, "batch_size": 15}


@pytest.fixture(scope="module")
def found(learned):
    return hard_to_forget(learned, candidates(), retain(), **OPTIONS)


def test_projection_by_hand():
    # (.9, .5, .2) onto sum 1: all lose .2, and the last ends at 0
    np.testing.assert_allclose(project(np.array([0.9, 0.5, 0.2]), 1), [0.9 - 0.2, 0.5 - 0.2, 0.0], atol=1e-12)
    # (1.1, .6, .2) onto sum 2: the first is capped at 1, the others share the .2 that is left: .1 each
    np.testing.assert_allclose(project(np.array([1.1, 0.6, 0.2]), 2), [1.0, 0.7, 0.3], atol=1e-12)
    # (2, 0, 0) onto sum 1: the first is capped at 1, nothing is left for the others
    np.testing.assert_allclose(project(np.array([2.0, 0.0, 0.0]), 1), [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(project(np.array([5.0, 5.0]), 1), [0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(project(np.array([0.3, -9.0]), 2), [1, 1], atol=1e-12)


def test_projection_is_the_nearest_point():
    rng = np.random.default_rng(0)
    for _ in range(40):
        values, size = rng.normal(scale=1.5, size=5), int(rng.integers(1, 5))
        got = project(values, size)
        np.testing.assert_allclose(got, truth.project(values, size), atol=1e-9)  # bisection to the last bits of float64
        assert got.sum() == pytest.approx(size, abs=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_projection_of_what_is_not_a_number_is_refused(bad):
    with pytest.raises(InputError, match="1 of 3 values are NaN or infinite"):
        project(np.array([0.1, bad, 0.2]), 1)


@pytest.mark.parametrize("size", [2.0, 2.5, True])
def test_a_size_that_is_no_whole_number_is_refused(size):
    with pytest.raises(InputError, match=f"size is {size}, expected a whole number, 1 to 7"):
        check_options(size, 8, lower="ascent", rounds=1, weight_lr=0.1, gamma=0.0)


def test_sets_compared_by_hand():
    # hard {0, 1}: (1 + 3) / 2 = 2. lowest {1, 2}: (4 + 6) / 2 = 5. random {0, 3}: (2 + 8) / 2 = 5, and {2, 3}: (7 + 9) / 2 = 8,
    # together 6.5. hard - random = -4.5, hard - lowest = -3. What is not a member, 100, counts for nothing
    values = {
        "hard": [1, 3, 100, 100],
        "lowest before": [100, 4, 6, 100],
        "random 0": [2, 100, 100, 8],
        "random 1": [100, 100, 7, 9],
    }
    values = {name: np.array(row, dtype=float) for name, row in values.items()}
    found = compared(values, {name: row < 100 for name, row in values.items()})
    expected = {"hard": 2, "lowest before": 5, "random 0": 5, "random 1": 8, "random": 6.5}
    expected |= {"hard - random": -4.5, "hard - lowest before": -3}
    assert {name: estimate.value for name, estimate in found.items()} == expected
    assert {name: estimate.n for name, estimate in found.items()} == dict.fromkeys(expected, 2)


def test_intervals_draw_sets_and_rows_and_know_a_shared_row():
    one, n = np.ones(6, dtype=bool), 6
    half = np.arange(n) < 3
    # rows without spread, two random sets of means 0 and 1: only the sets are drawn; means of two are 0, 1/2 or 1
    values = {"hard": np.zeros(n), "lowest before": np.zeros(n), "random 0": np.zeros(n), "random 1": np.ones(n)}
    found = compared(values, {"hard": half, "lowest before": half, "random 0": half, "random 1": ~half})
    assert (found["random"].low, found["random"].high) == (0, 1)
    assert (found["hard"].low, found["hard"].high) == (0, 0)
    assert (found["hard - random"].low, found["hard - random"].high) == (-1, 0)
    # the same rows in both: a constant difference has no spread, however the rows differ; each alone has
    spread = np.array([0.0, 1, 2, 5, 9, 20])
    same = compared(
        {"hard": spread, "lowest before": spread + 1, "random 0": spread + 2},
        dict.fromkeys(("hard", "lowest before", "random 0"), one),
    )
    for name, value in (("hard - lowest before", -1), ("hard - random", -2)):
        np.testing.assert_allclose(same[name][:3], value, rtol=1e-12)
    assert same["hard"].high - same["hard"].low > 5
    # Exp(1) weights: the variance of the mean is the rows' variance over n + 1, so 95 % is about 2 x 1.96 of its root
    assert same["hard"].high - same["hard"].low == pytest.approx(2 * 1.96 * spread.std() / np.sqrt(n + 1), rel=0.2)


def test_projection_of_an_impossible_sum_is_refused():
    with pytest.raises(InputError, match="size is 4, expected 0 to 3"):
        project(np.zeros(3), 4)


def test_rows_that_retain_data_protects_are_found(found):
    assert set(found.rows.ids) > set(PLANTED), found.frame().to_string()
    protected = np.isin(found.ids, PLANTED)
    assert found.losses[:, protected].mean() < found.losses[:, ~protected].mean()


def test_the_record(learned, found):
    assert isinstance(found, HardSet)
    assert found.rows.ids == sorted(found.rows.ids)  # the candidates' order
    assert found.losses.shape == (10, 8)
    assert found.weights.sum() == pytest.approx(3)
    assert ((found.weights >= 0) & (found.weights <= 1)).all()
    frame = found.frame()
    assert frame["hard"].sum() == 3
    assert frame.loc[found.rows.ids, "weight"].min() >= frame["weight"].median()
    np.testing.assert_allclose(frame["before"], [_nll(learned, row) for row in candidates()], rtol=1e-9)
    assert found.losses[0].mean() > found.before.mean(), "unlearning should raise the loss"


def _nll(model, row):
    from workbench.load.batches import encode

    coded = encode(model, row.prompt, row.response)
    _, logits = truth.final_states(model.hf, coded.tokens)
    return -truth.logprob(logits, coded.tokens, coded.start) / (len(coded.tokens) - coded.start)


def test_two_rounds_by_hand(learned):
    # from equal weights 3/8, twice a step of .05 of what that round measured and of 2 gamma w, projected back
    two = hard_to_forget(learned, candidates(), retain(), **OPTIONS | {"rounds": 2, "gamma": 4.0})
    expected = np.full(8, 3 / 8)
    for measured in two.losses:
        expected = truth.project(expected - 0.05 * (measured + 2 * 4.0 * expected), 3)
    np.testing.assert_allclose(two.weights, expected, atol=1e-9)


def test_the_lower_level_is_sign_descent_on_the_weighted_losses(learned):
    # one step of the whole set: every weight moves by lr against the sign of mean_retain l - (1/size) sum w l
    one = hard_to_forget(learned, candidates(), retain(), **OPTIONS | {"rounds": 1, "epochs": 1, "lr": 1e-3})
    from workbench.load.batches import encode_all

    model = learned.hf
    model.zero_grad(set_to_none=True)
    loss = 0.0
    for rows_, share in ((candidates(), -1 / 8), (retain(), 1 / 7)):  # weights 3/8 over size 3
        for coded in encode_all(learned, rows_):
            logits = model(torch.tensor([coded.tokens]), use_cache=False).logits[0]
            picked = [logits[t - 1].log_softmax(-1)[coded.tokens[t]] for t in range(coded.start, len(coded.tokens))]
            loss = loss - share * sum(picked) / len(picked)
    loss.backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.data.sub_(1e-3 * p.grad.sign())
    after = [_nll(learned, row) for row in candidates()]
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.data.copy_(before[name])
            p.grad = None
    # the Delta is stored in float32: its steps of 1e-3 are off by 1e-10, of some 3,000 weights
    np.testing.assert_allclose(one.losses[0], after, rtol=1e-6)


def test_the_model_is_left_alone_and_the_seed_decides(learned):
    before = {name: p.detach().clone() for name, p in learned.hf.named_parameters()}
    options = OPTIONS | {"rounds": 2, "epochs": 2, "batch_size": 5}
    one, same = (hard_to_forget(learned, candidates(), retain(), **options, seed=1) for _ in range(2))
    assert (one.losses == same.losses).all()
    assert (one.losses != hard_to_forget(learned, candidates(), retain(), **options, seed=2).losses).any()
    assert all(torch.equal(p, before[name]) for name, p in learned.hf.named_parameters())


def test_the_published_lower_level(learned):
    # training on with weights 1 - w forgets nothing that the model knows already, and raises no loss by much
    kept = hard_to_forget(learned, candidates(), retain(), **OPTIONS | {"lower": "retrain", "rounds": 1, "lr": 1e-4})
    ascent = hard_to_forget(learned, candidates(), retain(), **OPTIONS | {"rounds": 1, "lr": 1e-4})
    assert kept.losses.mean() < ascent.losses.mean()
    assert kept.provenance.options["lower"] == "retrain"


def test_against_random_sets(learned, found):
    measured = found.against_random(learned, candidates(), retain(), seeds=(0, 1))
    splits = {(row.metric, row.split) for row in measured}
    sets = ("hard", "lowest before", "random 0", "random 1", "random", "hard - random", "hard - lowest before")
    assert splits == {(m, s) for m in ("nll_before", "nll_after") for s in sets}
    hard, other, lowest = (measured["nll_after", s] for s in ("hard", "random", "lowest before"))
    assert (hard.n, other.n, lowest.n) == (3, 2, 3)  # rows, sets, rows
    assert all(row.low <= row.value <= row.high for row in measured)
    assert hard.value < other.value, "what is left of the hard set should be lower"
    assert measured["nll_after", "hard - random"].value == pytest.approx(hard.value - other.value)
    assert measured["nll_after", "hard - lowest before"].value == pytest.approx(hard.value - lowest.value)
    assert measured["nll_before", "lowest before"].value == pytest.approx(np.sort(found.before)[:3].mean())
    with pytest.raises(InputError, match="name a set twice"):
        found.against_random(learned, candidates(), retain(), seeds=(1, 1))
    with pytest.raises(InputError, match="there are no seeds"):
        found.against_random(learned, candidates(), retain(), seeds=())
    with pytest.raises(MismatchError, match="candidates are other rows"):
        found.against_random(learned, candidates()[:5], retain())
    with pytest.raises(MismatchError, match="another model"):
        found.against_random(tiny(), candidates(), retain())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 8}, "size is 8, expected a whole number, 1 to 7"),
        ({"size": 0}, "size is 0"),
        ({"lower": "again"}, "lower is 'again', expected one of ascent, retrain"),
        ({"rounds": 0}, "rounds is 0"),
        ({"weight_lr": 0.0}, "weight_lr 0.0"),
        ({"gamma": float("nan")}, "gamma nan"),
        ({"gamma": float("inf")}, "gamma inf"),
        ({"weight_lr": float("inf")}, "weight_lr inf"),
        ({"weight_lr": float("nan")}, "weight_lr nan"),
        ({"lr": -1.0}, "lr is -1.0, expected a positive number"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(InputError, match=match):
        hard_to_forget(tiny(), candidates(), retain(), **{"size": 3, "lower": "ascent"} | options)


def test_shared_rows_are_refused():
    with pytest.raises(DataError, match="share 8 rows"):
        hard_to_forget(tiny(), candidates(), candidates(), size=2)
