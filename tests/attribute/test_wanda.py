"""Wanda: weight times the size of its input, linear maps only, compared within an output."""

import pytest
import torch

from tests.attribute.plain import plain
from tests.reference import attribution as truth
from tests.reference.tiny_models import tiny_model
from tests.tiny import tiny, tiny_sets
from workbench import attribute, wrap
from workbench.core.errors import InputError, ModelError


def test_formula():
    model, (forget, retain) = tiny(), tiny_sets()
    found = attribute.wanda(model, forget, retain)
    for name in found:
        size = truth.input_mean_squares(model.hf, plain(model, forget), name.removesuffix(".weight")).sqrt()
        expected = model.hf.get_parameter(name).detach().abs() * size
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-8)  # scores are float32


def test_only_linear_maps_have_inputs():
    model = tiny()
    found = attribute.wanda(model, *tiny_sets())
    linear = {name for name, p in model.hf.named_parameters() if p.ndim == 2 and "embed" not in name}
    assert set(found) == linear
    share = sum(model.hf.get_parameter(n).numel() for n in linear) / sum(p.numel() for p in model.hf.parameters())
    assert found.provenance.notes["coverage"] == pytest.approx(share)
    assert found.coverage == pytest.approx(share)
    with pytest.raises(InputError, match="no linear map"):
        attribute.wanda(model, *tiny_sets(), include="*norm*")


def test_a_transposed_matrix():
    model = wrap(tiny_model("gpt2"), tiny().tokenizer)
    found = attribute.wanda(model, *tiny_sets())
    name = "transformer.h.1.mlp.c_fc.weight"
    size = truth.input_mean_squares(model.hf, plain(model, tiny_sets()[0]), name.removesuffix(".weight")).sqrt()
    expected = model.hf.get_parameter(name).detach().abs() * size[:, None]
    torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-8)


def test_a_tied_embedding_is_scored_as_the_linear_map_it_is():
    model = wrap(tiny_model("gpt2"), tiny().tokenizer)
    found = attribute.wanda(model, *tiny_sets())
    size = truth.input_mean_squares(model.hf, plain(model, tiny_sets()[0]), "lm_head").sqrt()
    expected = model.hf.get_parameter("transformer.wte.weight").detach().abs() * size
    torch.testing.assert_close(found["transformer.wte.weight"].double(), expected, rtol=1e-5, atol=1e-8)
    assert "transformer.wpe.weight" not in found


def test_a_model_that_mixes_up_rows_is_refused():
    model = wrap(tiny_model("opt"), tiny().tokenizer)
    with pytest.raises(ModelError, match="fc1.*rows cannot be told apart"):
        attribute.wanda(model, *tiny_sets(), include="*.fc1.*")
