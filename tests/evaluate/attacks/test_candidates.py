"""Candidate sets against a loop over turns, and by hand."""

import math

import numpy as np
import pytest
import torch

from tests.reference import attacks as slow
from workbench.core.errors import InputError
from workbench.evaluate.attacks.candidates import ATTACKS, head_projection, needed, probability_delta

TRUTHS = {"head_projection": slow.head_lists, "probability_delta": slow.delta_lists}


def lens(n=7, layers=3, d_vocab=11, *, ties=False):
    """Random logits [layer token d_vocab]; with ties, small whole numbers."""
    drawn = torch.randn(layers, n, d_vocab, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.mul(2).round() if ties else drawn


def test_turns_are_taken_by_hand():
    # lists (5 3 1 0) and (3 2 5 7): turns 5 3 | 3 2 | 1 5 | 0 7, without repeats 5 3 2 1 0 7
    lists = [torch.tensor([[5, 3, 1, 0]]), torch.tensor([[3, 2, 5, 7]])]
    sizes = [float(needed(lists, torch.tensor([token]))[0]) for token in (5, 3, 2, 1)]
    assert sizes == [1, 2, 3, 4]
    assert needed(lists, torch.tensor([0])).tolist() == [math.inf]  # fifth: lists of four tokens speak of sets of four at most


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("attack", ATTACKS)
def test_equals_the_loop_for_every_target_and_size(attack, ties):
    logits = lens(ties=ties and attack == "head_projection")  # differences of softmax are not rounded alike twice
    for k in (1, 4, 11):
        lists = ATTACKS[attack](logits, k)
        for token in range(11):
            found = needed(lists, torch.full((7,), token))
            for position in range(7):
                truth = slow.needed(TRUTHS[attack](logits[:, position].numpy()), token)
                assert found[position] == (truth if truth <= k else math.inf)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_set_of_b_has_b_tokens_and_keeps_those_of_a_smaller_one(attack):
    lists = ATTACKS[attack](lens(), 11)
    for position in range(7):
        sizes = [needed([one[position : position + 1] for one in lists], torch.tensor([token]))[0] for token in range(11)]
        assert sorted(sizes) == list(range(1, 12))  # every size adds exactly one token, so sets are nested


def test_lists_by_hand():
    # two layers, three tokens: softmax of (ln 1, ln 2, ln 1) is (1/4, 1/2, 1/4), of (ln 6, ln 1, ln 1) (3/4, 1/8, 1/8)
    logits = torch.log(torch.tensor([[[1.0, 2.0, 1.0]], [[6.0, 1.0, 1.0]]]))
    heads = [one.tolist() for one in head_projection(logits, 2)]
    assert heads == [[[0, 1]], [[1, 0]]]  # the last layer first; of equal tokens the lower id
    gains, losses = probability_delta(logits, 3)
    assert gains.tolist() == [[0, 2, 1]]  # + 1/2, - 1/8, - 3/8
    assert losses.tolist() == [[1, 2, 0]]


def test_probability_delta_needs_two_layers():
    with pytest.raises(InputError, match="at least two layers to compare, got 1"):
        probability_delta(lens(layers=1), 3)


def test_places_do_not_depend_on_the_other_positions():
    logits, target = lens(), torch.arange(7)
    whole = needed(head_projection(logits, 11), target)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    np.testing.assert_array_equal(needed(head_projection(logits[:, order], 11), target[order]), whole[order])
