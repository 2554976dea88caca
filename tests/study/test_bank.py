"""The bank of retrains: every subset as asked, losses as a direct training gives them, a killed one goes on to the same bits."""

import json
from hashlib import sha256

import numpy as np
import pytest

import workbench as wb
from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError, MismatchError, NumericsError
from workbench.load.batches import encode_all
from workbench.study import bank as module
from workbench.study.bank import Bank, Bench, Recipe, draw_subsets, fill, query_losses, retrain, small_start
from workbench.study.intervene import row_nll
from workbench.train.loop import fit

RECIPE = Recipe(epochs=1, batch_size=8, lr=5e-3)


@pytest.fixture(scope="module")
def sets(root):
    """24 training rows and 5 queries."""
    train, query = (wb.examples(root / f"data/capitals/{name}.jsonl") for name in ("train", "query"))
    return train[:24], query[:5]


@pytest.fixture(scope="module")
def start(sets):
    return small_start(*sets)


def test_the_task_is_what_its_card_says(root):
    folder = root / "data/capitals"
    card = (folder / "CARD.md").read_text()
    rows = {name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "query")}
    for name in rows:
        assert sha256((folder / f"{name}.jsonl").read_bytes()).hexdigest() in card
    assert (len(rows["train"]), len(rows["query"])) == (240, 20)
    assert sum(not row["clean"] for row in rows["train"]) == 48
    right = {row["group"]: row["response"] for row in rows["query"]}
    assert all((row["response"] == right[row["group"]]) == row["clean"] for row in rows["train"])
    assert not {row["prompt"] for row in rows["train"]} & {row["prompt"] for row in rows["query"]}
    assert all(sum(row["group"] == group for row in rows["train"]) == 12 for group in right)


def test_subsets():
    found = draw_subsets(40, 6, share=0.5, seed=3)
    assert found.sum(axis=1).tolist() == [20] * 6
    assert len({row.tobytes() for row in found}) == 6
    np.testing.assert_array_equal(found[:4], draw_subsets(40, 4, share=0.5, seed=3))  # a larger bank goes on with a smaller one
    assert not np.array_equal(found, draw_subsets(40, 6, share=0.5, seed=4))
    many = draw_subsets(10, 2000, share=0.3)
    np.testing.assert_allclose(many.mean(axis=0), 0.3, atol=0.05)  # standard error 0.01
    for share in (0.01, 1.0):
        with pytest.raises(InputError, match="expected at least 1 and fewer than all"):
            draw_subsets(10, 2, share=share)


def test_the_small_start(start, sets):
    assert sum(p.numel() for p in start.hf.parameters()) < 150_000
    assert (start.n_layers, start.d_model) == (2, 64)
    assert start.tokenizer.chat_template is None
    assert small_start(*sets).fingerprint() == start.fingerprint()
    assert small_start(*sets, seed=1).fingerprint() != start.fingerprint()
    longest = max(len(row.tokens) for rows in sets for row in encode_all(start, rows))
    assert longest <= start.context


def test_losses_are_those_of_a_training_by_hand(start, sets, tmp_path):
    train, query = sets
    on = Bench(tmp_path, start, train, query, RECIPE)
    used = draw_subsets(24, 1)[0]
    found = on.losses(used, seed=4)
    rows = [row for row, kept in zip(on.rows, used, strict=True) if kept]
    trained = retrain(start, rows, RECIPE, seed=4)
    assert trained.audit.steps == 2  # 12 rows in batches of 8
    with applied(start, trained.delta):
        np.testing.assert_array_equal(found, query_losses(start, on.queries))
        np.testing.assert_allclose(found, row_nll(start, query), rtol=1e-6)  # float32, batched otherwise
    assert not np.array_equal(found, query_losses(start, on.queries))
    assert not np.array_equal(found, on.losses(used, seed=5))


def test_killed_and_resumed(start, sets, tmp_path, monkeypatch):
    """Raised in the middle, then gone on with: the same bits as a bank in one go, and nothing trained twice."""
    train, query = sets
    subsets, seeds, calls = draw_subsets(24, 3), (0, 1), []

    def counted(*args, **kwargs):
        calls.append(kwargs["seed"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    whole = fill(Bench(tmp_path / "whole", start, train, query, RECIPE), subsets, seeds, show=False)
    monkeypatch.setattr(module, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        fill(Bench(tmp_path / "part", start, train, query, RECIPE), subsets, seeds, show=False)
    resumed = fill(Bench(tmp_path / "part", start, train, query, RECIPE), subsets, seeds, show=False)
    assert len(calls) == 4 + 3  # three were kept
    assert resumed.losses.tobytes() == whole.losses.tobytes()
    assert whole.losses.shape == (3, 2, 5)
    assert start.fingerprint() == start.base_fingerprint()


def test_another_recipe_is_another_bank(start, sets, tmp_path):
    train, query = sets
    used = draw_subsets(24, 1)[0]
    first = Bench(tmp_path, start, train, query, RECIPE).losses(used, 0)
    other = Bench(tmp_path, start, train, query, Recipe(epochs=2, batch_size=8, lr=5e-3)).losses(used, 0)
    assert not np.array_equal(first, other)
    assert len(list((tmp_path / "points").iterdir())) == 2


def test_saved_and_read(tmp_path):
    bank = Bank(np.eye(3, 4) > 0, np.arange(12.0).reshape(3, 2, 2), ("q", "r"), ("a", "b", "c", "d"), (0, 7))
    bank.save(tmp_path / "bank.safetensors")
    again = Bank.load(tmp_path / "bank.safetensors")
    np.testing.assert_array_equal(again.subsets, bank.subsets)
    np.testing.assert_array_equal(again.losses, bank.losses)
    assert (again.query, again.train, again.seeds) == (bank.query, bank.train, bank.seeds)
    assert repr(again) == "Bank(3 subsets x 2 seeds, 2 queries, 4 training rows)"


def test_a_loss_that_is_no_number(start, sets, tmp_path, monkeypatch):
    """Model and query are named, and nothing is kept."""
    train, query = sets
    on = Bench(tmp_path, start, train, query, RECIPE)
    used = draw_subsets(24, 1)

    def overflown(model, queries):
        if any(row.id == query[3].id for row in queries):
            raise NumericsError("answer_logprobs: row 1 of the batch has a log-probability that is NaN or infinite.")
        return np.zeros(len(queries))

    monkeypatch.setattr(module, "query_losses", overflown)
    with pytest.raises(NumericsError, match=rf"bank: model 0, trained on 12 rows with seed 7: query '{query[3].id}': answer_log"):
        fill(on, used, (7,), show=False)
    assert not (tmp_path / "points").exists()
    losses = np.zeros((2, 1, 3))
    losses[1, 0, 2] = np.inf
    with pytest.raises(NumericsError, match="bank: model 1, seed 7, has a loss of inf on 'c'"):
        Bank(np.eye(2, 4) > 0, losses, ("a", "b", "c"), ("r", "s", "t", "u"), (7,))


def test_what_cannot_be_a_bank(start, sets, tmp_path):
    train, query = sets
    twice = wb.Examples([*query, train[0]], "query")
    with pytest.raises(DataError, match=rf"1 queries are training rows too: {train[0].id} = {train[0].id}"):
        Bench(tmp_path, start, train, twice, RECIPE)
    trained = retrain(start, encode_all(start, train)[:8], RECIPE, seed=0)
    with applied(start, trained.delta), pytest.raises(MismatchError, match="edit.s. are applied to the start"):
        Bench(tmp_path, start, train, query, RECIPE)
