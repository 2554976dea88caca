"""Forget gradient, less where its row's retain gradient agrees."""

import torch

from tests.attribute.plain import plain
from tests.reference import attribution as truth
from tests.reference.tiny_models import tiny_model
from tests.tiny import tiny, tiny_sets
from workbench import attribute, wrap


def test_formula():
    model, (forget, retain) = tiny(), tiny_sets()
    g_f, g_r = (truth.mean_gradient(model.hf, plain(model, rows)) for rows in (forget, retain))
    found = attribute.forget_retain_cosine(model, forget, retain)
    for name in g_f:
        torch.testing.assert_close(found[name].double(), truth.cosine_rows(g_f[name], g_r[name]), rtol=1e-4, atol=1e-7)


def test_rows_of_a_transposed_matrix_are_its_outputs():
    """GPT-2 stores [in, out]: a row is a stored column."""
    model = wrap(tiny_model("gpt2"), tiny().tokenizer)
    forget, retain = tiny_sets()
    g_f, g_r = (truth.mean_gradient(model.hf, plain(model, rows)) for rows in (forget, retain))
    name = "transformer.h.1.mlp.c_fc.weight"
    found = attribute.forget_retain_cosine(model, forget, retain)
    torch.testing.assert_close(found[name].double(), truth.cosine_rows(g_f[name].T, g_r[name].T).T, rtol=1e-5, atol=1e-8)
    assert name in found.transposed
