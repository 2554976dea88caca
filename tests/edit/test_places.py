"""What the user named, checked; and as many others by chance."""

import pytest

from workbench.core.components import Place
from workbench.core.errors import InputError
from workbench.edit.places import chosen_of, elsewhere, layers_of, spread


def test_places_are_sorted_by_layer_and_index():
    assert chosen_of("head", [Place(2, 1), (0, 3), (0, 1)], [4, 4, 4]) == {0: [1, 3], 2: [1]}
    assert layers_of([2, 0], 3) == [0, 2]
    assert layers_of(None, 3) == [0, 1, 2]
    assert spread(11, 3) == [4, 4, 3]


def test_what_is_no_list_of_places_is_said():
    with pytest.raises(InputError, match=r"places is \(1, 2\), expected a list of them. Write \[\(layer, head\)\]"):
        chosen_of("head", (1, 2), [4, 4])
    with pytest.raises(InputError, match=r"places holds \(1, 2, 3\), expected \(layer, head\), two whole numbers"):
        chosen_of("head", [(1, 2, 3)], [4, 4])
    with pytest.raises(InputError, match=r"places holds 3, expected \(layer, head\)"):
        chosen_of("head", [3], [4, 4])
    with pytest.raises(InputError, match=r"places holds \(0, 1.0\)"):
        chosen_of("head", [(0, 1.0)], [4, 4])


def test_elsewhere_draws_evenly_from_the_others():
    counts = dict.fromkeys(range(6), 0)
    for seed in range(600):
        (found,) = elsewhere({1: [0, 4]}, {1: range(6)}, seed=seed).values()
        assert len(set(found)) == 2
        for index in found:
            counts[index] += 1
    assert counts[0] == counts[4] == 0
    # 1,200 draws over 4 others: 300 each, standard error 12; four of them
    assert all(count == pytest.approx(300, abs=50) for index, count in counts.items() if index not in (0, 4))
