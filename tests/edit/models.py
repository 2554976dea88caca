"""The tiny models as workbench models with a word tokenizer, texts of unequal length, and comparing bits."""

import torch

import workbench as wb
from tests.reference.tiny_models import tiny_model
from tests.trace.test_views import tokenizer

# no word that begins with w1 or w2: those are special tokens, which the tokenizer would cut out of them
TEXTS = ["w3 w4 w5 w6 w7", "w8 w9", "w30 w31 w32"]
ROWS = [[3, 4, 5, 6, 7], [8, 9], [30, 31, 32]]
# float64 models, but a Delta's values are float32: 6e-8 of each, and some cancellation
FLOAT32 = {"rtol": 1e-6, "atol": 1e-6}
# the same sums in another order, in float64
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def model_of(name, dtype=torch.float64):
    return wb.wrap(tiny_model(name, dtype=dtype), tokenizer(bos_token="w1", eos_token="w2"), name=name)


def bits(model):
    return {name: p.detach().clone() for name, p in model.hf.named_parameters()}


def same(model, before):
    return all(torch.equal(p.detach().view(torch.uint8), before[n].view(torch.uint8)) for n, p in model.hf.named_parameters())


def direction(seed=0, *, site="mlp_in", layer=1, width=32):
    return wb.Direction(torch.randn(width, generator=torch.Generator().manual_seed(seed)), site, layer)


def unrounded(width=32, seed=0, **place):
    """A direction and its vector in float64."""
    found = direction(seed, width=width, **place)
    return found, found.vector.double()


def logits(model, ids):
    with torch.no_grad():
        return model.hf(input_ids=ids, use_cache=False).logits
