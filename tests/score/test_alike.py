"""Edit distance against the textbook table, and equal beginnings."""

import random

import pytest

from tests.reference import score as truth
from workbench.score.alike import edit_distance, starts_alike


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("kitten", "sitting", 3),  # k -> s, e -> i, + g
        ("", "abc", 3),
        ("abc", "", 3),
        ("abc", "abc", 0),
        ("ab", "ba", 2),  # no exchange of neighbors: two substitutions
        ("a" * 70, "a" * 70 + "b", 1),  # beyond 64 bits
    ],
)
def test_edit_distance_by_hand(a, b, distance):
    assert edit_distance(list(a), list(b)) == distance  # letters stand for tokens
    assert edit_distance(list(b), list(a)) == distance


def test_edit_distance_is_the_table():
    rng = random.Random(0)
    for _ in range(400):
        a, b = ([rng.randrange(4) for _ in range(rng.randrange(0, 20))] for _ in range(2))
        assert edit_distance(a, b) == truth.levenshtein(a, b), f"{a} and {b}"
    a, b = ([rng.randrange(900) for _ in range(150)] for _ in range(2))
    assert edit_distance(a, b) == truth.levenshtein(a, b)


def test_equal_beginnings():
    assert starts_alike([1, 2, 3], [1, 2, 4, 5]) == 2
    assert starts_alike([1, 2], [1, 2, 3]) == 2
    assert starts_alike([1], [2]) == 0
    assert starts_alike([], [2]) == 0
