"""Directional derivatives in three ways, against a central difference in float64 that shares nothing with them."""

import pytest
import torch

from tests.reference import influence as slow
from tests.reference.tiny_models import CONFIGS, tiny_model
from tests.tiny import tiny, tiny_sets
from workbench import Delta, wrap
from workbench.core.errors import DataError, InputError, MismatchError, NumericsError, ShapeError, UnknownNameError
from workbench.core.records import Provenance
from workbench.load.batches import Encoded, encode_all
from workbench.trace import along
from workbench.trace.along import directional_derivatives, pick_method
from workbench.trace.changes import activation_change

ROWS = [
    Encoded(str(i), tokens, 3)
    for i, tokens in enumerate([[1, 2, 3, 4, 5, 6, 7], [4, 4, 5, 6, 9], [8, 9, 10, 11, 1, 1, 20, 21, 2], [3, 2, 5, 5]])
]
PLAIN = [(row.tokens, row.start) for row in ROWS]


def direction(model, *, scale=0.1, seed=0):
    source = torch.Generator().manual_seed(seed)
    return {name: (scale * torch.randn(p.shape, generator=source)).double() for name, p in model.hf.named_parameters()}


def model_of(name):
    hf = tiny_model(name)
    if name == "gemma2":  # eager attention gives NaN where padding is longer than the window
        hf.config.sliding_window = 64
        for layer in hf.model.layers:
            layer.self_attn.sliding_window = 64
    return wrap(hf, tiny().tokenizer)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("method", ["forward", "backward", "difference"])
def test_all_three_are_the_derivative(name, method):
    model = model_of(name)
    attention = model.hf.config._attn_implementation
    change = direction(model)
    embedding = model.hf.get_input_embeddings()
    if embedding.padding_idx is not None:  # autograd gives this row no gradient, whatever the loss does
        next(value for name, value in change.items() if model.hf.get_parameter(name) is embedding.weight)[embedding.padding_idx] = 0
    found = directional_derivatives(model, ROWS, change, method=method, batch_tokens=20, eps=1e-3)
    # what these architectures do in float32 (norms, rotary angles, softmax) limits differences to some 1e-6 / eps
    torch.testing.assert_close(found, slow.along(model.hf, PLAIN, change, eps=1e-3), rtol=2e-3, atol=2e-3)
    assert model.hf.config._attn_implementation == attention


def test_gpt2_in_float64():
    """Nothing of it is float32: forward and backward agree to rounding, and the difference's error falls with eps^2."""
    model = model_of("gpt2")
    change = direction(model)
    forward, backward = (directional_derivatives(model, ROWS, change, method=m) for m in ("forward", "backward"))
    torch.testing.assert_close(forward, backward, rtol=1e-9, atol=1e-10)
    errors = [
        float((directional_derivatives(model, ROWS, change, method="difference", eps=eps) - forward).abs().max())
        for eps in (1e-2, 1e-3)
    ]
    assert errors[1] < errors[0] / 50, f"got {errors[0]:.1e} and {errors[1]:.1e}, expected a factor near 100"


def test_linear_in_the_change():
    """Derivatives of a sum are sums of derivatives; those of no change are zero, whatever the method."""
    model = model_of("gpt2")
    one, two = direction(model), direction(model, seed=1)
    both = {name: 2 * one[name] + two[name] for name in one}
    of = [directional_derivatives(model, ROWS, change, method="forward") for change in (one, two, both)]
    torch.testing.assert_close(of[2], 2 * of[0] + of[1], rtol=1e-10, atol=1e-12)
    empty = Delta({}, Provenance("none", model.fingerprint()))
    for method in ("forward", "backward", "difference", "auto"):
        assert not bool(directional_derivatives(model, ROWS, empty, method=method).any())


def test_order_batches_and_deltas():
    model = model_of("gpt2")
    delta = Delta.of(
        {name: value for name, value in direction(model).items() if ".1." in name}, Provenance("d", model.fingerprint())
    )
    alone = directional_derivatives(model, ROWS, delta, method="forward", batch_tokens=1)
    turned = directional_derivatives(model, ROWS[::-1], delta, method="forward").flip(0)
    torch.testing.assert_close(turned, alone, rtol=1e-10, atol=1e-12)
    before = model.hf.transformer.h[1].mlp.c_fc.weight.clone()
    directional_derivatives(model, ROWS, delta, method="difference")
    assert torch.equal(before, model.hf.transformer.h[1].mlp.c_fc.weight)
    assert not model.ledger


def test_tied_weights_move_together():
    model = model_of("gpt2")
    name = "transformer.wte.weight"
    assert model.hf.lm_head.weight is model.hf.get_parameter(name)
    change = {name: direction(model)[name]}
    torch.testing.assert_close(
        directional_derivatives(model, ROWS, change, method="forward"), slow.along(model.hf, PLAIN, change), rtol=1e-6, atol=1e-8
    )


def test_auto_takes_the_difference_where_forward_mode_is_missing(monkeypatch):
    model = tiny()
    rows = encode_all(model, tiny_sets()[0])
    change = direction(model)
    assert pick_method(model, rows, change) == "forward"

    def missing(*args):
        raise NotImplementedError("derivative for aten::sdpa is not implemented")

    monkeypatch.setattr(along, "_forward_with", missing)
    assert pick_method(model, rows, change) == "difference"
    expected = slow.along(model.hf, [(row.tokens, row.start) for row in rows], change, eps=1e-4)
    torch.testing.assert_close(directional_derivatives(model, rows, change), expected, rtol=2e-3, atol=2e-3)
    with pytest.raises(InputError, match="LlamaForCausalLM has no forward-mode derivative"):
        directional_derivatives(model, rows, change, method="forward")


def test_attention_is_put_back_after_an_exception():
    model = model_of("llama")
    assert model.hf.config._attn_implementation == "sdpa"

    def broken(passed, chosen):
        raise KeyError("no such loss")

    with pytest.raises(KeyError, match="no such loss"):
        directional_derivatives(model, ROWS, direction(model), broken, method="forward")
    assert model.hf.config._attn_implementation == "sdpa"


def test_a_delta_with_hooks():
    """Steering has no weights to take a derivative in; the difference scales it."""
    model = tiny()
    rows = encode_all(model, tiny_sets()[0])
    hook = activation_change(model, "blocks.0.resid_post", "add", torch.linspace(-1, 1, 8))
    delta = Delta({}, Provenance("steer", model.fingerprint()), (hook,))
    assert pick_method(model, rows, delta) == "difference"
    found = directional_derivatives(model, rows, delta)
    assert bool(found.any())
    torch.testing.assert_close(directional_derivatives(model, rows, delta.scaled(2.0)), 2 * found, rtol=1e-2, atol=1e-3)
    for method in ("forward", "backward"):
        with pytest.raises(InputError, match=r"changes blocks.0.resid_post by a hook, which method='\w+' cannot follow"):
            directional_derivatives(model, rows, delta, method=method)


def test_what_is_refused():
    model = tiny()
    rows = encode_all(model, tiny_sets()[0])
    weight = torch.zeros(16, 8)
    with pytest.raises(DataError, match="no rows"):
        directional_derivatives(model, [], {"lm_head.weight": weight})
    with pytest.raises(InputError, match="eps is 0"):
        directional_derivatives(model, rows, {"lm_head.weight": weight}, eps=0.0)
    with pytest.raises(UnknownNameError, match="parameter in the change 'lm_head'"):
        directional_derivatives(model, rows, {"lm_head": weight})
    with pytest.raises(ShapeError, match=r"lm_head.weight is \(8, 16\)"):
        directional_derivatives(model, rows, {"lm_head.weight": weight.T}, method="difference")
    with pytest.raises(NumericsError, match="row 'f0' is NaN"):
        directional_derivatives(model, rows, {"lm_head.weight": weight / 0}, method="forward")
    with pytest.raises(MismatchError, match="belongs to model"):
        directional_derivatives(
            model, rows, Delta.of({"lm_head.weight": weight + 1}, Provenance("d", "other")), method="difference"
        )
