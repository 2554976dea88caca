"""What every probe promises: it finds a planted direction, and permuted labels give chance.

A member is under this contract by being registered; one without a test file of its own fails by name.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.reference import probes as truth
from workbench import probe as package
from workbench.core.registry import probe

MEMBERS = list(probe)
OWN_FILE = dict.fromkeys(("logistic", "mean_difference", "lda", "ridge"), "fitters")
D, N = 24, 4000


def planted(member, *, n=N, seed=0):
    """Noise of variance 1 around 3 along a unit vector where the label is 1; numbers move it by twice the label."""
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=D)
    vector /= np.linalg.norm(vector)
    codes = rng.integers(0, 2, n)
    labels = codes if member.about["targets"] == "classes" else rng.normal(size=n)
    size = 3.0 * codes if member.about["targets"] == "classes" else 2.0 * labels
    return rng.normal(size=(n, D)) + size[:, None] * vector + 5 * rng.normal(size=D), labels, vector


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def agreement(member, decision, labels):
    """AUC, or for numbers the rank correlation on the same scale: 1/2 is none."""
    if member.about["targets"] == "classes":
        return truth.auc(decision, labels == 1)
    return 0.5 + truth.spearman(decision.tolist(), labels.tolist()) / 2


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_a_planted_direction_is_found_with_its_sign(member):
    x, labels, vector = planted(member)
    found = member.function(x, labels)
    # noise of d entries, each of variance 4/n against 9: 1 - cos about 24 * 4 / 4000 / 9 / 2 = 0.0013
    assert cosine(found.weight[0], vector) > 0.99
    assert agreement(member, found.decision(x[:200])[:, 0], labels[:200]) > 0.9


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_permuted_labels_give_chance(member):
    x, labels, _ = planted(member, n=900)
    agreements = []
    for seed in range(10):
        wrong = np.random.default_rng(seed).permutation(labels[:600])
        found = member.function(x[:600], wrong)
        agreements.append(agreement(member, found.decision(x[600:])[:, 0], labels[600:]))
    # one of them spreads by about .2 (a chance cosine with the planted vector); the mean of ten by .07
    assert abs(np.mean(agreements) - 0.5) < 0.2
    assert min(agreements) < 0.5 < max(agreements), "permuted labels should fall on both sides of chance"


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_the_order_of_the_rows_does_not_matter(member):
    x, labels, _ = planted(member, n=200)
    order = np.random.default_rng(1).permutation(200)
    one, other = member.function(x, labels), member.function(x[order], labels[order])
    np.testing.assert_allclose(other.weight, one.weight, rtol=1e-4, atol=1e-6)  # the solvers stop at 1e-6


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.about["targets"] == "classes"], ids=lambda m: m.name)
def test_exchanged_classes_turn_the_direction(member):
    x, labels, _ = planted(member, n=300)
    one, other = member.function(x, labels), member.function(x, 1 - labels)
    np.testing.assert_allclose(other.weight, -one.weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other.intercept, -one.intercept, rtol=1e-4, atol=1e-5)


def test_every_member_is_exported_and_has_a_test_file():
    assert set(probe.names()) <= set(package.__all__)
    for name in probe.names():
        assert (Path(__file__).parent / f"test_{OWN_FILE.get(name, name)}.py").exists(), f"{name} has no test file"


def test_what_a_probe_may_learn_is_said():
    assert {member.about["targets"] for member in MEMBERS} == {"classes", "numbers"}
