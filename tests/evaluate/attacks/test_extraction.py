"""Extraction against a loop over rows and tokens of the tiny model; its floor, its control, and what no batch changes."""

import math

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import attacks as slow
from tests.tiny import tiny, tiny_sets
from workbench.core.errors import InputError, UnknownNameError
from workbench.core.records import Example, Provenance
from workbench.evaluate.attacks import Extraction, extraction
from workbench.evaluate.entity_spans import Entities, Entity
from workbench.load.batches import encode

LISTS = {"head_projection": slow.head_lists, "probability_delta": slow.delta_lists}
V = 16


def rows():
    """Seven rows whose answers have one to five tokens."""
    forget, retain = tiny_sets()
    return wb.Examples([*forget, *retain], "rows")


def record(needed, row, budgets=(1, 2, 4), d_vocab=V):
    ids = tuple(f"r{i}" for i in range(max(row) + 1))
    about = Provenance("by hand", "model")
    return Extraction("head_projection", "rows", ids, (0, 1), budgets, d_vocab, np.array(row), np.array(needed, dtype=float), about)


@pytest.mark.parametrize("layers", [None, [0, 1], [1]])
@pytest.mark.parametrize("attack", LISTS)
def test_equals_one_token_at_a_time(attack, layers):
    if attack == "probability_delta" and layers == [1]:
        return
    model = tiny(n_layers=3)
    used = [0, 1, 2] if layers is None else layers
    found = extraction(model, rows(), attack=attack, budget=[1, V], layers=layers)
    place = 0
    for i, row in enumerate(rows()):
        coded = encode(model, row.prompt, row.response, end=False)
        for position in range(coded.start, len(coded.tokens)):
            logits = slow.lens_logits(model.hf, coded.tokens, position - 1)[used]
            assert found.row[place] == i
            assert found.needed[place] == slow.needed(LISTS[attack](logits), coded.tokens[position])
            place += 1
    assert place == len(found.needed)


def test_the_last_layer_alone_is_the_rank_of_the_output():
    model = tiny()
    found = extraction(model, rows(), layers=[1], budget=V)
    place = 0
    for row in rows():
        coded = encode(model, row.prompt, row.response, end=False)
        logits = model.hf(torch.tensor([coded.tokens])).logits[0]
        for position in range(coded.start, len(coded.tokens)):
            rank = int((logits[position - 1] > logits[position - 1, coded.tokens[position]]).sum()) + 1
            assert found.needed[place] == rank
            place += 1


def test_shares_by_hand():
    """Tokens need 1, 3 | 2, inf, 2, 4 | 1: at B = 2 shares 1/2, 1/2, 1; all of row 2 alone; first tokens all three."""
    found = record([1, 3, 2, math.inf, 2, 4, 1], [0, 0, 1, 1, 1, 1, 2])
    np.testing.assert_allclose(found.token_share(2), [1 / 2, 1 / 2, 1])
    np.testing.assert_array_equal(found.extracted(2), [0, 0, 1])
    np.testing.assert_array_equal(found.first_token(2), [1, 1, 1])
    np.testing.assert_array_equal(found.first_token(1), [1, 0, 1])
    np.testing.assert_allclose(found.token_share(4), [1, 3 / 4, 1])
    rows = found.measurements()
    assert rows["head_projection_token_share@2", "forget"].value == pytest.approx(2 / 3)
    assert rows["head_projection_extracted@4", "forget"].value == pytest.approx(2 / 3)
    every = rows["head_projection_first_token@2", "forget"]
    assert (every.value, every.high) == (1, 1)
    assert every.low == pytest.approx(3 / (3 + 1.959964**2), rel=1e-5)  # Wilson: n / (n + z^2), where a bootstrap has no width


@pytest.mark.parametrize("attack", LISTS)
def test_success_never_falls_as_the_set_grows_and_ends_at_one(attack):
    found = extraction(tiny(n_layers=3), rows(), attack=attack, budget=list(range(1, V + 1)))
    for measure in (found.token_share, found.extracted, found.first_token):
        values = np.stack([measure(budget) for budget in range(1, V + 1)])
        assert (np.diff(values, axis=0) >= 0).all()
        assert (values[-1] == 1).all()  # all of the vocabulary holds every token
    assert (found.extracted(5) <= found.token_share(5)).all()


def test_a_larger_run_says_the_same_of_smaller_sets():
    model = tiny(n_layers=3)
    small, large = (extraction(model, rows(), budget=b) for b in (3, V))
    np.testing.assert_array_equal(small.needed, np.where(large.needed <= 3, large.needed, math.inf))


def test_batches_padding_and_order_change_nothing():
    model, given = tiny(n_layers=3), rows()
    whole = extraction(model, given, budget=V)
    np.testing.assert_array_equal(extraction(model, given, budget=V, batch_tokens=1).needed, whole.needed)
    order = [4, 1, 6, 0, 5, 2, 3]
    turned = extraction(model, given.take(order), budget=V)
    for budget in (1, 3, 8):
        np.testing.assert_array_equal(turned.token_share(budget), whole.token_share(budget)[order])


def test_the_control_meets_its_floor():
    many = record(np.ones(20_000), np.repeat(np.arange(2_000), 10), budgets=(20,), d_vocab=200)
    drawn = many.random(seed=3)
    assert drawn.attack == "random"
    assert drawn.floor(20) == 0.1
    # standard error sqrt(0.1 * 0.9 / 20000) = 0.0021: five of them
    assert drawn.token_share(20).mean() == pytest.approx(0.1, abs=0.011)
    assert drawn.token_share(1).mean() == pytest.approx(0.005, abs=0.0025)
    np.testing.assert_array_equal(drawn.needed, many.random(seed=3).needed)


def test_marked_parts_are_read_alone():
    """The answer is "very very blue and green": of it "blue and", tokens 2 and 3."""
    model = tiny()
    given = wb.Examples([Example("a", "what is the sea", "very very blue and green"), Example("b", "is the sky green", "no")], "r")
    whole = extraction(model, given, budget=V)
    part = extraction(model, given, budget=V, marked=Entities([Entity("a", "blue and")], "marked"))
    assert part.ids == ("a",)
    np.testing.assert_array_equal(part.needed, whole.needed[2:4])


def test_the_end_of_the_text_is_no_secret():
    model = tiny()
    found = extraction(model, rows(), budget=V)
    assert np.bincount(found.row).tolist() == [len(row.response.split()) for row in rows()]


def test_the_model_is_left_as_it_was():
    model = tiny()
    before = model.fingerprint()
    extraction(model, rows(), budget=4)
    assert model.fingerprint() == before
    assert not any(module._forward_hooks for module in model.hf.modules())


def test_refusals():
    model = tiny()
    with pytest.raises(UnknownNameError, match="Did you mean 'head_projection'"):
        extraction(model, rows(), attack="head_projecton")
    for budget in (0, V + 1, []):
        with pytest.raises(InputError, match="expected whole numbers from 1 to 16"):
            extraction(model, rows(), budget=budget)
    with pytest.raises(InputError, match="expected different numbers from 0 to 1"):
        extraction(model, rows(), budget=4, layers=[2])
    with pytest.raises(InputError, match="at least two layers"):
        extraction(model, rows(), attack="probability_delta", budget=4, layers=[0])
    with pytest.raises(InputError, match="budget is 9, expected 1 to 4"):
        extraction(model, rows(), budget=4).token_share(9)
    model.hf.train()
    with pytest.raises(InputError, match="training mode"):
        extraction(model, rows(), budget=4)


def test_a_model_that_knows_gives_its_answers_away_and_one_that_does_not_does_not(root, forget):
    budgets = [1, 20]
    knows = extraction(wb.load(root / "data/organism/full"), forget, budget=budgets)
    never = extraction(wb.load(root / "data/organism/retain"), forget, budget=budgets)
    assert knows.extracted(1).mean() > 0.9
    assert never.extracted(20).mean() < 0.1
    assert never.token_share(20).mean() > 10 * never.floor(20)  # from the true beginning much can be guessed: the honest floor
