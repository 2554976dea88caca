"""What happened to each row: losses by their definition, discoveries by hand, and a pair of models that is one."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import workbench as wb
from tests.study.planted import (
    FORGET,
    RETAIN,
    changed_to,
    moved_a_little,
    nll,
)
from tests.tiny import tiny
from workbench.core.errors import MismatchError
from workbench.core.records import Provenance
from workbench.study.diagnose import diagnose
from workbench.study.diagnose_rows import Changed, compare, difference, discovered


@pytest.fixture
def model():
    return tiny()


@pytest.fixture
def delta(model):
    return moved_a_little(model)


def test_rows_are_measured_by_definition(model, delta):
    before = model.fingerprint()
    found = compare(model, delta, RETAIN)
    after = changed_to(model, delta)
    np.testing.assert_allclose(found.before, [nll(model, row) for row in RETAIN], rtol=1e-12)
    np.testing.assert_allclose(found.after, [nll(after, row) for row in RETAIN], rtol=1e-12)
    np.testing.assert_allclose([row.mean() for row in found.tokens], found.change, rtol=1e-9, atol=1e-12)
    assert [len(row) for row in found.tokens] == [2, 3, 3, 6]  # the words of each answer and the end
    turned = compare(model, delta, RETAIN[::-1])
    np.testing.assert_allclose(turned.change[::-1], found.change, rtol=1e-9, atol=1e-12)  # another padding, summed otherwise
    assert model.fingerprint() == before


def made_up(*changes, tokens=4):
    """Rows with these changes, every token alike."""
    values = np.array(changes)
    return Changed([f"r{i}" for i in range(len(values))], np.ones(len(values)), 1 + values, [np.full(tokens, v) for v in values])


def test_discoveries_by_hand():
    control = made_up(*([0.0] * 9 + [1.0] * 10))
    found = discovered(made_up(2.0, 0.5, -1.0), control, level=0.2)
    # conformal: 1/20, (1 + 10)/20, and 1 for the row that did not rise; times 3 / rank: 0.15, 0.825, 1
    np.testing.assert_allclose(found["p"], [0.05, 0.55, 1.0], rtol=1e-15)
    np.testing.assert_allclose(found["q"], [0.15, 0.825, 1.0], rtol=1e-15)
    assert found["forgotten"].tolist() == [True, False, False]
    np.testing.assert_allclose(found["p_improved"], [1.0, 1.0, 0.05], rtol=1e-15)  # every control row lies above -1
    assert found["improved"].tolist() == [False, False, True]
    alone = discovered(made_up(2.0, 0.5, -1.0), None, level=0.2)
    np.testing.assert_allclose(alone["p"], [1 / 16, 1 / 16, 1.0], rtol=1e-15)  # one of 2^4 sign patterns
    np.testing.assert_allclose(alone["p_improved"], [1.0, 1.0, 1 / 16], rtol=1e-15)
    # a row may lie above all control rows and still not have risen: it is not forgotten
    drift = discovered(made_up(-0.5), made_up(*[-1.0] * 99), level=0.2)
    assert not drift["forgotten"].any()


def test_a_model_after_is_its_difference(model, delta):
    found = difference(model, changed_to(model, delta))
    assert set(found.changes) == set(delta.changes)
    for name, change in found.changes.items():  # (w + d) - w in float64, kept in float32
        torch.testing.assert_close(change.dense(), delta.changes[name].dense(), rtol=1e-6, atol=1e-9)
    assert difference(model, delta) is delta


def other(model, **config):
    """A model of another make."""
    made = copy.deepcopy(model.hf.config)
    for key, value in config.items():
        setattr(made, key, value)
    return wb.wrap(LlamaForCausalLM(made).double(), model.tokenizer)


def test_models_that_are_no_pair(model, slm, delta):
    renamed = copy.deepcopy(model.tokenizer)
    renamed.chat_template = "{{ messages[0]['content'] }}"
    cases = {
        "BEFORE is a LlamaForCausalLM, AFTER a GPT2LMHeadModel": slm,
        "a vocabulary of 16 tokens, AFTER one of 20": other(model, vocab_size=20),
        "gate_proj.weight is .20, 8. in BEFORE and .12, 8. in AFTER": other(model, intermediate_size=12),
        "model.layers.1.* in BEFORE and absent in AFTER": other(model, num_hidden_layers=1),
        "torch.float64, AFTER torch.float32": tiny(torch.float32),
        "different tokenizers": wb.wrap(copy.deepcopy(model.hf), renamed),
        "the setting rms_norm_eps is": other(model, rms_norm_eps=1e-3),
        "AFTER is a Delta of model": replace(delta, provenance=Provenance("x", "another")),
    }
    for said, after in cases.items():
        with pytest.raises(MismatchError, match=said):
            diagnose(model, after, FORGET)
