"""What every attribution promises: order and micro-batch size do not matter, doubling both sets changes nothing.

A member is under this contract by being registered; one without a test file of its own fails by name.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny, tiny_sets
from workbench import attribute
from workbench.core.errors import DataError
from workbench.core.records import Examples
from workbench.core.registry import attribution

MEMBERS = list(attribution)
OWN_FILE = {"magnitude": "controls", "random": "controls", "saliency": "first_order", "snip": "first_order"} | {
    "fisher_ratio": "fisher",
    "forget_retain_cosine": "cosine",
}
WHOLE = [member for member in MEMBERS if member.name != "wanda"]  # which scores linear maps only


def scores(member, forget, retain, **options):
    return member.function(tiny(), forget, retain, **options)


def doubled(rows):
    return Examples([*rows, *(replace(row, id=row.id + "'") for row in rows)], rows.name)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_promises(member):
    forget, retain = tiny_sets()
    one = scores(member, forget, retain)
    variants = [scores(member, forget[::-1], retain[::-1]), scores(member, doubled(forget), doubled(retain))]
    if "batch_tokens" in member.options:
        variants.append(scores(member, forget, retain, batch_tokens=1))
    for other in variants:
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("member", WHOLE, ids=lambda m: m.name)
def test_every_parameter_has_a_score_and_the_model_is_left_alone(member):
    model, (forget, retain) = tiny(), tiny_sets()
    before = {n: p.detach().clone() for n, p in model.hf.named_parameters()}
    found = member.function(model, forget, retain)
    assert list(found) == list(before)
    assert all(found[n].shape == before[n].shape and found[n].dtype == torch.float32 for n in before)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.hf.named_parameters())
    assert found.provenance.model == model.fingerprint()


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_sets_that_share_rows_are_refused(member):
    forget, _ = tiny_sets()
    with pytest.raises(DataError, match="share 3 rows"):
        member.function(tiny(), forget, forget)


def test_every_member_is_exported_and_has_a_test_file():
    assert set(attribution.names()) <= set(attribute.__all__)
    for name in attribution.names():
        assert (Path(__file__).parent / f"test_{OWN_FILE.get(name, name)}.py").exists(), f"{name} has no test file"
