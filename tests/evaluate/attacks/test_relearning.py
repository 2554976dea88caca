"""Relearning against a loop of AdamW written out, areas by hand, and what must be equal between a model and its control."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import attacks as slow
from tests.reference.adamw import adamw
from tests.reference.answers import answer_statistics
from tests.tiny import tiny, tiny_sets
from workbench.core.errors import DataError, InputError, MismatchError, UnknownNameError
from workbench.core.records import Example, Provenance
from workbench.evaluate.attacks import Relearning, relearning, text_rows
from workbench.evaluate.attacks.relearning import halves
from workbench.load.batches import encode, encode_all
from workbench.trace.forward import row_nll


def forget_set():
    """Seven rows of unequal length."""
    forget, retain = tiny_sets()
    return wb.Examples([*forget, *retain], "forget")


def others():
    pairs = [("the grass is", "green and green"), ("a sea", "no"), ("what is a color", "very blue")]
    return wb.Examples([Example(f"o{i}", p, r) for i, (p, r) in enumerate(pairs)], "others")


def record(nll, steps, kind="forget_subset", recall=None):
    nll = np.array(nll, dtype=float)
    ids = tuple(f"r{i}" for i in range(nll.shape[2]))
    return Relearning(kind, tuple(range(len(nll))), tuple(steps), ids, nll, recall, (("t",),), Provenance("by hand", "model"))


def nll(model, rows):
    found = []
    for row in rows:
        coded = encode(model, row.prompt, row.response)
        found.append(-np.mean([t["logprob"] for t in answer_statistics(model.hf, coded.tokens, coded.start)]))
    return np.array(found)


def test_equals_adamw_written_out():
    """Four steps on batches that hold all rows: each gradient is that of the mean over the rows, whatever their order."""
    model, rows = tiny(), others()
    found = relearning(
        model, forget_set(), rows, kind="retain_only", steps=4, every=2, lr=3e-3, batch_size=3, seeds=[0], held_out=0.4
    )
    held = halves(forget_set(), 0.4)[1]
    assert found.ids == tuple(held.ids)
    assert found.steps == (0, 2, 4)
    seen = [nll(model, held)]
    weights = {name: p.detach().clone().numpy().ravel() for name, p in model.hf.named_parameters()}
    gradients = {name: [] for name in weights}
    # twelve rows make one epoch, each of three rows four times, in an order fixed by the seed
    from workbench.core.numerics import permutation

    taken = permutation(3, 0)
    order = [taken[i % 3] for i in permutation(12, 0)]
    coded = encode_all(model, rows)
    for step in range(4):
        model.hf.zero_grad()
        loss = 0
        for i in order[3 * step : 3 * step + 3]:
            tokens, start = coded[i].tokens, coded[i].start
            logp = model.hf(torch.tensor([tokens])).logits[0].log_softmax(-1)
            loss = loss - torch.stack([logp[p - 1, tokens[p]] for p in range(start, len(tokens))]).mean() / 3
        loss.backward()
        norm = np.sqrt(sum(float(p.grad.square().sum()) for p in model.hf.parameters()))
        for name, p in model.hf.named_parameters():
            gradients[name].append(p.grad.numpy().ravel().copy() * min(1.0, 1.0 / (norm + 1e-6)))
            p.data = torch.from_numpy(adamw(weights[name], gradients[name], [3e-3] * (step + 1))).view(p.shape)
        if step % 2:
            seen.append(nll(model, held))
    np.testing.assert_allclose(found.nll[0], np.stack(seen), rtol=1e-7)  # float64 throughout; sums in another order


def test_the_model_is_left_as_it_was_and_a_seed_gives_the_same():
    model = tiny()
    before = model.fingerprint()
    one, two = (relearning(model, forget_set(), steps=3, every=1, lr=1e-2, batch_size=2, seeds=[0, 1]) for _ in range(2))
    assert model.fingerprint() == before
    np.testing.assert_array_equal(one.nll, two.nll)
    assert not np.array_equal(one.nll[0, -1], one.nll[1, -1])
    np.testing.assert_array_equal(one.nll[0, 0], one.nll[1, 0])  # before the first step there is no seed
    alone = relearning(model, forget_set(), steps=3, every=1, lr=1e-2, batch_size=2, seeds=[1])
    np.testing.assert_array_equal(alone.nll[0], one.nll[1])


def test_a_point_is_the_model_after_that_many_steps():
    model = tiny()
    whole = relearning(model, forget_set(), steps=5, every=2, lr=1e-2, batch_size=2, seeds=[0])
    assert whole.steps == (0, 2, 4, 5)
    held = halves(forget_set())[1]
    np.testing.assert_allclose(whole.nll[0, 0], row_nll(model, encode_all(model, held)).numpy(), rtol=1e-12)


def test_halves_share_no_row_and_do_not_depend_on_the_model():
    shown, measured = halves(forget_set(), 0.3)
    assert len(measured) == 2
    assert sorted([*shown.ids, *measured.ids]) == sorted(forget_set().ids)
    assert halves(forget_set(), 0.3)[1].ids == measured.ids
    for share in (0.0, 1.0, 0.01, 0.99, -1.0):
        with pytest.raises(InputError, match="leaves at least one row on each side"):
            halves(forget_set(), share)


def test_training_on_half_of_the_answers_teaches_that_half():
    """Rows trained on would be learned; the curve speaks of the other ones."""
    found = relearning(tiny(), forget_set(), steps=30, every=30, lr=1e-2, batch_size=4, seeds=[0])
    shown, measured = halves(forget_set())
    assert found.trained == (tuple(shown.ids),)
    assert set(found.trained[0]).isdisjoint(found.ids)
    assert found.ids == tuple(measured.ids)


def test_every_seed_draws_from_all_rows(monkeypatch):
    """Of more rows than a run can take each seed takes others, from all of them and not the first."""
    module = sys.modules[relearning.__module__]
    words = enumerate(("blue", "green", "sea", "sky") * 3)
    rows = wb.Examples([Example(f"o{i}", "what is", f"no {word}") for i, word in words], "others")
    taken, real = [], module.AnswerTask
    monkeypatch.setattr(module, "AnswerTask", lambda model, coded: taken.append(coded) or real(model, coded))
    found = relearning(tiny(), forget_set(), rows, kind="retain_only", steps=2, every=2, batch_size=2, seeds=[0, 1, 2])
    assert [len(one) for one in found.trained] == [4, 4, 4]  # four of twelve
    assert len(set(found.trained)) > 1
    assert max(rows.ids.index(name) for one in found.trained for name in one) > 3
    coded = encode_all(tiny(), rows)
    for ids, one in zip(found.trained, taken, strict=True):
        assert sorted(c.tokens for c in one) == sorted(coded[rows.ids.index(name)].tokens for name in ids)
    whole = relearning(tiny(), forget_set(), rows, kind="retain_only", steps=5, every=5, batch_size=3, seeds=[0])
    assert whole.trained == (tuple(rows.ids),)


def test_areas_by_hand():
    # NLL ln 2, ln 4, ln 1 at steps 0, 2, 3: probability 1/2, 1/4, 1; area (2 * 3/8 + 1 * 5/8) / 3 = 11/24
    found = record([[[np.log(2)], [np.log(4)], [0.0]]], [0, 2, 3])
    np.testing.assert_allclose(found.area(), [[11 / 24]])
    np.testing.assert_allclose(found.area("nll"), [[(2 * 1.5 * np.log(2) + np.log(2)) / 3]])
    other = record([[[np.log(2)], [np.log(2)], [np.log(2)]]], [0, 2, 3])
    np.testing.assert_allclose(found.gap(other), [[11 / 24 - 1 / 2]])
    np.testing.assert_allclose(found.gap(found), [[0]])


def test_areas_equal_the_loop():
    rng = np.random.default_rng(0)
    found = record(rng.uniform(0.1, 3, (2, 4, 3)), [0, 1, 4, 6])
    for seed in range(2):
        for row in range(3):
            assert found.area()[seed, row] == pytest.approx(slow.area(np.exp(-found.nll[seed, :, row]), [0, 1, 4, 6]), rel=1e-12)


def test_seeds_are_rows_of_the_result_and_not_only_their_mean():
    found = record([[[1.0, 2.0], [0.5, 1.0]], [[1.0, 2.0], [0.1, 0.2]]], [0, 4])
    rows = found.measurements()
    assert rows["nll_after", "forget"].value == pytest.approx(0.45)
    assert rows["nll_after/0", "forget"].value == pytest.approx(0.75)
    assert rows["nll_after/1", "forget"].value == pytest.approx(0.15)
    assert rows["nll_before", "forget"].n == 2
    assert rows["probability_area", "forget"].value == pytest.approx(found.area().mean())
    assert len(found.frame()) == 8
    single = record([[[1.0], [0.5]]], [0, 4]).measurements()["nll_after", "forget"]
    assert np.isnan(single.low)  # one row has no interval


def test_recall_is_measured_where_it_is_asked_for():
    model = tiny(
        torch.float32
    )  # eager attention of transformers softens masks in float32, so float64 allows no padding on the left
    found = relearning(model, forget_set(), steps=2, every=1, lr=1e-2, batch_size=4, seeds=[0, 3], generate=3)
    assert found.recall.shape == found.nll.shape == (2, 3, len(found.ids))
    assert ((found.recall >= 0) & (found.recall <= 1)).all()
    assert "recall_after/3" in {row.metric for row in found.measurements()}
    assert "recall" in found.frame()
    with pytest.raises(InputError, match="nothing was generated"):
        record([[[1.0], [0.5]]], [0, 1]).area("recall")
    with pytest.raises(UnknownNameError, match="unknown measure of relearning 'loss'"):
        found.area("loss")


def test_a_gap_compares_the_same_attack_alone():
    found = record([[[1.0], [0.5]]], [0, 4])
    for change in ({"steps": (0, 5)}, {"kind": "unrelated"}, {"ids": ("x",)}, {"trained": (("u",),)}, {"seeds": (7,)}):
        with pytest.raises(MismatchError, match=f"gap: {next(iter(change))} is .* run the same attack on both"):
            found.gap(replace(found, **change))


def test_texts_become_rows():
    rows = text_rows(["Once upon a time", " I am "], "lines")
    assert [(row.id, row.prompt, row.response) for row in rows] == [("lines-0", "Once", "upon a time"), ("lines-1", "I", "am")]
    with pytest.raises(DataError, match="text 1 is 'word', expected at least two words"):
        text_rows(["two words", "word"])


def test_refusals():
    model, forget = tiny(), forget_set()
    with pytest.raises(InputError, match="kind 'retain_only' needs rows to train on"):
        relearning(model, forget, kind="retain_only")
    with pytest.raises(InputError, match="takes no `others`"):
        relearning(model, forget, others())
    held = halves(forget)[1]
    with pytest.raises(DataError, match=f"row '{held[0].id}' of others is a held-out forget row"):
        relearning(model, forget, forget, kind="unrelated")
    for name in ("steps", "every", "lr", "batch_size"):
        with pytest.raises(InputError, match=f"{name} is 0, expected a positive number"):
            relearning(model, forget, **{name: 0})
    for seeds in ([], [1, 1]):
        with pytest.raises(InputError, match="expected at least one, none twice"):
            relearning(model, forget, seeds=seeds)
