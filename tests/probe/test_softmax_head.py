"""Model Surgery's softmax head: the direction it means, and what of it was never trained."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.tiny import tiny
from workbench.core.errors import InputError, NumericsError, ShapeError, UnknownNameError
from workbench.probe import load_softmax_head
from workbench.probe.softmax_head import UNTRAINED_NORM

D = 8


@pytest.fixture
def head():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(D, 2)


def saved(path, tensors):
    torch.save(tensors, path)
    return path


def test_the_direction_is_that_of_the_log_odds(head, tmp_path):
    """ln p1 / p0 = (W1 - W0) x + b1 - b0, so the softmax is the sigmoid of one logit along the direction."""
    found = load_softmax_head(saved(tmp_path / "head.pt", head.state_dict()), layer=3)
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    notes = found.provenance.notes
    logit = 2 * (notes["difference_norm"] * (x @ found.vector.double()) + notes["intercept"])
    expected = head.double()(x).softmax(-1)[:, 1]
    # the direction is stored in float32
    np.testing.assert_allclose(torch.sigmoid(logit), expected.detach(), rtol=1e-6)
    assert (found.site, found.layer) == ("resid_post", 3)
    assert notes["positive"] == "row 1"


def test_by_hand(tmp_path):
    """W0 = (1, 2), W1 = (7, 10): half the difference (3, 4), of norm 5; common (4, 6): 52 of the 149 of W1; the cosine
    27 / sqrt(5 * 149). b = (1, 4): 3/2."""
    held = {"weight": torch.tensor([[1.0, 2], [7, 10]]), "bias": torch.tensor([1.0, 4])}
    found = load_softmax_head(saved(tmp_path / "head.pt", held), layer=0)
    np.testing.assert_allclose(found.vector, [0.6, 0.8], rtol=1e-6)
    notes = found.provenance.notes
    expected = {"difference_norm": 5, "common_norm": math.sqrt(52), "common_share_of_row_1": 52 / 149, "intercept": 1.5}
    for key, value in (expected | {"cosine_of_rows": 27 / math.sqrt(5 * 149)}).items():
        assert notes[key] == pytest.approx(value), key


def test_the_common_part_is_never_trained_and_has_the_norm_of_an_initialization():
    """E |C|^2 = d * 1/(6d) = 1/6 at any width; the published head, 4,096 wide, has 0.4039."""
    assert pytest.approx(0.408, abs=5e-4) == UNTRAINED_NORM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norms = [float((w[0] + w[1]).norm() / 2) for w in (nn.Linear(4096, 2).weight.detach() for _ in range(20))]
        # sd of one: the squares of 4,096 entries vary by about their mean, 1/sqrt(4096) of 1/6, which is .003 of the norm
        assert np.mean(norms) == pytest.approx(UNTRAINED_NORM, abs=0.003)
        trained = nn.Linear(D, 2).double()
        before = trained.weight.detach().clone()
        x, y = torch.randn(64, D).double() + 1, torch.randint(0, 2, (64,))
        optimizer = torch.optim.Adam(trained.parameters(), lr=0.05)
        for _ in range(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(x), y).backward()
            optimizer.step()
    moved = trained.weight.detach() - before
    assert moved.norm() > 0.5
    assert float((moved[0] + moved[1]).norm()) < 1e-6  # Adam's steps are opposite but for its epsilon


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w, b: w,
        lambda w, b: {"weight": w, "bias": b},
        lambda w, b: OrderedDict({"mlp.weight": w, "mlp.bias": b}),
        lambda w, b: {"state": {"mlp": {"weight": w, "bias": b}}, "epoch": 8},
        lambda w, b: {"weight": w.half()},
    ],
    ids=["tensor", "state dict", "module inside", "nested", "half"],
)
def test_however_it_was_saved(head, tmp_path, wrap):
    held = wrap(head.weight.detach(), head.bias.detach())
    found = load_softmax_head(saved(tmp_path / "head.pt", held), layer=1, d_model=D)
    half = (head.weight[1] - head.weight[0]).detach()
    np.testing.assert_allclose(found.vector, half / half.norm(), atol=1e-3)  # half precision
    has_bias = isinstance(held, dict) and set(held) != {"weight"}
    assert (found.provenance.notes["intercept"] is not None) == has_bias


def test_safetensors(head, tmp_path):
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    one = load_softmax_head(tmp_path / "head.safetensors", layer=0)
    other = load_softmax_head(saved(tmp_path / "head.pt", head.state_dict()), layer=0)
    assert torch.equal(one.vector, other.vector)


def test_a_model_checks_width_layer_and_site(head, tmp_path):
    model, path = tiny(), saved(tmp_path / "head.pt", head.state_dict())
    assert load_softmax_head(path, layer=1, model=model).provenance.model == model.fingerprint()
    with pytest.raises(InputError, match="layers 0 to 1"):
        load_softmax_head(path, layer=2, model=model)
    with pytest.raises(UnknownNameError, match="unknown site 'blocks.1.resid_pots'"):
        load_softmax_head(path, layer=1, site="resid_pots", model=model)
    with pytest.raises(ShapeError, match="the head reads 8 features, but 16 were expected"):
        load_softmax_head(path, layer=1, model=tiny(d_model=16))
    with pytest.raises(ShapeError, match="the head reads 8 features, but 20 were expected"):
        load_softmax_head(path, layer=1, site="mlp.post", model=model)


def test_refusals(head, tmp_path):
    path = tmp_path / "head.pt"
    with pytest.raises(InputError, match="no such file"):
        load_softmax_head(path, layer=0)
    ran = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return ran.write_text, ("it ran",)

    with pytest.raises(InputError, match="holds more than tensors .*can run code when they are read, so it was not read"):
        load_softmax_head(saved(path, {"weight": head.weight.detach(), "more": Code()}), layer=0)
    with pytest.raises(InputError, match=r"holds more than tensors.* Save head.state_dict\(\), not the module"):
        load_softmax_head(saved(path, head), layer=0)
    assert not ran.exists()
    with pytest.raises(ShapeError, match=r"the weight is \(3, 8\), expected \[2, d_model\]"):
        load_softmax_head(saved(path, {"weight": torch.zeros(3, 8)}), layer=0)
    with pytest.raises(ShapeError, match=r"the weight is \(2,\)"):
        load_softmax_head(saved(path, {"weight": torch.zeros(2)}), layer=0)
    with pytest.raises(ShapeError, match="the head reads 8 features, but 9 were expected"):
        load_softmax_head(saved(path, head.state_dict()), layer=0, d_model=9)
    two = {"a.weight": torch.zeros(2, 8), "b.weight": torch.zeros(2, 8)}
    with pytest.raises(InputError, match="expected one tensor named weight, found 2 .the file holds a.weight, b.weight"):
        load_softmax_head(saved(path, two), layer=0)
    with pytest.raises(InputError, match="expected one tensor named weight, found 0 .the file holds bias"):
        load_softmax_head(saved(path, {"bias": torch.zeros(2)}), layer=0)
    with pytest.raises(InputError, match="the two rows are equal"):
        load_softmax_head(saved(path, {"weight": torch.ones(2, 8)}), layer=0)
    with pytest.raises(NumericsError, match="weight: 16 of 16 values are NaN"):
        load_softmax_head(saved(path, {"weight": torch.full((2, 8), torch.nan)}), layer=0)
    for content, match in ((b"", "torch cannot read it .EOFError"), (b"no pickle", "or is no file of torch's")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=match):
            load_softmax_head(path, layer=0)
    (tmp_path / "head.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_softmax_head(tmp_path / "head.safetensors", layer=0)
