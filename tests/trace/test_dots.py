"""Products and norms of per-example gradients against one autograd pass a row."""

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.reference import attribution as truth
from tests.reference import influence as slow
from tests.reference.tiny_models import CONFIGS, tiny_model
from tests.tiny import tiny, tiny_sets
from workbench import wrap
from workbench.core.errors import DataError, InputError, MemoryPlanError, NumericsError, ShapeError, UnknownNameError
from workbench.load.batches import Encoded, encode_all
from workbench.trace import contractions, dots
from workbench.trace.dots import gradient_dots, gradient_norms, gradient_products, row_gradients

ROWS = [
    Encoded(str(i), tokens, 3)
    for i, tokens in enumerate([[1, 2, 3, 4, 5, 6, 7], [4, 4, 5, 6, 9], [8, 9, 10, 11, 1, 1, 20, 21, 2], [3, 2, 5, 5]])
]
PLAIN = [(row.tokens, row.start) for row in ROWS]
TOGETHER = sorted(set(CONFIGS) - {"gemma2", "opt"})  # see the tests of the way round
# Norms or rotary angles of the others are computed in float32 whatever the dtype of the model.
RTOL = {"gpt2": 1e-9, "falcon": 1e-9, "gpt_neox": 1e-9, "gpt_neox_sequential": 1e-9}


def model_of(name):
    hf = tiny_model(name)
    if name == "gemma2":  # eager attention gives NaN where padding is longer than the window
        hf.config.sliding_window = 64
        for layer in hf.model.layers:
            layer.self_attn.sliding_window = 64
    return wrap(hf, tiny().tokenizer)


def tied_llama():
    """A Llama whose one matrix embeds and unembeds, with float64 norms."""
    model = tiny()
    model.hf.config.tie_word_embeddings = True
    model.hf.lm_head.weight = model.hf.model.embed_tokens.weight
    return model


@pytest.fixture
def exact_norms(monkeypatch):
    """RMSNorm in the model's own dtype: Hugging Face's casts to float32."""

    def run(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(LlamaRMSNorm, "forward", run)


def directions_of(model, n, *, seed=0):
    source = torch.Generator().manual_seed(seed)
    draw = {name: [torch.randn(p.shape, generator=source) for _ in range(n)] for name, p in model.hf.named_parameters()}
    return [{name: values[k].double() for name, values in draw.items()} for k in range(n)]


def assert_relative(found, expected, rtol):
    """Each column within rtol of its largest entry."""
    scale = expected.abs().amax(0, keepdim=True)
    error = float(((found - expected).abs() / scale).max())
    assert error < rtol, f"{error:.1e}"


def assert_as_it_was(model):
    assert all(p.requires_grad and p.grad is None for p in model.hf.parameters())
    assert not any(module._forward_hooks for module in model.hf.modules())


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize(("batch_tokens", "n"), [(4096, 1), (10, 3)])
def test_products_and_norms(name, batch_tokens, n, monkeypatch):
    monkeypatch.setattr(dots, "one_by_one", lambda *a: pytest.fail("went row by row"))
    model = model_of(name)
    directions = directions_of(model, n)
    found = gradient_products(model, ROWS, directions, batch_tokens=batch_tokens)
    # float32 norms inside a float64 model: each batch rounds by itself, 1e-7 of the activations
    rtol = RTOL.get(name, 2e-5)
    assert_relative(found.dots, slow.dots(model.hf, PLAIN, directions), rtol)
    assert_relative(found.squares.sqrt(), slow.norms(model.hf, PLAIN), rtol)
    assert_as_it_was(model)


@pytest.mark.parametrize("tied", [False, True])
def test_llama_in_float64(tied, exact_norms, monkeypatch):
    """With exact norms nothing but the order of float64 sums differs."""
    monkeypatch.setattr(dots, "one_by_one", lambda *a: pytest.fail("went row by row"))
    model = tied_llama() if tied else tiny()
    rows = encode_all(model, tiny_sets()[1])
    plain = [(row.tokens, row.start) for row in rows]
    directions = directions_of(model, 2)
    assert_relative(gradient_dots(model, rows, directions), slow.dots(model.hf, plain, directions), 1e-9)
    assert_relative(gradient_dots(model, rows, directions[:1]), slow.dots(model.hf, plain, directions[:1]), 1e-9)
    assert_relative(gradient_norms(model, rows), slow.norms(model.hf, plain), 1e-9)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_float32_is_close(name):
    exact = model_of(name)
    exact.hf.float().double()  # weights that float32 holds
    model = wrap(copy.deepcopy(exact.hf).float(), exact.tokenizer)
    directions = directions_of(model, 2)
    found = gradient_products(model, ROWS, directions)
    expected = slow.dots(exact.hf, PLAIN, directions)
    # against the largest product: 40,000 products of float32 factors; measured 2e-6, and 3e-6 for norms
    assert float((found.dots - expected).abs().max() / expected.abs().max()) < 1e-5
    assert_relative(found.squares.sqrt(), slow.norms(exact.hf, PLAIN), 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_both_ways_to_a_norm(name, monkeypatch):
    """By products of tokens and by the gradients themselves, in pieces of one row and of many."""
    model = model_of(name)
    short = gradient_norms(model, ROWS)
    long = [row._replace(tokens=row.tokens * 7) for row in ROWS]  # above in * out / (in + out) = 19 for the largest matrix
    assert_relative(gradient_norms(model, long), slow.norms(model.hf, [(row.tokens, row.start) for row in long]), 2e-5)
    monkeypatch.setattr(contractions, "_PIECE", 1)
    assert_relative(gradient_norms(model, long), slow.norms(model.hf, [(row.tokens, row.start) for row in long]), 2e-5)
    assert_relative(gradient_norms(model, ROWS), short, 1e-12)


def test_a_linear_map_by_hand():
    """x = (1,2), (3,0) and s = (1,0), (2,1): G = s1 x1' + s2 x2' = [[1,2],[0,0]] + [[6,0],[3,0]] = [[7,2],[3,0]].

    With Q = [[1,1],[2,0]]: 7 + 2 + 6 = 15, and ||G||^2 = 49 + 4 + 9 = 62. Stored turned, G' and Q' give the same.
    """
    x, s = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [2.0, 1.0]]])
    q = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    for many in (1, 2):
        assert contractions.dots_linear(x, s, torch.stack([q] * many)).tolist() == [[15.0] * many]
        assert contractions.dots_linear(x, s, torch.stack([q.T] * many), turned=True).tolist() == [[15.0] * many]
    both = contractions.both_linear(x, s, torch.stack([q, q]))
    assert (both.dots.tolist(), both.squares.tolist()) == ([[15.0, 15.0]], [pytest.approx(62.0, rel=1e-6)])
    assert contractions.square_linear(x, s).tolist() == [62.0]  # T = 2 > 2 * 2 / (2 + 2): by the gradient itself
    wide_s = torch.cat([s, torch.zeros(1, 2, 6)], 2)  # T (2 + 8) = 20 > 16 still; one token: by products
    assert contractions.square_linear(x[:, :1], wide_s[:, :1]).tolist() == [5.0]  # |x1|^2 |s1|^2 = 5 * 1


def test_a_lookup_by_hand():
    """ids 2, 0, 2 with s = 1, 10, 3 of one feature: rows 0 and 2 of G are 10 and 4; ||G||^2 = 116, <G, (1, 5, 2)> = 18."""
    ids, s = torch.tensor([[2, 0, 2]]), torch.tensor([[[1.0], [10.0], [3.0]]])
    assert contractions.square_lookup(ids, s).tolist() == [116.0]
    assert contractions.dots_lookup(ids, s, torch.tensor([[[1.0], [5.0], [2.0]]])).tolist() == [[18.0]]
    # unembedding x = 2 at one of three positions with s = (1, 0, -1): A = (2, 0, -2), B = (10, 0, 4), <A, B> = 12
    x, back = torch.tensor([[[2.0], [0.0], [0.0]]]), torch.zeros(1, 3, 3)
    back[0, 0] = torch.tensor([1.0, 0.0, -1.0])
    assert contractions.cross_tied(ids, s, x, back).tolist() == [12.0]


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_gradients_of_rows(name):
    model = model_of(name)
    found = row_gradients(model, ROWS, batch_tokens=14)
    for mine, theirs in zip(found, truth.example_gradients(model.hf, PLAIN), strict=True):
        assert list(mine) == list(theirs)
        for parameter, value in theirs.items():
            torch.testing.assert_close(mine[parameter], value, rtol=1e-4, atol=1e-7)  # float32 norms, as above
    assert_as_it_was(model)


@pytest.mark.parametrize("name", ["gemma2", "opt"])
def test_the_way_round_for_models_that_cannot(name):
    """Gemma-2's scaled embedding is tied, OPT flattens batch and positions: both are gone through row by row."""
    model = model_of(name)
    directions = directions_of(model, 2)
    found = gradient_products(model, ROWS, directions)
    assert_relative(found.dots, slow.dots(model.hf, PLAIN, directions), 1e-4)
    assert_relative(found.squares.sqrt(), slow.norms(model.hf, PLAIN), 1e-4)
    for mine, theirs in zip(row_gradients(model, ROWS), truth.example_gradients(model.hf, PLAIN), strict=True):
        for parameter, value in theirs.items():
            torch.testing.assert_close(mine[parameter], value, rtol=1e-3, atol=1e-6)
    assert_as_it_was(model)


def test_a_module_that_is_called_twice(exact_norms):
    """Products of both calls add up; squares of their sum need the way round."""
    model = tiny()
    model.hf.model.layers[1].mlp = model.hf.model.layers[0].mlp
    rows = encode_all(model, tiny_sets()[0])
    plain = [(row.tokens, row.start) for row in rows]
    directions = directions_of(model, 2)
    assert_relative(gradient_dots(model, rows, directions), slow.dots(model.hf, plain, directions), 1e-9)
    assert_relative(gradient_norms(model, rows), slow.norms(model.hf, plain), 1e-9)


def test_a_weight_that_is_used_outside_its_module(exact_norms):
    model = tiny()
    layer = model.hf.model.layers[1].mlp
    inner = layer.forward
    layer.forward = lambda x: inner(x) + x @ layer.up_proj.weight.T @ layer.gate_proj.weight
    rows = encode_all(model, tiny_sets()[0])
    plain = [(row.tokens, row.start) for row in rows]
    assert_relative(gradient_norms(model, rows), slow.norms(model.hf, plain), 1e-9)


def test_some_parameters_and_a_loss_of_ones_own(exact_norms):
    model = tiny()
    rows = encode_all(model, tiny_sets()[1])
    plain = [(row.tokens, row.start) for row in rows]
    names = [name for name in model.shapes() if ".1.mlp." in name or "norm" in name]
    whole = directions_of(model, 2)
    part = [{name: one[name] for name in names} for one in whole]
    expected = slow.dots(model.hf, plain, part)
    assert_relative(gradient_dots(model, rows, whole, names=names), expected, 1e-9)
    assert_relative(
        gradient_dots(model, rows, [whole[0], {names[0]: whole[1][names[0]]}], names=names)[:, :1], expected[:, :1], 1e-9
    )
    assert_relative(gradient_norms(model, rows, names=names), slow.norms(model.hf, plain, set(names)), 1e-9)
    assert set(row_gradients(model, rows, names=names)[0]) == set(names)

    def ranked(passed, chosen):
        return -passed.logprob.sum(-1) / passed.mask.sum(-1) * 2.0 ** torch.tensor(chosen)  # powers of 2: eager softmax is float32

    scaled = gradient_dots(model, rows, part, ranked, batch_tokens=20)
    assert_relative(scaled, expected * 2.0 ** torch.arange(4)[:, None], 1e-9)


def test_order_and_batches_do_not_matter():
    model = model_of("gpt2")
    directions = directions_of(model, 2)
    alone = gradient_dots(model, ROWS, directions, batch_tokens=1)
    assert_relative(gradient_dots(model, ROWS[::-1], directions).flip(0), alone, 1e-12)
    assert_relative(gradient_dots(model, ROWS, directions[::-1]).flip(1), alone, 1e-12)
    products = gradient_dots(model, ROWS, row_gradients(model, ROWS))
    assert_relative(products, products.T.contiguous(), 1e-10)
    assert_relative(products.diagonal()[:, None].sqrt(), gradient_norms(model, ROWS)[:, None], 1e-10)


def test_what_is_refused(monkeypatch):
    model = tiny()
    rows = encode_all(model, tiny_sets()[0])
    weight = torch.zeros(model.shapes()["lm_head.weight"])
    with pytest.raises(DataError, match="no rows"):
        gradient_norms(model, [])
    with pytest.raises(DataError, match="no directions"):
        gradient_dots(model, rows, [])
    with pytest.raises(DataError, match="no direction has a parameter to look at"):
        gradient_dots(model, rows, [{"lm_head.weight": weight}], names=["model.norm.weight"])
    for names in (["lm_head.weight", "model.norm.wieght"], ["model.norm.wieght"]):
        with pytest.raises(UnknownNameError, match="parameter in names 'model.norm.wieght'. Did you mean 'model.norm.weight'"):
            gradient_dots(model, rows, [{"lm_head.weight": weight}], names=names)
    with pytest.raises(DataError, match="gradient_dots: names is empty"):
        gradient_dots(model, rows, [{"lm_head.weight": weight}], names=[])
    with pytest.raises(UnknownNameError, match="Did you mean 'lm_head.weight'"):
        gradient_dots(model, rows, [{"lm_head.weigth": weight}])
    with pytest.raises(UnknownNameError, match="parameter in names"):
        gradient_norms(model, rows, names=["lm_head"])
    with pytest.raises(ShapeError, match=r"direction 1 has lm_head.weight of shape \(8, 16\)"):
        gradient_dots(model, rows, [{"lm_head.weight": weight}, {"lm_head.weight": weight.T}])
    with pytest.raises(InputError, match="direction holds NaN"):
        gradient_dots(model, rows, [{"lm_head.weight": weight / 0}])
    with pytest.raises(NumericsError, match="row 'f1'"):
        gradient_norms(
            model, rows, lambda passed, chosen: passed.logprob.sum(-1) * torch.tensor([1e300 if i == 1 else 1 for i in chosen])
        )
    monkeypatch.setattr("workbench.core.runtime.free_bytes", lambda device: 1000)
    with pytest.raises(MemoryPlanError, match="gradients of 3 rows"):
        row_gradients(model, rows)
    assert_as_it_was(model)


def test_a_module_that_does_not_know_the_batch(exact_norms):
    """Learned positions, looked up once for all rows: whose gradient is whose cannot be told, so the rows go one by one."""
    model = tiny()
    layer = model.hf.model.layers[1].mlp
    layer.place = torch.nn.Embedding(32, 8, dtype=torch.float64)
    inner = layer.forward
    layer.forward = lambda x: inner(x) + layer.place(torch.arange(x.shape[1])[None])
    rows = encode_all(model, tiny_sets()[0])
    plain = [(row.tokens, row.start) for row in rows]
    directions = directions_of(model, 2)
    assert_relative(gradient_dots(model, rows, directions), slow.dots(model.hf, plain, directions), 1e-9)
    assert_relative(gradient_norms(model, rows), slow.norms(model.hf, plain), 1e-9)
