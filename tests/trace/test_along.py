"""Directional derivatives in three ways, against a central difference in float64 that shares nothing with them."""

import copy
from inspect import unwrap

import pytest
import torch

from tests.reference import influence as slow
from tests.reference.tiny_models import CONFIGS, tiny_model
from tests.tiny import tiny, tiny_sets
from workbench import Delta, wrap
from workbench.core.change import Rows
from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError, MemoryPlanError, MismatchError, NumericsError, ShapeError, UnknownNameError
from workbench.core.records import Provenance
from workbench.load.batches import Encoded, encode_all
from workbench.trace import along
from workbench.trace.along import directional_derivatives, pick_method
from workbench.trace.changes import activation_change
from workbench.trace.differences import usual_step
from workbench.trace.forward import row_nll

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


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_difference_below_float64(name, dtype):
    """Of a change of 1e-4 of the weights as of a large one: a step counted in parts of the change would be rounding."""
    hf = tiny_model(name).to(dtype)
    model, exact = wrap(hf, tiny().tokenizer), copy.deepcopy(hf).double()
    for scale in (1.0, 1e-2, 1e-4):
        change = direction(model, scale=scale)
        expected = slow.along(exact, PLAIN, change, eps=1e-4 / scale)
        error = relative(directional_derivatives(model, ROWS, change, method="difference"), expected)
        assert error < 4e-3, f"got {error:.1e}, measured 0.0004 (llama) and 0.0016 (gpt2); rounding to {dtype} would be of order 1"
    assert all(p.dtype == dtype for p in model.hf.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_below_float32(dtype):
    """Steering of a model that has another edit of activations applied, which the float32 copy keeps."""
    half, exact = tiny(dtype), tiny()
    exact.hf.load_state_dict(half.hf.state_dict())
    rows = encode_all(half, tiny_sets()[0])
    found = {}
    for model in (half, exact):
        first, second = (
            Delta({}, Provenance("steer", model.base_fingerprint()), (activation_change(model, site, "add", values),))
            for site, values in (("blocks.1.resid_post", torch.ones(8)), ("blocks.0.resid_post", torch.linspace(-1, 1, 8)))
        )
        before = model.base_fingerprint()
        with applied(model, first):
            found[model] = directional_derivatives(model, rows, second.scaled(1e-2))
        assert model.fingerprint() == before
        assert not any(module._forward_hooks for module in model.hf.modules())
    assert relative(found[half], found[exact]) < 4e-3  # float32 against float64; without the other edit it is 0.1 and more


def test_the_usual_step_by_hand():
    """W = (3, 4) in two rows of a matrix, d = (0, 10): the second row alone is touched, 1e-4 * 4 / 10."""
    model = tiny()
    with torch.no_grad():
        model.hf.lm_head.weight.zero_()
        model.hf.lm_head.weight[2, 0], model.hf.lm_head.weight[5, 1] = 3.0, 4.0
    change = torch.zeros(16, 8)
    change[5, 3] = 10.0
    delta = Delta({"lm_head.weight": Rows(torch.tensor([5]), change[5:6], (16, 8))}, Provenance("d", model.fingerprint()))
    assert usual_step(model, ROWS[:1], delta) == pytest.approx(1e-4 * 4 / 10)
    nothing = Delta({"lm_head.weight": Rows(torch.tensor([7]), change[5:6], (16, 8))}, Provenance("d", model.fingerprint()))
    assert usual_step(model, ROWS[:1], nothing) == pytest.approx(1e-4 * 8**0.5 / 10)  # eight zeros count as ones
    assert usual_step(model, ROWS[:1], delta.scaled(1e-6)) == pytest.approx(40.0)  # above 1: the change is small


def test_a_step_may_be_named():
    model = model_of("gpt2")
    change = direction(model, scale=1e-6)
    expected = slow.along(model.hf, PLAIN, change, eps=100.0)
    assert relative(directional_derivatives(model, ROWS, change, method="difference", eps=100.0), expected) < 1e-4


def test_what_cannot_be_copied(monkeypatch):
    model = tiny(torch.bfloat16)
    rows, change = encode_all(model, tiny_sets()[0]), {"lm_head.weight": torch.ones(16, 8)}
    monkeypatch.setattr("workbench.core.runtime.free_bytes", lambda device: 1000)
    with pytest.raises(MemoryPlanError, match="float32 copy for a difference needs about"):
        directional_derivatives(model, rows, change, method="difference")
    model.hf.is_quantized = True
    with pytest.raises(InputError, match="would be rounding, and a model that is quantized .* dtype='float32'"):
        directional_derivatives(model, rows, change, method="difference")


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
    # the same steps at any size of the change but for rounding, some 1e-3 of the largest
    for factor in (2.0, 1e-4):
        scaled = directional_derivatives(model, rows, delta.scaled(factor)) / factor
        torch.testing.assert_close(scaled, found, rtol=0, atol=3e-3 * float(found.abs().max()))
    with applied(model, delta.scaled(1e-3)):
        up = row_nll(model, rows)
    with applied(model, delta.scaled(-1e-3)):
        down = row_nll(model, rows)
    torch.testing.assert_close(found, (up - down) / 2e-3, rtol=0, atol=1e-2 * float(found.abs().max()))  # eps^2 and rounding
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
    with pytest.raises(InputError, match="eps is inf"):
        directional_derivatives(model, rows, {"lm_head.weight": weight}, eps=float("inf"))
    with pytest.raises(UnknownNameError, match="method of directional_derivatives 'difrence'. Did you mean 'difference'"):
        unwrap(directional_derivatives)(model, rows, {"lm_head.weight": weight}, method="difrence")  # as outside the tests
    foreign = Delta.of({"lm_head.weight": weight + 1}, Provenance("d", "other"))
    for method in ("auto", "forward", "difference", "backward"):
        with pytest.raises(MismatchError, match="belongs to model"):
            directional_derivatives(model, rows, foreign, method=method)
