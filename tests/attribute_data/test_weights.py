"""Where the gradients of rows lie: shares of tensors, layers, heads and rows against plain autograd."""

import numpy as np
import pytest
import torch

from tests.attribute_data.plain import plain
from tests.reference import attribution as truth
from tests.reference.tiny_models import tiny_model
from tests.tiny import tiny, tiny_sets
from workbench import wrap
from workbench.attribute.data import data_to_weights, weights
from workbench.core.errors import DataError, InputError, NumericsError, UnknownNameError


def squares(model, rows):
    return [{name: g**2 for name, g in one.items()} for one in truth.example_gradients(model.hf, plain(model, rows))]


def total(one):
    return sum(float(value.sum()) for value in one.values())


@pytest.mark.parametrize("size", [64, 2])
def test_tensors_and_layers(size, exact_norms, monkeypatch):
    monkeypatch.setattr(weights, "_AT_ONCE", size)
    model, (_, rows) = tiny(), tiny_sets()
    each = squares(model, rows)
    found = data_to_weights(model, rows)
    assert found.parts == tuple(model.shapes())
    np.testing.assert_allclose(found.shares, [[float(v.sum()) / total(one) for v in one.values()] for one in each], rtol=1e-9)
    np.testing.assert_allclose(found.norms, [total(one) ** 0.5 for one in each], rtol=1e-9)
    layers = data_to_weights(model, rows, by="layer")
    assert layers.parts == ("model.embed_tokens.weight", "model.layers.0", "model.layers.1", "model.norm.weight", "lm_head.weight")
    first = [sum(float(v.sum()) for name, v in one.items() if ".layers.0." in name) / total(one) for one in each]
    np.testing.assert_allclose(layers.shares[:, 1], first, rtol=1e-9)
    for one in (found, layers):
        np.testing.assert_allclose(one.shares.sum(1), 1.0, rtol=1e-12)
        assert sum(one.weights) == sum(p.numel() for p in model.hf.parameters())


def test_heads(exact_norms):
    """Head 3 of layer 1: rows 6 and 7 of W_Q and columns 6 and 7 of W_O; its keys and values are read by head 2 too."""
    model, (_, rows) = tiny(), tiny_sets()
    found = data_to_weights(model, rows, by="head")
    assert found.parts == ("0.0", "0.1", "0.2", "0.3", "1.0", "1.1", "1.2", "1.3")
    assert set(found.weights) == {2 * 8 + 8 * 2}
    for i, one in enumerate(squares(model, rows)):
        layer = "model.layers.1.self_attn."
        expected = float(one[layer + "q_proj.weight"][6:8].sum() + one[layer + "o_proj.weight"][:, 6:8].sum()) / total(one)
        assert found.shares[i, 7] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_rows_of_matrices(name):
    model, (_, rows) = wrap(tiny_model(name), tiny().tokenizer), tiny_sets()
    found = data_to_weights(model, rows, by="row")
    each = squares(model, rows)
    path = "transformer.h.1.mlp.c_fc.weight" if name == "gpt2" else "model.layers.1.mlp.up_proj.weight"
    matrix = each[2][path].sum(0 if name == "gpt2" else 1) / total(each[2])  # Conv1D is stored [in out]
    assert found.shares[2, found.parts.index(f"{path}[5]")] == pytest.approx(float(matrix[5]), rel=1e-4)  # RMSNorm is float32
    np.testing.assert_allclose(found.shares.sum(1), 1.0, rtol=1e-9)
    assert sum(found.weights) == sum(p.numel() for p in model.hf.parameters())
    assert found.weights[found.parts.index(f"{path}[5]")] == 32


def test_frame_top_and_against():
    model, (forget, retain) = tiny(), tiny_sets()
    found = data_to_weights(model, forget, against=retain)
    other = data_to_weights(model, retain)
    np.testing.assert_allclose(found.against, other.mean(), rtol=1e-12)
    frame = found.frame()
    assert list(frame.columns) == ["id", "part", "share", "size", "against"]
    assert len(frame) == 3 * len(found.parts)
    assert frame["share"][frame["id"] == "f1"].tolist() == found.shares[1].tolist()
    assert frame["size"][frame["id"] == "f0"].sum() == pytest.approx(1.0)
    assert found.top(1) == [found.parts[int((found.mean() - other.mean()).argmax())]]
    assert other.top(1) == [other.parts[int(other.mean().argmax())]]
    html = found._repr_html_()
    assert "<svg" in html
    assert "exceed their share" in html


def test_what_is_refused():
    model, (_, rows) = tiny(), tiny_sets()
    with pytest.raises(InputError, match="names leaves out model.layers.0"):
        data_to_weights(model, rows, by="head", names=["lm_head.weight"])
    with pytest.raises(UnknownNameError, match="parameter in names"):
        data_to_weights(model, rows, names=["lm_head"])
    for by in ("head", "tensor"):
        with pytest.raises(UnknownNameError, match="parameter in names 'lm_head.wieght'. Did you mean 'lm_head.weight'"):
            data_to_weights(model, rows, names=["lm_head.wieght"], by=by)
        with pytest.raises(DataError, match="data_to_weights: names is empty"):
            data_to_weights(model, rows, names=[], by=by)
    with torch.no_grad():
        model.hf.lm_head.weight.zero_()
        model.hf.model.norm.weight.zero_()
    with pytest.raises(NumericsError, match="the gradient of row 'r0' is zero"):
        data_to_weights(model, rows)
