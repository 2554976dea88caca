"""Which modules forgot: pieces that add up, effects of weights written by hand, and modules put back."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.study.planted import FORGET, LIES, RETAIN, changed_to, fine_tuned, knows_by_heart, moved_a_little, nll
from tests.tiny import tiny
from workbench.core.delta import Delta
from workbench.study.diagnose_counter import halves, how_many, put_back
from workbench.study.diagnose_weights import bench, blamed, effects, joined, matched, pieces, share, without


@pytest.fixture
def model():
    return tiny()


@pytest.fixture
def delta(model):
    return moved_a_little(model)


@pytest.fixture(scope="module")
def taught():
    return knows_by_heart()


@pytest.mark.parametrize("by", ["matrix", "layer"])
def test_pieces_are_the_whole(model, delta, by):
    cut = pieces(delta, by)
    names = [name for part in cut.values() for name in part.changes]
    assert sorted(names) == sorted(delta.changes)  # each once
    assert joined(cut.values(), delta).id == delta.id
    assert without(cut, list(cut), delta).is_empty
    if by == "layer":
        assert list(cut) == ["model.embed_tokens.weight", "model.layers.0", "model.layers.1", "model.norm.weight", "lm_head.weight"]
    else:
        together = cut["model.layers.0, norms and biases"]
        assert set(together.changes) == {f"model.layers.0.{n}_layernorm.weight" for n in ("input", "post_attention")}
        assert len(cut) == 2 * (7 + 1) + 3


def test_changes_of_activations_are_pieces(model):
    means = wb.edit.ablate_neurons(model, [(0, 1), (1, 2)])
    steered = wb.edit.steer(model, wb.Direction(torch.ones(8), site="resid_post", layer=1), strength=2.0)
    whole = means.compose(steered)
    cut = pieces(whole)
    assert "hook at blocks.1.resid_post" in cut
    assert without(cut, ["hook at blocks.1.resid_post"], whole).id == Delta(means.changes, whole.provenance).id
    assert joined(cut.values(), whole).id == whole.id


def test_effects_are_those_of_written_weights(model, delta):
    on = bench(model, delta, RETAIN)
    cut = pieces(delta, "layer")
    found = effects(on, cut)
    whole = np.array([nll(changed_to(model, delta), row) - nll(model, row) for row in RETAIN])
    for i, (name, part) in enumerate(cut.items()):
        put_back = changed_to(model, delta, [n for n in delta.changes if n not in part.changes])
        undone = np.array([nll(changed_to(model, delta), row) - nll(put_back, row) for row in RETAIN])
        alone = np.array([nll(changed_to(model, part), row) - nll(model, row) for row in RETAIN])
        np.testing.assert_allclose(found.undone[i], undone, rtol=1e-9, atol=1e-12)
        line = found.modules.loc[name]
        assert line["alone"] == pytest.approx(alone.mean(), rel=1e-9)
        assert line["undone_share"] == pytest.approx(undone.mean() / whole.mean(), rel=1e-9, nan_ok=True)
        difference_ = torch.cat([part.changes[n].dense().flatten() for n in part.changes]).double()
        weights = torch.cat([model.hf.get_parameter(n).detach().flatten() for n in part.changes])
        assert line["ratio"] == pytest.approx(float(difference_.norm() / weights.norm()), rel=1e-9)
    alone_ = effects(on, {"all": delta}).modules.loc["all"]
    assert alone_["undone"] == alone_["alone"] == pytest.approx(whole.mean(), rel=1e-9)  # a single module is the whole


def test_shares_by_hand():
    found = share(np.array([1.0, 2.0]), np.array([2.0, 2.0]))
    assert found.value == 3 / 4
    assert (found.low, found.high) == (0.5, 1.0)  # either row alone
    assert np.isnan(share(np.array([1.0, 1.0]), np.array([1.0, -1.0])).value)  # nothing was forgotten
    unsure = share(np.array([1.0, 1.0]), np.array([5.0, -1.0]))
    assert unsure.value == 0.5
    assert np.isnan(unsure.low)  # the forgetting itself may be nothing


def test_the_fewest_modules_with_half():
    names = list("abcdef")
    undone = np.array([[0.1], [0.5], [0.2], [0.0], [0.3], [0.0]])
    assert blamed(names, undone, np.array([1.0])) == ["b"]  # 0.5 is half of 1
    assert blamed(names, undone, np.array([1.2])) == ["b", "e"]
    assert blamed(names, undone, np.array([9.0])) == ["b", "e"]  # a third of six at most
    nine = np.array([[0.3], [0.25], [0.2], *[[0.05]] * 6])
    assert blamed(list("abcdefghi"), nine, np.array([1.0])) == ["a", "b"]  # 0.3 + 0.25, no third one
    assert blamed(names[:2], -undone[:2], np.array([1.0])) == ["a"]  # at least one


def test_random_modules_changed_as_much():
    names, squares = list("abcdefgh"), np.array([8.0, 4.0, 4.0, 2.0, 2.0, 2.0, 1.0, 1.0])
    for seed in range(20):
        drawn = matched(names, squares, ["a"], seed)
        assert "a" not in drawn
        size = sum(squares[names.index(one)] for one in drawn)
        assert 6 <= size <= 10  # at most half of the largest other one away
        assert drawn == matched(names, squares, ["a"], seed)
    assert len({tuple(matched(names, squares, ["a"], seed)) for seed in range(20)}) > 5
    assert sorted(matched(names, squares, ["a", "b"], 0)) == list("cdefgh")  # all others together are no more than the two


def test_halves_and_counts():
    one, two = halves(9)
    assert sorted(one + two) == list(range(9))
    assert len(one) == 4
    assert halves(7) == (list(range(7)), list(range(7)))
    assert [how_many(top, 25) for top in (0.1, 0.001, 3, 25, 99)] == [2, 1, 3, 25, 25]


def test_putting_back_is_writing_the_old_weights(taught):
    delta = fine_tuned(taught, LIES)
    on, others = bench(taught, delta, RETAIN), bench(taught, delta, FORGET)
    cut = pieces(delta, "layer")
    lines = put_back(on, others, cut, effects(on, cut), seeds=(0, 1))
    assert [line.case for line in lines] == ["blamed", "largest change", "random", "random"]
    after = changed_to(taught, delta)
    for line in lines:
        left = changed_to(taught, delta, [n for key, part in cut.items() if key not in line.names for n in part.changes])
        gone = sum(nll(after, row) - nll(left, row) for row in RETAIN) / sum(nll(after, row) - nll(taught, row) for row in RETAIN)
        assert line.gone == pytest.approx(gone, rel=1e-8)
        assert line.others == pytest.approx(np.mean([nll(left, row) - nll(after, row) for row in FORGET]), rel=1e-8)
        sizes = {key: sum(change.norm() ** 2 for change in part.changes.values()) for key, part in cut.items()}
        assert line.size == pytest.approx(sum(sizes[name] for name in line.names) / sum(sizes.values()), rel=1e-9)
    assert lines[1].names == (max(sizes, key=lambda key: sizes[key]),)
    assert put_back(on, others, dict(list(cut.items())[:2]), effects(on, cut), seeds=(0,)) == []  # no choice among two
