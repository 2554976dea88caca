"""Ablated value vectors: every kind against its formula, on rows, columns and all architectures."""

import pytest
import torch

from tests.edit.models import FLOAT32, direction, logits, model_of
from tests.reference import edits as truth
from tests.reference.tiny_models import tokens
from workbench import edit
from workbench.core.delta import applied
from workbench.core.errors import InputError, ShapeError, UnknownNameError

PLACES = [(1, 7), (1, 3), (2, 0)]


def vectors(model, layer):
    return model.sites.value_vectors(layer).read(model.hf).double()


def edited(model, delta, layer=1):
    with applied(model, delta):
        return vectors(model, layer)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3", "falcon"])
def test_every_kind_is_its_formula(name):
    model, u = model_of(name), direction(seed=8, site="mlp_out")
    before, r = vectors(model, 1), u.vector.double()
    others = [j for j in range(48) if j not in (3, 7)]
    cases = {
        "zero": ({}, torch.zeros(2, 32)),
        "scale": ({"factor": -0.25}, -0.25 * before[[3, 7]]),
        "project_out": ({"direction": u}, before[[3, 7]] - (before[[3, 7]] @ r)[:, None] * r),
        "mean": ({}, (sum(before) / 48).expand(2, 32)),
    }
    for kind, (options, want) in cases.items():
        found = edit.ablate_value_vectors(model, PLACES, kind=kind, **options)
        after = edited(model, found)
        torch.testing.assert_close(after[[3, 7]], want.double(), **FLOAT32)
        assert torch.equal(after[others], before[others])
        assert found.n_touched == 3 * 32
        assert torch.equal(edited(model, found, 0), vectors(model, 0))


def test_the_touched_coordinates_are_those_written_by_hand():
    for name in ("llama", "gpt2", "gpt_neox", "falcon"):
        model = model_of(name)
        found = edit.ablate_value_vectors(model, [(1, 7)], kind="zero")
        ((parameter, change),) = found.changes.items()
        assert {(parameter, i, j) for i, j in change.dense().nonzero().tolist()} == set(truth.lines(name, "down", 1)[7])


def test_noise_is_relative_to_each_vector_and_drawn_by_its_seed():
    model = model_of("llama")
    with torch.no_grad():
        model.sites.value_vectors(1).view(model.hf)[3] *= 100
    every = [(1, j) for j in range(48)]
    before = vectors(model, 1)
    found = edit.ablate_value_vectors(model, every, std=0.3, seed=1)
    ratio = (edited(model, found) - before).norm(dim=1) / before.norm(dim=1)
    # chi with 32 degrees over sqrt(32): mean 0.992, deviation 0.125; 48 of them
    assert float(ratio.mean()) == pytest.approx(0.3 * 0.992, abs=0.3 * 0.125 / 48**0.5 * 4)
    assert float(ratio[3]) == pytest.approx(0.3, abs=0.15)
    flat = ((edited(model, found) - before) / before.norm(dim=1, keepdim=True)).flatten() * 32**0.5 / 0.3
    assert abs(float(flat.mean())) < 4 / len(flat) ** 0.5
    assert float(flat.std()) == pytest.approx(1, abs=4 / (2 * len(flat)) ** 0.5)
    same, other = (edit.ablate_value_vectors(model, every, std=0.3, seed=s) for s in (1, 2))
    assert found.id == same.id != other.id


def test_absolute_noise_is_the_published_one():
    model = model_of("gpt2")
    with torch.no_grad():
        model.sites.value_vectors(1).view(model.hf)[3] *= 100
    moved = edit.ablate_value_vectors(model, [(1, j) for j in range(48)], std=0.1, absolute=True, seed=1)
    values = next(iter(moved.changes.values())).values
    assert float(values.std()) == pytest.approx(0.1, abs=0.1 * 4 / (2 * values.numel()) ** 0.5)
    assert float(values[3].std()) == pytest.approx(0.1, abs=0.05)


def test_zero_is_ablating_the_neurons():
    model = model_of("gpt_neox")
    one, other = edit.ablate_value_vectors(model, PLACES, kind="zero"), edit.ablate_neurons(model, PLACES)
    assert one.id == other.id
    with applied(model, one):
        assert logits(model, tokens()).isfinite().all()


def test_controls():
    model = model_of("llama")
    mine, place, change = (edit.ablate_value_vectors(model, PLACES, std=0.5, control=c, seed=3) for c in ("", "place", "change"))
    assert [layer for layer, _ in place.provenance.options["edited"]] == [1, 1, 2]
    assert not {tuple(p) for p in place.provenance.options["edited"]} & set(PLACES)
    for name in mine.changes:
        one, two = mine.changes[name], change.changes[name]
        assert torch.equal(one.index, two.index)
        torch.testing.assert_close(one.values.norm(dim=0), two.values.norm(dim=0))
        assert not torch.allclose(one.values, two.values)


def test_refusals():
    model, u = model_of("llama"), direction()
    with pytest.raises(InputError, match=r"value vector \(1, 48\) does not exist; layer 1 has value vectors 0 to 47"):
        edit.ablate_value_vectors(model, [(1, 48)])
    with pytest.raises(InputError, match=r"value vector \(1, 4\) is named twice"):
        edit.ablate_value_vectors(model, [(1, 4), (1, 4)])
    with pytest.raises(InputError, match="places is empty"):
        edit.ablate_value_vectors(model, [])
    with pytest.raises(UnknownNameError, match="unknown kind of ablation 'noisy'. Did you mean 'noise'"):
        edit.ablate_value_vectors(model, [(1, 4)], kind="noisy")
    with pytest.raises(InputError, match="std is -1.0 and factor 0.5; expected finite numbers, std >= 0"):
        edit.ablate_value_vectors(model, [(1, 4)], std=-1.0)
    with pytest.raises(InputError, match="factor nan"):
        edit.ablate_value_vectors(model, [(1, 4)], kind="scale", factor=float("nan"))
    with pytest.raises(InputError, match="direction None. A direction goes with 'project_out'"):
        edit.ablate_value_vectors(model, [(1, 4)], kind="project_out")
    with pytest.raises(InputError, match="kind is 'zero' and direction"):
        edit.ablate_value_vectors(model, [(1, 4)], kind="zero", direction=u)
    with pytest.raises(ShapeError, match="the direction has 8 features, value vectors have 32"):
        edit.ablate_value_vectors(model, [(1, 4)], kind="project_out", direction=direction(width=8))
