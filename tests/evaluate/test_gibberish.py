"""Fluency: its terms by hand and by a slow reference, and real text above text that was spoiled in the ways a model spoils it."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.cases import ROOT, answers
from tests.reference import memorization as slow
from tests.reference.membership import auc
from workbench.core.errors import DataError, InputError
from workbench.evaluate import fluency as module
from workbench.evaluate.fluency import LETTERS, RUN, characters, classes, counts, fluency, repeats
from workbench.evaluate.gibberish import empty_answer, gibberish

REAL = (ROOT / "data/fluency/held_out.txt").read_text(encoding="utf-8").splitlines()  # never counted, nor used for the ramps


def fit():
    """The script that made the counts."""
    spec = importlib.util.spec_from_file_location("fluency_fit", ROOT / "data/fluency/fit.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def above(texts):
    """P(a real sentence scores higher than one of these)."""
    return auc(list(fluency(texts).score), list(fluency(REAL).score))


def spoiled(how):
    draw = random.Random(1)
    return [how(text, draw) for text in REAL]


def test_real_sentences_are_fluent():
    score = fluency(REAL).score
    assert score.mean() > 0.95  # measured 0.983
    assert np.quantile(score, 0.05) > 0.85  # measured 0.90


@pytest.mark.parametrize(
    ("how", "least"),
    # measured: letters 1.000, letters inside words 1.000, words 0.971, a loop 1.000
    [("letters", 0.999), ("inside", 0.995), ("scrambled", 0.96), ("looped", 0.999)],
)
def test_real_sentences_score_above_spoiled_ones(how, least):
    ways = {"letters": lambda text, draw: "".join(draw.sample(text, len(text)))}
    got = above(spoiled(ways.get(how) or getattr(fit(), how)))
    assert got > least, f"AUC {got:.4f}"


def test_order_of_the_ways_to_spoil():
    """Real sentences, then shuffled words, then shuffled letters."""
    words = fluency(spoiled(fit().scrambled)).score.mean()
    letters = fluency(spoiled(lambda text, draw: "".join(draw.sample(text, len(text))))).score.mean()
    assert fluency(REAL).score.mean() > 0.9 > 0.35 > words > 0.1 > letters


def test_repetition_is_caught_though_every_word_of_it_is_real():
    for text in (
        "the the the the the the",
        "He was born in in in in in in",
        "a book and a book and a book and a book and a book and",
    ):
        assert fluency([text]).score[0] < 0.3, text
    once = REAL[0]
    assert fluency([once + " " + " ".join(once.split()[-3:] * 10)]).score[0] < 0.5 < fluency([once]).score[0]


def test_what_unlearned_models_say():
    fine = [
        "I don't know.",
        "I'm not able to answer that.",
        "The author was born in Santiago, Chile on 3 May 1968.",
        "Émile Zola was a novelist.",
    ]
    bad = [
        "asdf qwer zxcv uiop",
        "author author the of of genre genre is is",
        ", , , , , , , ,",
        "aaaaaaaaaaaaaaaaaaaaaa",
        "ÐºÐ¸Ð»Ð¾Ð¼ÐµÑ‚Ñ€",
    ]
    assert fluency(fine).score.min() > 0.8
    assert fluency(bad).score.max() < 0.35


def test_a_text_cut_off_or_short_is_not_the_worse_for_it():
    cut = [" ".join(text.split()[:-3]) for text in REAL]
    assert fluency(cut).score.mean() > 0.95
    assert fluency(["Paris", "No."]).score.min() > 0.9  # two words tell little


@pytest.mark.parametrize(("letters", "want"), [(0, 0.980), (1, 0.961), (2, 0.973), (3, 0.977)])
def test_a_text_cut_in_mid_word_is_a_little_worse(letters, want):
    """What the module says of a half with so many letters of a further word; two in the last digit is the last digit's rounding."""
    cut = []
    for words in (text.split() for text in REAL):
        long = [i for i in range(len(words) // 2, len(words)) if len(words[i].strip(".,")) >= 5]
        if long:
            cut.append(" ".join([*words[: long[0]], words[long[0]][:letters]]))
    assert fluency(cut).score.mean() == pytest.approx(want, abs=2e-3)


def test_terms_by_hand(monkeypatch):
    """Counts of one: every character after two of any is 2^-3, every word after any other 2^1, nothing is typical."""
    flat = module.Counts(
        np.full((len(LETTERS),) * 3, -3.0),
        np.full((module.n_classes(("the",)),) * 2, 1.0),
        ("the",),
        {"letters": (-4.0, -2.0), "order": (0.0, 2.0), "repeats": (1.0, 0.0)},
        {"letters": -1.0, "order": 0.0},
    )
    monkeypatch.setattr(module, "counts", lambda: flat)
    # " the cat " has 9 characters, 7 after the second: (7 * -3 + 20 * -1) / 27; 2 words: (2 * 1 + 5 * 0) / 7; 2 runs of 8 differ
    found = module.fluency(["the cat"])
    letters, order = -41 / 27, 2 / 7
    np.testing.assert_allclose([found.letters[0], found.order[0], found.repeats[0]], [letters, order, 0], rtol=1e-12)
    # ramps: min(1, (-41/27 + 4) / 2) = 1, (2/7) / 2 = 1/7, 1
    np.testing.assert_allclose(found.score, [1 / 7], rtol=1e-12)


def test_characters_and_classes_by_hand():
    assert "".join(LETTERS[i] for i in characters("  Zoë’s 42\n☃ ")) == " zoe's 00 ~ "
    words = ("the", "'s", ".")
    # edge, the, Zoe (capitalized, other ending), 's, running (small, ing), 12 (a number), ! (a mark), .
    first = 1 + len(words)
    want = [0, 1, first + 2 + 5 + 4, 2, first + 2 + 0, first, first + 1, 3]
    assert classes("The Zoe’s running 12!.", words).tolist() == want
    assert max(want) < module.n_classes(words)


@pytest.mark.parametrize("text", ["the the the the", "a", "abcdefgh abcdefgh", "no repetition here at all", "ha" * 20])
def test_repeats_reference(text):
    assert repeats(characters(text)) == pytest.approx(slow.repeats(f" {text} ", RUN), rel=1e-12)


def test_the_counts_are_probabilities():
    known = counts()
    chance = 2.0**known.letters
    chance[..., LETTERS.index("~")] *= fit().UNKNOWN
    np.testing.assert_allclose(chance.sum(-1), 1, atol=5e-3)  # float16 logarithms: 2^-11 of at most 20 bits each
    assert known.order.shape == (module.n_classes(known.words),) * 2
    assert Path(module.FILE).stat().st_size < 300_000


def test_interpolation_by_hand():
    """'aab' twice over an alphabet of 2: p(a) = (4 + 2/2) / (6 + 2); after a: a 2, b 2 -> p(b | a) = (2 + 2 p(b)) / (4 + 2)."""
    got = 2 ** fit().chances([np.array([0, 0, 1])] * 2, 2, 2)
    p_b = (2 + 2 / 2) / (6 + 2)
    assert got[0, 1] == pytest.approx((2 + 2 * p_b) / (4 + 2), rel=1e-12)
    np.testing.assert_allclose(got[1], [1 - p_b, p_b], rtol=1e-12)  # nothing was seen after b


def test_metric_and_silence():
    table = answers([1.0] * 4, generated=["I do not know.", "", " \n", "zxq qxz zqx"])
    values = gibberish(table)
    assert values.tolist()[1:3] == [0, 0]
    assert values[0] > 0.9 > 0.2 > values[3]
    assert empty_answer(table).tolist() == [0, 1, 1, 0]
    order = [2, 0, 3]
    np.testing.assert_array_equal(gibberish(table.take(order)), values[order])
    np.testing.assert_array_equal(empty_answer(table.take(order)), [1, 0, 0])
    assert np.isnan(fluency([""]).letters[0])


def test_refused():
    for metric in (gibberish, empty_answer):
        with pytest.raises(InputError, match=f"{metric.__name__}: 'rows' has no generated text for row 'r1'.*generate=200"):
            metric(answers([1.0, 2.0], generated=["a", None]))
    with pytest.raises(DataError, match="fluency: there are no texts"):
        fluency([])
