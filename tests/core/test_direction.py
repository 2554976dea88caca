"""Direction: unit norm, orientation, its random control, files."""

import pytest
import torch

import workbench as wb
from workbench.core.direction import load_directions, save_directions
from workbench.core.errors import InputError, ShapeError
from workbench.core.records import Provenance


def test_unit_vector():
    direction = wb.Direction(torch.tensor([3.0, 0.0, 4.0]), site="resid_post", layer=2)
    torch.testing.assert_close(direction.vector, torch.tensor([0.6, 0.0, 0.8]))
    assert direction.at == "blocks.2.resid_post"
    torch.testing.assert_close(direction.flipped().vector, torch.tensor([-0.6, 0.0, -0.8]))


def test_random_is_seeded_and_of_the_same_place():
    direction = wb.Direction(torch.ones(500), "mlp_in", 1, Provenance("fit", "model"))
    one, again, other = (direction.random(seed=s) for s in (0, 0, 1))
    assert torch.equal(one.vector, again.vector)
    assert (one.site, one.layer, one.provenance.model) == ("mlp_in", 1, "model")
    # the cosine of two random directions of d features has standard deviation 1 / sqrt(d) = 0.045
    assert abs(float(one.vector @ other.vector)) < 0.2
    assert abs(float(one.vector @ direction.vector)) < 0.2


def test_files(tmp_path):
    several = [wb.Direction(torch.randn(4), "resid_post", i, Provenance("fit", "m", notes={"auc": 0.9})) for i in range(3)]
    save_directions(several, tmp_path / "d.safetensors")
    back = load_directions(tmp_path / "d.safetensors")
    assert [(d.layer, d.provenance.notes["auc"]) for d in back] == [(0, 0.9), (1, 0.9), (2, 0.9)]
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(several, back, strict=True))
    with pytest.raises(InputError, match="holds 3 directions"):
        wb.Direction.load(tmp_path / "d.safetensors")
    several[1].save(tmp_path / "one.safetensors")
    assert torch.equal(wb.Direction.load(tmp_path / "one.safetensors").vector, several[1].vector)


def test_html_is_escaped():
    shown = wb.Direction(torch.ones(2), "resid_post", 0, Provenance("fit", "m", notes={"<b>": "<script>"}))._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_refusals():
    with pytest.raises(ShapeError, match="expected \\[d_model\\]"):
        wb.Direction(torch.ones(2, 2), "resid_post", 0)
    for bad in (torch.zeros(3), torch.tensor([1.0, float("nan")])):
        with pytest.raises(InputError, match="finite, non-zero"):
            wb.Direction(bad, "resid_post", 0)
