"""Gradients, squares and input norms of several sets from one pass, against one autograd pass an example."""

import pytest
import torch

from tests.reference import attribution as truth
from tests.reference.tiny_models import CONFIGS, tiny_model
from tests.tiny import tiny, tiny_sets
from workbench import wrap
from workbench.core.errors import DataError
from workbench.load.batches import Encoded, encode_all
from workbench.trace import by_module
from workbench.trace import moments as passes
from workbench.trace.moments import Unsupported, Wanted, moments

BOTH = frozenset({"gradient", "square"})
ROWS = [
    Encoded(str(i), tokens, 3)
    for i, tokens in enumerate([[1, 2, 3, 4, 5, 6, 7], [4, 4, 5, 6, 9], [8, 9, 10, 11, 1, 1, 20, 21, 2], [3, 2, 5, 5]])
]
TOGETHER = sorted(set(CONFIGS) - {"gemma2", "opt"})  # see the tests of the way round


def prepared(name):
    hf = tiny_model(name)
    for layer in hf.model.layers if name == "gemma2" else []:
        layer.self_attn.sliding_window = 64  # eager attention gives NaN where padding is longer than the window
    if name == "gemma2":
        hf.config.sliding_window = 64
    return wrap(hf, tiny().tokenizer)


def assert_equal_to_reference(found, hf, sets, *, rtol=1e-6):
    """Every wanted quantity is the reference's, for every set and parameter."""
    for set, one in sets.items():
        rows = [(row.tokens, row.start) for row in one.rows]
        expected = {"gradient": truth.mean_gradient(hf, rows), "square": truth.fisher(hf, rows)}
        for quantity in one.quantities & {"gradient", "square"}:
            assert list(found[set, quantity]) == [name for name, _ in hf.named_parameters()]
            for name, value in expected[quantity].items():
                # relative to the tensor's largest entry: key biases have a true gradient of zero
                scale = float(value.abs().max()) + 1e-12
                error = float((found[set, quantity][name].double() - value).abs().max()) / scale
                if scale > 1e-10:
                    assert error < rtol, f"{set} {quantity} {name}: {error:.1e}"


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("batch_tokens", [4096, 10])
def test_all_sets_in_one_pass(name, batch_tokens):
    model = prepared(name)
    sets = {"forget": Wanted(ROWS[:2], BOTH), "retain": Wanted(ROWS[2:], BOTH)}
    names = list(model.shapes())
    assert_equal_to_reference(passes._together(model, sets, names, batch_tokens, False, "test"), model.hf, sets)
    assert all(p.requires_grad and p.grad is None for p in model.hf.parameters())
    assert not any(module._forward_hooks for module in model.hf.modules())


@pytest.mark.parametrize("name", ["gemma2", "opt"])
def test_the_way_round_for_models_that_cannot(name):
    """Gemma-2's embedding is scaled and tied, OPT flattens batch and positions."""
    model = prepared(name)
    sets = {"forget": Wanted(ROWS[:2], BOTH), "retain": Wanted(ROWS[2:], BOTH)}
    names = list(model.shapes())
    with pytest.raises(Unsupported, match="shared by several|cannot be told apart"):
        passes._together(model, sets, names, 4096, False, "test")
    assert not any(module._forward_hooks for module in model.hf.modules())
    assert_equal_to_reference(
        moments(model, sets, names), model.hf, sets, rtol=1e-3
    )  # opt's batched pass differs by that from one by one


@pytest.mark.parametrize("name", ["gpt2", "falcon"])
def test_large_matrices_go_example_by_example(name, monkeypatch):
    """Both embed and unembed with one matrix, whose cross term must find the right example in every piece."""
    monkeypatch.setattr(by_module, "_PIECE", 1)
    model = prepared(name)
    sets = {"forget": Wanted(ROWS[:2], BOTH), "retain": Wanted(ROWS[2:], BOTH)}
    assert_equal_to_reference(passes._together(model, sets, list(model.shapes()), 4096, False, "test"), model.hf, sets)


def test_gemma2_gradients_go_together():
    """Without squares a tied, scaled embedding is no obstacle: gradients add up."""
    model = prepared("gemma2")
    sets = {set: Wanted(rows, frozenset({"gradient"})) for set, rows in (("forget", ROWS[:2]), ("retain", ROWS[2:]))}
    assert_equal_to_reference(passes._together(model, sets, list(model.shapes()), 4096, False, "test"), model.hf, sets)


def test_a_weight_that_is_used_outside_its_module_is_noticed():
    """What such a module hands over is not all of its weight's gradient: compared with autograd's, it is found out."""
    model = tiny()
    layer = model.hf.model.layers[1].mlp
    inner = layer.forward
    layer.forward = lambda x: inner(x) + x @ layer.up_proj.weight.T @ layer.gate_proj.weight
    sets = {name: Wanted(encode_all(model, rows), BOTH) for name, rows in zip(("forget", "retain"), tiny_sets(), strict=True)}
    with pytest.raises(Unsupported, match="used outside its module"):
        passes._together(model, sets, list(model.shapes()), 4096, False, "test")
    assert_equal_to_reference(moments(model, sets, list(model.shapes())), model.hf, sets, rtol=1e-5)  # Llama's RMSNorm is float32


def test_a_module_with_weights_and_modules_of_its_own_is_not_taken_apart():
    model = tiny()
    mlp = model.hf.model.layers[1].mlp
    mlp.scale = torch.nn.Parameter(torch.full((8,), 0.5, dtype=torch.float64))
    inner = mlp.forward
    mlp.forward = lambda x: inner(x) * mlp.scale
    sets = {name: Wanted(encode_all(model, rows), BOTH) for name, rows in zip(("forget", "retain"), tiny_sets(), strict=True)}
    with pytest.raises(Unsupported, match="mlp has weights and modules of its own"):
        passes._together(model, sets, list(model.shapes()), 4096, False, "test")
    assert_equal_to_reference(moments(model, sets, list(model.shapes())), model.hf, sets, rtol=1e-5)  # Llama's RMSNorm is float32


def test_a_module_that_is_called_twice_is_not_taken_apart():
    """Layers that share an MLP: gradients of the calls add up, their squares do not."""
    model = tiny()
    model.hf.model.layers[1].mlp = model.hf.model.layers[0].mlp
    sets = {name: Wanted(encode_all(model, rows), BOTH) for name, rows in zip(("forget", "retain"), tiny_sets(), strict=True)}
    with pytest.raises(Unsupported, match="called twice"):
        passes._together(model, sets, list(model.shapes()), 4096, False, "test")
    assert_equal_to_reference(moments(model, sets, list(model.shapes())), model.hf, sets, rtol=1e-5)  # Llama's RMSNorm is float32
    plain = {name: one._replace(quantities=frozenset({"gradient"})) for name, one in sets.items()}
    assert_equal_to_reference(passes._together(model, plain, list(model.shapes()), 4096, False, "test"), model.hf, plain, rtol=1e-5)


def test_a_weight_that_autograd_does_not_see_is_noticed():
    """Its module has input and output like any other, but the true gradient is zero."""
    model = tiny()
    up = model.hf.model.layers[1].mlp.up_proj
    up.forward = lambda x: x @ up.weight.detach().T
    sets = {name: Wanted(encode_all(model, rows), BOTH) for name, rows in zip(("forget", "retain"), tiny_sets(), strict=True)}
    with pytest.raises(Unsupported, match="used outside its module"):
        passes._together(model, sets, list(model.shapes()), 4096, False, "test")
    found = moments(model, sets, list(model.shapes()))
    assert not bool(found["forget", "gradient"]["model.layers.1.mlp.up_proj.weight"].any())


def test_sets_with_losses_of_their_own_and_some_parameters():
    model, (forget, retain) = tiny(), tiny_sets()
    rows = {"forget": encode_all(model, forget), "retain": encode_all(model, retain)}
    places, tracked = [], []

    def ranked(passed, chosen):
        places.extend(chosen)
        tracked.append(model.hf.get_parameter(names[0]).requires_grad)
        assert not model.hf.model.embed_tokens.weight.requires_grad  # what lies before the parameters is not differentiated
        return -passed.logprob.sum(-1) / passed.mask.sum(-1) * (1.0 + torch.tensor(chosen))

    names = [name for name in model.shapes() if ".1.mlp." in name]
    sets = {"forget": Wanted(rows["forget"], BOTH, ranked), "retain": Wanted(rows["retain"], frozenset({"square"}))}
    found = moments(model, sets, names, batch_tokens=20)
    assert set(found) == {("forget", "gradient"), ("forget", "square"), ("retain", "square")}
    assert sorted(places[-len(forget) :]) == [0, 1, 2]
    assert not tracked[-1]  # autograd does not compute these gradients a second time
    each = truth.example_gradients(model.hf, [(row.tokens, row.start) for row in rows["forget"]])
    for name in names:
        expected = sum((1 + i) * g[name] for i, g in enumerate(each)) / 3
        torch.testing.assert_close(found["forget", "gradient"][name], expected, rtol=1e-4, atol=1e-7)  # RMSNorm is float32
        squares = sum(((1 + i) * g[name]) ** 2 for i, g in enumerate(each)) / 3
        torch.testing.assert_close(found["forget", "square"][name], squares, rtol=1e-4, atol=1e-8)
    assert all(list(values) == names for values in found.values())


def test_inputs_alone_need_no_backward_pass(monkeypatch):
    model, (forget, _) = tiny(), tiny_sets()
    monkeypatch.setattr(torch.Tensor, "backward", lambda *a, **k: pytest.fail("a backward pass"))
    rows = encode_all(model, forget)
    found = moments(model, {"forget": Wanted(rows, frozenset({"inputs"}))}, list(model.shapes()), batch_tokens=10)
    path = "model.layers.1.mlp.down_proj"
    expected = truth.input_mean_squares(model.hf, [(row.tokens, row.start) for row in rows], path)
    torch.testing.assert_close(found["forget", "inputs"][path + ".weight"], expected, rtol=1e-9, atol=0)


def test_an_empty_set():
    with pytest.raises(DataError, match="retain has no rows"):
        moments(tiny(), {"retain": Wanted([], BOTH)}, ["lm_head.weight"])


def test_what_the_caller_had_is_given_back_after_an_error():
    model, (forget, _) = tiny(), tiny_sets()
    weight = model.hf.get_parameter("lm_head.weight")
    weight.grad = kept = torch.ones_like(weight)
    model.hf.get_parameter("model.norm.weight").requires_grad_(False)

    def broken(passed, rows):
        raise RuntimeError("no such loss")

    with pytest.raises(RuntimeError, match="no such loss"):
        moments(model, {"forget": Wanted(encode_all(model, forget), BOTH, broken)}, list(model.shapes()))
    assert weight.grad is kept
    assert not model.hf.get_parameter("model.norm.weight").requires_grad
    assert not any(module._forward_hooks for module in model.hf.modules())
