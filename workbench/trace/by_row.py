"""What is done with every module's input and output gradient where rows are told apart: products with directions, or kept whole.

Contract   adds <g_i, Q_k> and ||g_i||^2 of each module's parameters      for `dots.py`
Keep       adds each module's part of g_i to its place in a block
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.core.numerics import wide
from workbench.core.runtime import progress
from workbench.load.batches import Batch, Encoded, by_length, collate
from workbench.load.models import Model
from workbench.trace.contractions import (
    both_linear,
    cross_tied,
    dots_linear,
    dots_lookup,
    each_linear,
    each_small,
    square_linear,
    square_lookup,
)
from workbench.trace.forward import forward
from workbench.trace.gradients import ExampleLoss, Weights
from workbench.trace.watch import Unsupported, Watcher, check_shared, shared, watched


class Products(NamedTuple):
    """dots: <g_i, Q_k>.   squares: ||g_i||^2, or None where nobody asked.   Both float64."""

    dots: Float64[Tensor, "row direction"]
    squares: Float64[Tensor, "row"] | None


class Contract(Watcher):
    """Adds every module's products to `into`. chosen: which rows the batch at hand holds.

    Raises: Unsupported if squares are asked for and a parameter is shared by other modules than an embedding and an unembedding.
    """

    def __init__(self, model: Model, parameters: Mapping[str, nn.Parameter], directions: Sequence[Weights], into: Products) -> None:
        self.names = {id(p): name for name, p in parameters.items()}
        self.parameters, self.directions, self.into = parameters, directions, into
        several = shared(model, self.names)
        if into.squares is not None:
            check_shared(several)
        self.tied = frozenset(several)
        self.called: set[str] = set()
        self.unembedded: dict[str, tuple[Tensor, Tensor]] = {}  # waits for the embedding, whose backward pass comes last

    def begin(self, batch: Batch, chosen: Tensor) -> None:
        """The hooks will see this batch next, with these rows."""
        self.batch, self.chosen = batch, chosen
        self.called.clear()
        self.unembedded.clear()

    def arrived(self, module: nn.Module, path: str, owned: dict[str, str], x: Tensor) -> None:
        if self.into.squares is not None and path in self.called:
            raise Unsupported(f"{path} is called twice in one pass: squares of a sum need both summands at once.")
        self.called.add(path)

    @torch.no_grad()
    def returned(self, module: nn.Module, path: str, owned: dict[str, str], x: Tensor, s: Tensor) -> None:
        if isinstance(module, nn.Linear | Conv1D):
            if "weight" in owned:
                self._linear(owned["weight"], x, s, turned=isinstance(module, Conv1D))
            if "bias" in owned:
                self._values(owned["bias"], wide(s).sum(1))
        elif type(module) is nn.Embedding:
            self._lookup(owned["weight"], x, _unpadded(module, x, s))
        else:
            for key, value in each_small(module, owned, x, s).items():
                self._values(owned[key], value)

    def _linear(self, name: str, x: Tensor, s: Tensor, *, turned: bool) -> None:
        having = self._having(name)
        if len(having) > 1 and self.into.squares is not None:
            both = both_linear(x, s, self._stacked(name, having), turned=turned)
            self._put(having, both.dots)
            self._square(both.squares)
        else:
            self._add(name, lambda stacked: dots_linear(x, s, stacked, turned=turned))
            if self.into.squares is not None:
                self._square(square_linear(x, s))
        if self.into.squares is not None and name in self.tied:
            self.unembedded[name] = (x, s)

    def _lookup(self, name: str, ids: Tensor, s: Tensor) -> None:
        self._add(name, lambda stacked: dots_lookup(ids, s, stacked))
        if self.into.squares is not None:
            self._square(square_lookup(ids, s))
            if name in self.tied:
                self._square(2 * cross_tied(ids, s, *self.unembedded.pop(name)))

    def _values(self, name: str, each: Tensor) -> None:
        """From every row's gradient itself."""
        flat = each.flatten(1)
        self._add(name, lambda stacked: (flat @ stacked.flatten(1).T).double())
        self._square(flat.square().sum(1, dtype=torch.float64))

    def _add(self, name: str, product: Callable[[Tensor], Tensor]) -> None:
        """Multiply with the directions that have this parameter: stacked here, one parameter at a time."""
        having = self._having(name)
        if having:
            self._put(having, product(self._stacked(name, having)))

    def _having(self, name: str) -> list[int]:
        return [k for k, one in enumerate(self.directions) if name in one]

    def _stacked(self, name: str, having: list[int]) -> Tensor:
        like = wide(self.parameters[name].detach())
        return torch.stack([self.directions[k][name].to(like) for k in having])

    def _put(self, having: list[int], dots: Tensor) -> None:
        self.into.dots[self.chosen[:, None], torch.tensor(having, device=dots.device)] += dots

    def _square(self, squares: Tensor | None) -> None:
        """Add to the squares, if there are any."""
        if self.into.squares is not None and squares is not None:
            self.into.squares[self.chosen] += squares


class Keep(Watcher):
    """Adds every row's gradient to its place in `blocks`, [row, *shape] by parameter name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], blocks: Mapping[str, Tensor]) -> None:
        self.names = {id(p): name for name, p in parameters.items()}
        self.blocks = blocks

    def begin(self, batch: Batch, chosen: Tensor) -> None:
        self.batch, self.chosen = batch, chosen

    def arrived(self, module: nn.Module, path: str, owned: dict[str, str], x: Tensor) -> None:
        pass

    @torch.no_grad()
    def returned(self, module: nn.Module, path: str, owned: dict[str, str], x: Tensor, s: Tensor) -> None:
        if isinstance(module, nn.Linear | Conv1D):
            if "weight" in owned:
                for rows, each in each_linear(x, s, turned=isinstance(module, Conv1D)):
                    self.blocks[owned["weight"]][self.chosen[rows]] += each
            if "bias" in owned:
                self.blocks[owned["bias"]][self.chosen] += wide(s).sum(1)
        elif type(module) is nn.Embedding:
            s = wide(_unpadded(module, x, s))
            for k, i in enumerate(self.chosen.tolist()):
                self.blocks[owned["weight"]][i].index_add_(0, x[k], s[k])
        else:
            for key, value in each_small(module, owned, x, s).items():
                self.blocks[owned[key]][self.chosen] += value


def _unpadded(module: nn.Embedding, ids: Tensor, s: Tensor) -> Tensor:
    """The gradient without the positions whose id `nn.Embedding` gives none."""
    return s if module.padding_idx is None else s * (ids != module.padding_idx)[..., None]


def through(
    model: Model,
    rows: Sequence[Encoded],
    loss: ExampleLoss,
    watcher: Contract | Keep,
    parameters: Mapping[str, nn.Parameter],
    batch_tokens: int,
    show: bool,
    label: str,
) -> None:
    """One forward and backward pass over all rows, with no gradient of any parameter."""
    for p in parameters.values():
        p.requires_grad_(False)
    try:
        with watched(model, watcher):
            for chosen in progress(list(by_length(rows, max_tokens=batch_tokens)), label=label, show=show):
                batch = collate([rows[i] for i in chosen], device=model.device)
                watcher.begin(batch, torch.tensor(chosen, device=model.device))
                loss(forward(model, batch), chosen).sum().backward()
    finally:
        for p in parameters.values():
            p.requires_grad_(True)


def one_by_one(
    model: Model,
    rows: Sequence[Encoded],
    loss: ExampleLoss,
    parameters: Mapping[str, nn.Parameter],
    use: Callable[[int, str, Tensor], None],
    show: bool,
    label: str,
) -> None:
    """Plain autograd, one row after the other, for models that cannot be taken apart."""
    for i in progress(range(len(rows)), label=f"{label}, row by row", show=show):
        loss(forward(model, collate([rows[i]], device=model.device)), [i]).sum().backward()
        for name, p in parameters.items():
            if p.grad is not None:
                use(i, name, wide(p.grad))
                p.grad = None


def adder(directions: Sequence[Weights], into: Products) -> Callable[[int, str, Tensor], None]:
    def add(i: int, name: str, gradient: Tensor) -> None:
        for k, one in enumerate(directions):
            if name in one:
                into.dots[i, k] += (gradient * one[name].to(gradient)).sum(dtype=torch.float64)
        if into.squares is not None:
            into.squares[i] += gradient.square().sum(dtype=torch.float64)

    return add
