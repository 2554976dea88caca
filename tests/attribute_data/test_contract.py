"""What every influence promises: order, batches and company do not matter, the model is left alone, one sign.

A member is under this contract by being registered; one without a test file of its own fails by name.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.tiny import tiny, tiny_sets
from workbench.attribute import data
from workbench.attribute.data.same_rows import same_rows
from workbench.core.records import Examples
from workbench.core.registry import influence

MEMBERS = list(influence)
OWN_FILE = {"gradient_similarity": "similarity", "random": "text_match"}


def values(member, query, train, **options):
    return member.function(tiny(n_layers=1), query, train, **options).values


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_order_and_batches_do_not_matter(member):
    query, train = tiny_sets()
    found = values(member, query, train)
    close = {"rtol": 1e-6, "atol": 1e-9}  # Llama's norms are float32 in a float64 model
    np.testing.assert_allclose(values(member, query, train[::-1])[:, ::-1], found, **close)
    np.testing.assert_allclose(values(member, query[::-1], train)[::-1], found, **close)
    for option in {"batch_tokens", "batch_size"} & set(member.options):
        np.testing.assert_allclose(values(member, query, train, **{option: 1}), found, **close)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_queries_do_not_see_each_other(member):
    query, train = tiny_sets()
    alone = values(member, query[1:2], train)
    np.testing.assert_allclose(alone, values(member, query, train)[1:2], rtol=1e-5, atol=1e-8)  # norms are float32


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.name not in ("ekfac", "text_match")], ids=lambda m: m.name)
def test_training_rows_do_not_see_each_other(member):
    """But for ekfac, whose curvature, and text_match, whose rarity of a word comes from all training rows."""
    query, train = tiny_sets()
    alone = values(member, query, train[2:3])
    np.testing.assert_allclose(alone, values(member, query, train)[:, 2:3], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_records_and_the_model_that_is_left_alone(member):
    model, (query, train) = tiny(), tiny_sets()
    before = model.fingerprint()
    found = member.function(model, query, train)
    assert (found.query, found.train) == (tuple(query.ids), tuple(train.ids))
    assert found.values.shape == (3, 4)
    assert found.values.dtype == np.float64
    assert found.provenance.method == member.name
    assert found.provenance.model == before
    assert found.provenance.data == {"query": query.fingerprint(), "train": train.fingerprint()}
    model._base = None
    assert model.fingerprint() == before
    assert all(p.requires_grad and p.grad is None for p in model.hf.parameters())
    assert not any(module._forward_hooks for module in model.hf.modules())


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.name != "random"], ids=lambda m: m.name)
def test_a_copy_of_the_query_is_its_top_proponent(member):
    query, train = tiny_sets()
    planted = Examples([*train, *(type(row)(f"copy of {row.id}", row.prompt, row.response) for row in query)], "train")
    found = member.function(tiny(), query, planted)
    for id in query.ids:
        assert found.top(id, 1) == [f"copy of {id}"]


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.name != "random"], ids=lambda m: m.name)
def test_a_query_that_is_a_training_row_is_noted(member):
    query, train = tiny_sets()
    found = member.function(tiny(n_layers=1), query, Examples([*query, train[3]], "train"))
    assert found.provenance.notes["same rows"] == "3 queries are training rows: they are their own best match"


def test_the_note_on_queries_that_are_training_rows():
    query, train = tiny_sets()
    assert same_rows(query, train) == {}
    again = Examples([*train, type(query[0])("again", query[1].prompt, query[1].response)], "train")
    assert same_rows(query, again) == {"same rows": "1 query is a training row: it is its own best match"}


def test_every_member_is_exported_and_has_a_test_file():
    assert set(influence.names()) <= set(data.__all__)
    for name in influence.names():
        assert (Path(__file__).parent / f"test_{OWN_FILE.get(name, name)}.py").exists(), f"{name} has no test file"
