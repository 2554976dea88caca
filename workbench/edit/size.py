"""How large an edit is: the weights it touches, their share of the model, and the norm of the change against theirs."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.core.activation import ActivationChange
from workbench.core.change import Change
from workbench.core.delta import Delta
from workbench.core.names import layer_of
from workbench.core.numerics import wide
from workbench.load.models import Model

_BLOCK = 1 << 18  # weights converted at a time


@dataclass(frozen=True)
class LayerSize:
    """The same of one layer ("model.layers.3"), or of a parameter outside the layers."""

    layer: str
    n_parameters: int
    delta_norm: float
    weight_norm: float
    ratio: float | None


@dataclass(frozen=True)
class Size:
    """n_parameters: weights that the change may move.   share: of all the model's weights, tied ones counted once.

    delta_norm, weight_norm: Frobenius norms of the change and of the tensors it touches, as they are now, in whole.
    ratio: delta_norm / weight_norm; None where no weight is touched or all of them are zero.
    features: activations changed by hooks.   bytes: of the tensors a saved Delta holds.   layers: the touched ones.
    """

    n_parameters: int
    share: float
    delta_norm: float
    weight_norm: float
    ratio: float | None
    features: int
    bytes: int
    layers: tuple[LayerSize, ...]

    def as_notes(self) -> dict[str, Any]:
        """The totals, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "layers"}

    def __str__(self) -> str:
        said = f"{self.n_parameters:,} weights ({self.share:.3%} of the model)"
        if self.ratio is not None:
            said += f", ||Delta|| / ||W|| {self.ratio:.3g}"
        return said + (f", {self.features:,} activation features by hooks" if self.features else "")


def size(model: Model, delta: Delta) -> Size:
    """The size of an edit. Norms are float64 sums over float32 squares.

    Args: model: the one `delta` belongs to; its weights as they are now stand for ||W||.
    """
    parameters = dict(model.hf.named_parameters())
    squares: dict[str, list[float]] = {}
    for name, change in delta.changes.items():
        layer = squares.setdefault(layer_of(name), [0, 0.0, 0.0])
        layer[0] += change.n_touched
        layer[1] += change.norm() ** 2
        layer[2] += square_sum(parameters[name])
    layers = tuple(LayerSize(name, int(n), d**0.5, w**0.5, _ratio(d, w)) for name, (n, d, w) in squares.items())
    touched, moved, whole = (sum(one[i] for one in squares.values()) for i in range(3))
    return Size(
        n_parameters=int(touched),
        share=int(touched) / sum(p.numel() for p in parameters.values()),
        delta_norm=moved**0.5,
        weight_norm=whole**0.5,
        ratio=_ratio(moved, whole),
        features=sum(len(hook.index) for hook in delta.hooks),
        bytes=_bytes(*delta.changes.values(), *delta.hooks),
        layers=layers,
    )


@torch.no_grad()
def square_sum(weight: Tensor) -> float:
    """Sum of the squared weights, block by block, so that no copy of the whole tensor is made."""
    total = 0.0
    for block in weight.detach().reshape(-1).split(_BLOCK):
        total += float(wide(block).square().sum(dtype=torch.float64))
    return total


def _ratio(moved: float, whole: float) -> float | None:
    return (moved / whole) ** 0.5 if whole else None


def _bytes(*parts: Change | ActivationChange) -> int:
    tensors = [t for part in parts for t in (part.tensors().values() if isinstance(part, Change) else (part.index, part.values))]
    return sum(t.numel() * t.element_size() for t in tensors)
