"""What every score of rows promises: padding side, batches and order do not matter, and a batch gives what one by one gives.

A member is under this contract by being registered; one without a test file of its own fails by name.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.score.cases import small, tiny_pairs
from tests.tiny import tiny_sets
from workbench import score as package
from workbench.core.registry import example_score
from workbench.core.row_scores import RowScores

MEMBERS = list(example_score)
OWN_FILE = dict.fromkeys(("loss", "el2n", "grad_norm", "length"), "rows")
RTOL, ATOL = 1e-9, 1e-11  # float64 models; a score may be a small difference of large numbers
by_name = pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)


def rows_of(member):
    return tiny_pairs() if member.about["rows"] == "pairs" else tiny_sets()[1]


def assert_same(one, other):
    np.testing.assert_allclose(other.values, one.values, rtol=RTOL, atol=ATOL)
    for name in one.columns:
        np.testing.assert_allclose(other.columns[name], one.columns[name], rtol=RTOL, atol=ATOL, err_msg=name)


@by_name
def test_a_record_of_the_rows(member):
    rows = rows_of(member)
    found = member.function(small(), rows)
    assert isinstance(found, RowScores)
    assert found.name == member.name
    assert found.ids == tuple(rows.ids)
    assert found.values.dtype == np.float64
    assert found.higher
    assert found.provenance.method == member.name
    assert np.isfinite(found.values).all()


@by_name
def test_batches_and_padding_change_nothing(member):
    model, rows = small(), rows_of(member)
    whole = member.function(model, rows)
    given = {"batch_tokens": (1, 24), "batch_size": (1, 3), "side": ("left",)}
    tried = [(key, value) for key, values in given.items() if key in member.options for value in values]
    for key, value in tried:
        assert_same(whole, member.function(model, rows, **{key: value}))
    assert tried or member.name == "length", f"{member.name} has no option that says how it is batched"


@by_name
def test_one_by_one(member):
    model, rows = small(), rows_of(member)
    whole = member.function(model, rows)
    for i in range(len(rows)):
        alone = member.function(model, rows[i : i + 1])
        np.testing.assert_allclose(alone.values[0], whole.values[i], rtol=RTOL, atol=ATOL)


@by_name
def test_the_order_of_the_rows_does_not_matter(member):
    model, rows = small(), rows_of(member)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    whole, mixed = member.function(model, rows), member.function(model, rows.take(order))
    np.testing.assert_allclose(mixed.values, whole.values[order], rtol=RTOL, atol=ATOL)


@by_name
def test_the_model_is_left_alone(member):
    model = small()
    before, flags = model.fingerprint(), [p.requires_grad for p in model.hf.parameters()]
    member.function(model, rows_of(member))
    assert model.fingerprint() == before
    assert [p.requires_grad for p in model.hf.parameters()] == flags
    assert all(p.grad is None for p in model.hf.parameters())


def test_every_member_is_exported_and_has_a_test_file():
    assert set(example_score.names()) <= set(package.__all__)
    for name in example_score.names():
        assert (Path(__file__).parent / f"test_{OWN_FILE.get(name, name)}.py").exists(), f"{name} has no test file"


def test_what_a_score_reads_is_said():
    assert {member.about["rows"] for member in MEMBERS} == {"examples", "pairs"}
