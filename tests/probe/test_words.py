"""The bag of words: a baseline that is tuned on the training texts and never sees the others."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline

from tests.reference import probes as truth
from workbench.core.errors import DataError
from workbench.probe.words import STRENGTHS, bag_of_words

RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(["sky", "sea", "is", "not", "blue", "green!", "very"], size=RNG.integers(3, 8))) for _ in range(40)]
LABELS = np.array([("blue" in text) ^ ("very" in text and RNG.random() < 0.5) for text in TEXTS]).astype(int)
INNER = [(np.arange(40)[np.arange(40) % 3 != k], np.arange(40)[np.arange(40) % 3 == k]) for k in range(3)]
HELD = ["the sky is blue", "not very green", "unheard of words"]


def area(decision, labels):
    return truth.auc(decision[:, 0], labels == 1)


def error(decision, labels):
    return -float(((decision[:, 0] - labels) ** 2).mean())


def pipeline(model):
    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]", sublinear_tf=True), model)


@pytest.mark.parametrize("classes", [True, False])
def test_it_is_the_pipeline_of_scikit_learn_with_the_best_strength(classes):
    labels, judge = (LABELS, area) if classes else (LABELS + RNG.normal(size=40) * 0.1, error)

    def model(strength):
        return LogisticRegression(C=strength, max_iter=1000) if classes else Ridge(alpha=1 / strength)

    def decide(fitted, texts):
        return np.asarray(fitted.decision_function(texts) if classes else fitted.predict(texts))[:, None]

    def inner(strength):
        scores = []
        for seen, asked in INNER:
            fitted = pipeline(model(strength)).fit([TEXTS[i] for i in seen], labels[seen])
            scores.append(judge(decide(fitted, [TEXTS[i] for i in asked]), labels[asked]))
        return np.mean(scores)

    best = max(STRENGTHS, key=inner)
    found, strength = bag_of_words(TEXTS, labels, INNER, judge, HELD, classes=classes)
    assert strength == best
    assert len({inner(s) for s in STRENGTHS}) > 1, "the strengths must differ for this to say something"
    np.testing.assert_allclose(found, decide(pipeline(model(best)).fit(TEXTS, labels), HELD), rtol=1e-12)


def test_held_out_texts_teach_it_nothing():
    whole, _ = bag_of_words(TEXTS, LABELS, [], area, HELD, classes=True)
    alone, strength = bag_of_words(TEXTS, LABELS, [], area, HELD[:1], classes=True)
    np.testing.assert_array_equal(whole[:1], alone)
    assert strength == 1.0
    nothing, _ = bag_of_words(TEXTS, LABELS, [], area, ["unheard", "of words entirely new"], classes=True)
    assert nothing[0] == nothing[1], "words it does not know leave the intercept"


def test_three_classes_have_a_row_each():
    found, _ = bag_of_words(TEXTS, np.arange(40) % 3, [], area, HELD, classes=True)
    assert found.shape == (3, 3)


def test_no_word_is_refused():
    with pytest.raises(DataError, match="the training texts hold no word"):
        bag_of_words([" ", "\n"] * 5, np.arange(10) % 2, [], area, HELD, classes=True)
