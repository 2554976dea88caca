"""Lines: the rows or columns of one matrix that a neuron or a head is made of, one vector of the residual stream's width each.

    gate, up, in    rows of W_gate, W_up, W_in         what a neuron reads
    q, k, v         rows of W_Q, W_K, W_V              what the heads read; under grouped-query attention k and v have fewer
    down (or out)   columns of W_out                   what a neuron writes: its value vector
    o               columns of W_O                     what a feature of a head writes

Fused, transposed and interleaved projections are `load/sites.py`'s business; here a line is a position along one axis of one
Hugging Face parameter. Measuring goes block by block, so that no matrix is ever held in float32 as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.change import Columns, LowRank, Rows
from workbench.core.errors import ModelError, NumericsError, ShapeError, unknown
from workbench.core.numerics import wide
from workbench.load.models import Model
from workbench.load.weights import WeightSlice, column_slice

MATRICES = ("gate", "up", "in", "q", "k", "v", "down", "out", "o")
BLOCK = 1 << 18  # weights converted at a time and thread: a megabyte in float32 stays in a core's cache


@dataclass(frozen=True, eq=False)
class Lines:
    """Some rows (dim 0) or columns (dim 1) of a parameter; line j lies at `index[j]` along `dim`."""

    parameter: str
    shape: tuple[int, ...]
    dim: int
    index: Int[Tensor, "line"]

    @classmethod
    def of(cls, slices: Sequence[WeightSlice]) -> "Lines":
        """The lines of one or several slices of one parameter, in their order."""
        first = slices[0]
        return cls(first.parameter, first.shape, first.dim, torch.cat([one.indices() for one in slices]))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def width(self) -> int:
        """Entries of a line."""
        return self.shape[1 - self.dim]

    def read(self, model: Model, chosen: Int[Tensor, "k"]) -> Float[Tensor, "k width"]:
        """A copy of the chosen lines, one a row, in float32 (float64 of a float64 model)."""
        weight = model.hf.get_parameter(self.parameter).detach()
        found = wide(weight.index_select(self.dim, self.index[chosen].to(weight.device)))
        return found if self.dim == 0 else found.T

    def change(self, chosen: Int[Tensor, "k"], values: Float[Tensor, "k width"]) -> Rows | Columns:
        """The change that adds values[i] to line chosen[i]; float32, on the CPU."""
        values = values.float().cpu()
        if self.dim == 0:
            return Rows(self.index[chosen], values, self.shape)
        return Columns(self.index[chosen], values.T.contiguous(), self.shape)

    def outer(
        self, chosen: Int[Tensor, "k"], lengths: Float[Tensor, "k"], vector: Float[Tensor, "width"]
    ) -> Rows | Columns | LowRank:
        """The change that adds lengths[i] * vector to line chosen[i]; low rank where every line of the parameter is chosen."""
        lengths, vector = lengths.float().cpu(), vector.float().cpu()
        if len(chosen) < self.shape[self.dim]:
            return self.change(chosen, torch.outer(lengths, vector))
        whole = torch.empty_like(lengths).index_copy_(0, self.index[chosen], lengths)
        left, right = (whole, vector) if self.dim == 0 else (vector, whole)
        return LowRank(left[:, None], right[None, :], self.shape)


class Measured(NamedTuple):
    """norm: of every line.   dot: its product with the direction. float32 (float64 of a float64 model), on the CPU."""

    dot: Float[Tensor, "line"]
    norm: Float[Tensor, "line"]

    @property
    def cosine(self) -> Float[Tensor, "line"]:
        """dot / norm for a direction of norm 1; NaN for a line of zeros, which has no direction."""
        return self.dot / self.norm


def lines_of(model: Model, matrix: str, layer: int) -> Lines:
    """The lines of one matrix in one layer.

    Raises: UnknownNameError for the matrix; ModelError if the architecture lacks it; InputError if the layer does not exist.
    """
    sites = model.sites
    match matrix:
        case "gate":
            return Lines.of([sites.gate_rows(layer)])
        case "up":
            return Lines.of([sites.up_rows(layer)])
        case "in":
            if sites.gated:
                raise ModelError(f"matrix 'in': the MLP of {type(model.hf).__name__} has a gate; say 'gate' or 'up'.")
            return Lines.of([sites.in_rows(layer)])
        case "down" | "out":
            return Lines.of([sites.value_vectors(layer)])
        case "q" | "k" | "v" | "o":
            every = [sites.head(layer, head, matrix) for head in range(sites.n_heads)]
            return Lines.of([one for i, one in enumerate(every) if one not in every[:i]])  # heads that share keys and values
    raise unknown("matrix", matrix, MATRICES)


def readers(model: Model, component: str) -> Lines:
    """The columns of a linear component, such as "blocks.2.mlp.out": line j is what feature j of its input is multiplied by."""
    return Lines.of([column_slice(model.hf, model.sites.path(component))])


def measure(model: Model, lines: Lines, vector: Float[Tensor, "width"]) -> Measured:
    """Norm of every line and its product with a vector, from one reading of the matrix.

    Raises: ShapeError for a vector of another width; NumericsError naming the parameter if a weight is NaN or infinite.
    """
    if len(vector) != lines.width:
        raise ShapeError(
            f"the direction has {len(vector)} features, but the lines of {lines.parameter} have {lines.width}. "
            "Was it found on another model, or at a site of another width?"
        )
    dot, norm = products(model.hf.get_parameter(lines.parameter).detach(), lines.dim, vector)
    if not bool(torch.isfinite(norm).all() & torch.isfinite(dot).all()):
        raise NumericsError(f"{lines.parameter} holds NaN or infinite weights; no cosine with them is defined.")
    return Measured(dot[lines.index], norm[lines.index])


@torch.no_grad()
def products(
    weight: Float[Tensor, "rows cols"], dim: int, vector: Float[Tensor, "width"]
) -> tuple[Float[Tensor, "line"], Float[Tensor, "line"]]:
    """Product of every line of `weight` along `dim` with a vector, and its norm; accumulated in float32 (float64 of a float64 one).

    A product of bfloat16 matrices would be rounded to bfloat16: two digits of a cosine that is 0.03.
    """
    vector = vector.to(weight.device, wide(weight[:0]).dtype)
    blocks = weight.split(max(1, BLOCK * torch.get_num_threads() // weight.shape[1]))
    if dim == 0:
        found = [(block @ vector, torch.linalg.vector_norm(block, dim=1)) for block in map(wide, blocks)]
        return torch.cat([dot for dot, _ in found]).cpu(), torch.cat([norm for _, norm in found]).cpu()
    dot, square = vector.new_zeros(weight.shape[1]), vector.new_zeros(weight.shape[1])
    for block, part in zip(map(wide, blocks), vector.split(len(blocks[0])), strict=True):
        dot += part @ block
        square += block.square().sum(0)
    return dot.cpu(), square.sqrt().cpu()
