"""Tokens of all value vectors, against the bare matrix products they are read from."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

import workbench as wb
from benchmarks.cases import Row
from benchmarks.timing import peak_gib, versus
from workbench.load.models import Model
from workbench.load.unembedding import unembedding
from workbench.probe.extremes import TILE, extremes

LLAMA_1B = (8192, 2048, 128_256)  # one layer of Llama-3.2-1B: d_mlp, d_model, d_vocab


def products(rows: Float[Tensor, "row d"], columns: Float[Tensor, "column d"]) -> None:
    """The floor: rows @ columns.T in float32, tile by tile as `extremes` does, nothing kept."""
    tall, wide = TILE["cpu" if rows.device.type == "cpu" else "cuda"]
    left = rows.float()
    for first in range(0, len(columns), wide):
        right = columns[first : first + wide].float()
        tile = torch.empty(min(tall, len(rows)), len(right), device=rows.device)
        for start in range(0, len(rows), tall):
            part = left[start : start + tall]
            torch.mm(part, right.T, out=tile[: len(part)])


@torch.no_grad()
def value_vectors(model: Model, *, repeats: int = 7) -> Iterator[Row]:
    """Top and bottom 20 tokens of every value vector of a model, names of tokens not made."""
    weight = unembedding(model)
    layers = [model.sites.value_vectors(layer).view(model.hf) for layer in range(model.n_layers)]

    def job() -> None:
        wb.probe.value_vectors(model)

    def floor() -> None:
        for vectors in layers:
            products(vectors, weight)

    took, bare = versus(job, floor, model.device, repeats=repeats)
    n, tokens = sum(map(len, layers)), len(weight)
    peak = peak_gib(job, model.device)
    yield Row(f"tokens of {n:,} value vectors", f"products with {tokens:,} tokens", took, bare, "≤ 1.20", peak)


@torch.no_grad()
def value_vectors_at(
    device: torch.device, *, shapes: tuple[int, int, int] = LLAMA_1B, dtype: torch.dtype = torch.float32, repeats: int = 1
) -> Iterator[Row]:
    """The same for one layer of random weights of these shapes (d_mlp, d_model, d_vocab)."""
    d_mlp, d_model, d_vocab = shapes
    source = torch.Generator().manual_seed(0)
    vectors = torch.randn(d_mlp, d_model, generator=source).to(device, dtype)
    weight = torch.randn(d_vocab, d_model, generator=source).to(device, dtype)

    def job() -> None:
        extremes(vectors, weight, k=20)

    took, bare = versus(job, lambda: products(vectors, weight), device, repeats=repeats)
    name = f"tokens of {d_mlp:,} value vectors of width {d_model:,}, {str(dtype).removeprefix('torch.')}"
    yield Row(name, f"products with {d_vocab:,} tokens", took, bare, "≤ 1.20", peak_gib(job, device))
