"""A second model: checked, or made by a change that is gone afterwards."""

import pytest
import torch

from tests.tiny import tiny
from workbench.core.delta import Delta
from workbench.core.errors import MismatchError
from workbench.core.records import Provenance
from workbench.trace.beside import beside


def change(model, size=0.1):
    name = "model.layers.0.mlp.down_proj.weight"
    return Delta.of({name: torch.full(model.shapes()[name], size)}, Provenance("by hand", model.base_fingerprint()))


def test_a_change_is_applied_and_gone_again():
    model = tiny()
    before, delta = model.fingerprint(), change(model)
    with beside(model, delta) as other:
        assert other is model
        assert other.fingerprint() != before
    assert model.fingerprint() == before


def test_another_model_is_handed_on():
    model, second = tiny(), tiny(seed=1)
    with beside(model, second) as other:
        assert other is second


def test_models_that_cannot_be_compared_are_refused():
    model = tiny()
    with (
        pytest.raises(MismatchError, match="'tiny' has 3 layers of width 8, 'tiny' has 2 of width 8"),
        beside(model, tiny(n_layers=3)),
    ):
        pass
    words = tiny()
    words.tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(MismatchError, match="turn text into different tokens"), beside(model, words):
        pass
    with pytest.raises(MismatchError, match="belongs to model"), beside(model, change(tiny(seed=1))):
        pass
