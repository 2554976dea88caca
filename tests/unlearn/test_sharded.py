"""Exact unlearning by shards: what is left is bit for bit what training without the deleted slices makes, and what it costs."""

import itertools
from contextlib import ExitStack

import pytest
import torch

from tests.reference import sharded as truth
from tests.tiny import tiny, tiny_sets
from workbench.core.change import LowRank
from workbench.core.delta import Delta, applied
from workbench.core.errors import DataError, InputError
from workbench.core.records import Example, Examples, Provenance
from workbench.load.batches import encode_all
from workbench.train import AnswerTask, Lora, fit
from workbench.unlearn.sharded import Sharded, cut_rows, layer_blocks, sharded

ROWS = Examples([row for rows in tiny_sets() for row in rows], "seven")  # seven rows of unequal length
OPTIONS = {"epochs": 2, "batch_size": 2, "lr": 0.02, "lora": Lora(rank=2)}


def four_layers(dtype=torch.float32):
    return tiny(dtype, n_layers=4)


@pytest.fixture(scope="module")
def learned():
    """Four slices in three orders, on a model of four layers."""
    return sharded(four_layers(), ROWS, slices=4, orders=3, seed=1, **OPTIONS)


def train_alone(model, slices, blocks, about, *, cumulative=False):
    """Train on these slices and nothing else, one after the other, with the training loop alone."""
    by_id = {row.id: row for row in ROWS}
    changes = {}
    with ExitStack() as before:
        for k, block in enumerate(blocks[: len(slices)]):
            ids = [row for one in (slices[: k + 1] if cumulative else [slices[k]]) for row in one]
            task = AnswerTask(model, encode_all(model, Examples([by_id[row] for row in ids], "these")))
            done = fit(model, task, about, lora=Lora(2, targets=block), epochs=2, batch_size=2, lr=0.02, seed=1).delta
            before.enter_context(applied(model, done))
            changes |= done.changes
    return Delta(changes, about)


def assert_same_bits(one, other):
    assert set(one.changes) == set(other.changes)
    for name, change in one.changes.items():
        for part, tensor in change.tensors().items():
            assert torch.equal(tensor, other.changes[name].tensors()[part]), f"{name} ({part})"


@pytest.mark.parametrize(("dtype", "cumulative"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)])
def test_what_is_left_is_bit_for_bit_training_without_what_was_deleted(dtype, cumulative):
    model = four_layers(dtype)
    fingerprint = model.fingerprint()
    found = sharded(model, ROWS, slices=4, orders=2, seed=1, cumulative=cumulative, **OPTIONS)
    assert model.fingerprint() == fingerprint
    about, blocks = Provenance("alone", fingerprint), layer_blocks(model, 4)
    seen = set()
    for gone in [[row.id] for row in ROWS] + [["f0", "r1"], []]:
        chain, kept = truth.best(found.slices, found.chains, gone)
        left = found.without(gone)
        seen.add(len(kept))
        assert_same_bits(left, train_alone(model, [found.slices[k] for k in kept], blocks, about, cumulative=cumulative))
        assert found.lost(gone) == (
            chain,
            4 - len(kept),
            sum(map(len, found.slices)) - len(gone) - sum(len(found.slices[k]) for k in kept),
        )
    assert {3, 4} <= seen


def test_a_deleted_row_could_have_said_anything(learned):
    """The rows that are deleted, and those of slices after them, have no influence on what is left: other text, the same bits."""
    gone = [learned.slices[learned.chains[0][2]][0]]
    assert len(truth.best(learned.slices, learned.chains, gone)[1]) >= 2
    changed = Examples([Example(r.id, r.prompt, "and a sea of grass") if r.id in gone else r for r in ROWS], "changed")
    again = sharded(four_layers(), changed, slices=4, orders=3, seed=1, **OPTIONS)
    assert again.without(gone).id == learned.without(gone).id
    assert again.delta.id != learned.delta.id


def test_deletion_against_the_definition(learned):
    ids = [row.id for row in ROWS]
    for size in (1, 2, 3, 7):
        for gone in itertools.combinations(ids, size):
            chain, kept = truth.best(learned.slices, learned.chains, gone)
            held = sum(len(learned.slices[k]) for k in kept)
            assert learned.lost(gone) == (chain, 4 - len(kept), 7 - size - held), gone
            # four layers and one block a layer, from the top: a chain of k slices changes the k highest layers
            layers = {int(name.split(".")[2]) for name in learned.without(gone).changes}
            assert layers == set(range(4 - len(kept), 4)), gone


def test_the_price_by_hand():
    # slices {a, b}, {c}, {d, e, f}; chains 0 1 2 and 1 2 0. Without c: chain 0 keeps slice 0 (2 rows), chain 1 nothing: two slices
    # go and with them d, e, f. Without a: chain 0 keeps nothing, chain 1 slices 1 and 2: only b goes. Without d: chain 0 keeps 0
    # and 1, chain 1 slice 1: e and f go. Without b and c: nothing is kept, a, d, e, f go.
    about = Provenance("test", "0")
    parts = {k: Delta({str(k): LowRank(torch.ones(1, 1), torch.ones(1, 1) * k, (1, 1))}, about) for k in range(3)}
    by_hand = Sharded((("a", "b"), ("c",), ("d", "e", "f")), ((0, 1, 2), (1, 2, 0)), (tuple(parts.values()),) * 2, about)
    assert by_hand.lost(["c"]) == (0, 2, 3)
    assert by_hand.lost(["a"]) == (1, 1, 1)
    assert by_hand.lost(["d"]) == (0, 1, 2)
    assert by_hand.lost(["b", "c"]) == (0, 3, 4)
    assert by_hand.lost([]) == (0, 0, 0)
    assert set(by_hand.without(["a"]).changes) == {"0", "1"}
    assert by_hand.without(["b", "c"]).is_empty
    assert by_hand.without([]).id == by_hand.delta.id


def test_it_learns_and_forgets(learned):
    model = four_layers()
    rows = encode_all(model, ROWS)
    task = AnswerTask(model, rows)

    @torch.no_grad()
    def nll():
        return float(task.losses(range(len(rows)), 0).mean())

    start = nll()
    with applied(model, learned.delta):
        everything = nll()
    with applied(model, learned.without([learned.slices[learned.chains[0][2]][0]])):
        some = nll()
    assert everything < some < start


def test_adapters_in_words_are_adapters(learned):
    again = sharded(four_layers(), ROWS, slices=4, orders=3, seed=1, **OPTIONS | {"lora": {"rank": 2}})
    assert again.delta.id == learned.delta.id


def test_slices_are_even_keep_groups_together_and_follow_the_seed():
    assert sorted(len(one) for one in cut_rows(ROWS, 3)) == [2, 2, 3]
    groups = {"f0": "x", "f1": "x", "f2": "x", "r0": "y", "r1": "y", "r2": "z", "r3": "z"}
    cut = cut_rows(ROWS, 2, groups=groups, seed=3)
    assert sorted(row for one in cut for row in one) == sorted(groups)
    where = {row: k for k, one in enumerate(cut) for row in one}
    assert all(where[a] == where[b] for a in groups for b in groups if groups[a] == groups[b])
    assert cut_rows(ROWS, 3, seed=0) == cut_rows(ROWS, 3, seed=0)
    assert cut_rows(ROWS, 3, seed=0) != cut_rows(ROWS, 3, seed=1)
    renamed = Examples([Example(r.id, "what is", r.response) for r in ROWS], "renamed")
    assert cut_rows(renamed, 3) == cut_rows(ROWS, 3), "the cut must not look at what the rows say"


def test_blocks_go_from_the_top_down_and_are_even():
    model = tiny(n_layers=5)
    blocks = layer_blocks(model, 2)
    layers = [sorted({int(path.split(".")[2]) for path in block}) for block in blocks]
    assert layers == [[2, 3, 4], [0, 1]]
    assert len({path for block in blocks for path in block}) == 5 * 7
    only = layer_blocks(model, 5, ("q_proj",))
    assert only == [(f"model.layers.{n}.self_attn.q_proj",) for n in (4, 3, 2, 1, 0)]


def test_every_slice_stands_last_in_at_most_one_chain(learned):
    assert len({order[-1] for order in learned.chains}) == 3
    assert all(sorted(order) == [0, 1, 2, 3] for order in learned.chains)


def test_it_saves_and_loads(learned, tmp_path):
    learned.save(tmp_path / "shards")
    again = Sharded.load(tmp_path / "shards")
    assert (again.slices, again.chains, again.provenance) == (learned.slices, learned.chains, learned.provenance)
    for gone in ([], ["f1"], ["r0", "r3"]):
        assert again.without(gone).id == learned.without(gone).id
    with pytest.raises(InputError, match="not an empty folder"):
        learned.save(tmp_path / "shards")


def test_what_cannot_be(learned):
    model = four_layers()
    with pytest.raises(DataError, match="no slice has the row 'f9'; 7 rows were learned"):
        learned.without(["f9"])
    with pytest.raises(InputError, match="slices is 5, expected 1 to 4"):
        sharded(model, ROWS, slices=5)
    with pytest.raises(InputError, match="orders is 3, expected 1 to 2"):
        sharded(model, ROWS, slices=2, orders=3)
    with pytest.raises(DataError, match="3 groups of rows, too few for 4 slices"):
        sharded(model, ROWS[:3], slices=4)
    with pytest.raises(DataError, match="no group for the row 'f1'"):
        sharded(model, ROWS, slices=2, groups={"f0": "x"})
    with pytest.raises(InputError, match="block 1 of 2 has no linear layer"):
        sharded(model, ROWS, slices=2, lora=Lora(targets=("layers.3.mlp.up_proj",)))
    with applied(model, learned.without(["f0"])), pytest.raises(InputError, match="is edited; undo the edits first"):
        sharded(model, ROWS, slices=2)
