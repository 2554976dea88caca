"""Where a neuron's or a head's weights lie inside a Hugging Face parameter.

Modules store them in four ways: rows of an `nn.Linear`, columns of GPT-2's transposed `Conv1D`, a block of a fused
projection (Phi-3 `gate_up_proj`, GPT-2 `c_attn`), or a block per head of an interleaved one (GPT-NeoX).
A `WeightSlice` says which, so that nobody else has to know.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.core.errors import ModelError, ShapeError


@dataclass(frozen=True)
class WeightSlice:
    """Some rows or columns of one Hugging Face parameter, and how to turn them the canonical way.

    Attributes:
        parameter: name as in `hf.named_parameters()` (the first name, where weights are tied).
        shape: of the whole parameter.
        dim: the parameter's axis that `index` selects from.
        index: slice with explicit start, stop and step along `dim`.
        transposed: whether the selected part is the transpose of the canonical orientation.
    """

    parameter: str
    shape: tuple[int, ...]
    dim: int
    index: slice
    transposed: bool

    def of(self, tensor: Shaped[Tensor, "a b"]) -> Shaped[Tensor, "c d"]:
        """This part of a tensor shaped like the parameter (gradient, scores, mask), canonically oriented; a view of it.

        Raises: ShapeError if the tensor has another shape than the parameter.
        """
        if tuple(tensor.shape) != self.shape:
            raise ShapeError(
                f"WeightSlice.of: got a tensor of shape {tuple(tensor.shape)}, but {self.parameter} has "
                f"{self.shape}. Was it computed for another parameter?"
            )
        part = tensor[self.index] if self.dim == 0 else tensor[:, self.index]
        return part.T if self.transposed else part

    def view(self, hf: PreTrainedModel) -> Float[Tensor, "c d"]:
        """The weights themselves, canonically oriented: detached, and sharing memory with the model."""
        return self.of(hf.get_parameter(self.parameter).detach())

    def read(self, hf: PreTrainedModel) -> Float[Tensor, "c d"]:
        """A copy of the weights, canonically oriented, in the model's dtype."""
        return self.view(hf).clone()

    def indices(self) -> Int[Tensor, "n"]:
        """Positions along `dim` of the parameter, int64: canonical row (or column) j lies at `indices()[j]`."""
        return torch.arange(self.index.start, self.index.stop, self.index.step)


def row_slice(hf: PreTrainedModel, path: str, rows: slice | None = None) -> WeightSlice:
    """Rows of W in y = W x + b for the linear module at `path`: canonical orientation [row, in].

    Args:
        hf: the model.
        path: HF path of an `nn.Linear` or a `Conv1D`.
        rows: which outputs; None for all.
    """
    axis = _out_axis(hf, path)
    return _slice(hf, path, axis, rows, transposed=axis == 1)


def column_slice(hf: PreTrainedModel, path: str, columns: slice | None = None, *, as_rows: bool = False) -> WeightSlice:
    """Columns of W in y = W x + b for the linear module at `path`: canonical orientation [out, column].

    Args:
        hf: the model.
        path: HF path of an `nn.Linear` or a `Conv1D`.
        columns: which inputs; None for all.
        as_rows: orient [column, out] instead, one value vector a row.
    """
    axis = 1 - _out_axis(hf, path)
    return _slice(hf, path, axis, columns, transposed=(axis == 1) == as_rows)


def width(hf: PreTrainedModel, path: str, *, side: str) -> int:
    """Number of inputs or outputs (side "in" or "out") of the linear module at `path`."""
    axis = _out_axis(hf, path)
    return weight_of(hf, path).shape[axis if side == "out" else 1 - axis]


def weight_of(root: nn.Module, path: str) -> Tensor:
    """The weight of the linear module at `path` below `root`.

    Raises: ModelError unless it is a floating-point matrix.
    """
    module = root.get_submodule(path)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise ModelError(
            f"sites: {path!r} is a {type(module).__name__} without a plain two-dimensional weight; rows and columns of "
            "quantized or mixture-of-experts weights are not supported. Load the model unquantized."
        )
    return weight


def transposed(hf: PreTrainedModel, names: Collection[str]) -> frozenset[str]:
    """Those of `names` that are stored [in, out], where `nn.Linear` has [out, in]: the weights of GPT-2's `Conv1D`."""
    turned = {id(module.weight) for module in hf.modules() if isinstance(module, Conv1D)}
    return frozenset(name for name, p in hf.named_parameters() if id(p) in turned and name in names)


def parameter_name(hf: PreTrainedModel, path: str, kind: str) -> str:
    """Name in `hf.named_parameters()` of the parameter `kind` of the module at `path`; tied weights have one name.

    Raises: ModelError if the module has no such parameter.
    """
    wanted = getattr(hf.get_submodule(path), kind, None)
    for name, parameter in hf.named_parameters():
        if parameter is wanted:
            return name
    raise ModelError(f"sites: module {path!r} ({type(hf.get_submodule(path)).__name__}) has no parameter {kind!r}.")


def fused_outputs(parent: nn.Module, attribute: str, split: Callable[[Any], Sequence[nn.Module]]) -> list[Tensor]:
    """Which outputs of a fused projection belong to each of its parts, asked of TransformerLens' own splitter.

    The splitter is run on a stand-in whose fused weight holds its row number in every row; the parts then hold the row
    numbers that went into them. So the layout of each architecture is read from the adapter, not written down here.

    Args:
        parent: the HF module that owns the fused projection (the attention or the MLP).
        attribute: its name there, e.g. "query_key_value".
        split: the adapter's splitter, parent → one `nn.Linear` for each part.
    Returns: for each part the int64 output indices in its own order, [out of part].
    """
    fused = parent.get_submodule(attribute)
    transposed = isinstance(fused, Conv1D)
    shape = weight_of(parent, attribute).shape
    n_out = shape[1] if transposed else shape[0]
    # float32 holds integers exactly up to 2**24; expand() so that the numbers cost no memory.
    numbers = torch.arange(n_out, dtype=torch.float32)
    weight = (numbers[None, :] if transposed else numbers[:, None]).expand(shape)
    stand_in, numbered = copy.copy(parent), copy.copy(fused)
    numbered._parameters = {"weight": nn.Parameter(weight), "bias": nn.Parameter(numbers)}
    stand_in._modules = {**parent._modules, attribute: numbered}
    with torch.random.fork_rng(devices=[]):  # the splitters initialize an nn.Linear that they overwrite
        parts = split(stand_in)
    return [weight_of(part, "").detach()[:, 0].long() for part in parts]


def as_slice(indices: Int[Tensor, "n"], what: str) -> slice:
    """The slice that selects exactly these increasing, evenly spaced indices.

    Raises: ModelError if they are not evenly spaced; `what` names them in the message.
    """
    values = indices.tolist()
    step = values[1] - values[0] if len(values) > 1 else 1
    if step < 1 or values != list(range(values[0], values[0] + step * len(values), step)):
        raise ModelError(
            f"sites: {what} is not one evenly spaced block of its fused projection (it is interleaved by head). "
            "Use the parts by head, sites.head(layer, head, part), or the whole fused module."
        )
    return slice(values[0], values[-1] + 1, step)


def _out_axis(hf: PreTrainedModel, path: str) -> int:
    """The axis of the weight that runs over outputs: 0 for `nn.Linear`, 1 for `Conv1D`."""
    weight_of(hf, path)
    return 1 if isinstance(hf.get_submodule(path), Conv1D) else 0


def _slice(hf: PreTrainedModel, path: str, axis: int, part: slice | None, *, transposed: bool) -> WeightSlice:
    shape = tuple(weight_of(hf, path).shape)
    return WeightSlice(parameter_name(hf, path, "weight"), shape, axis, part or slice(0, shape[axis], 1), transposed)
