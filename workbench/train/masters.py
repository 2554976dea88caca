"""The trainable entries of a model, as float32 masters an optimizer can hold.

A frozen weight has no master, so no optimizer state, no weight decay, no momentum and no part in the clip norm: it cannot move.
A half-precision weight has a float32 master, so steps smaller than half an ulp are not lost; the model sees it rounded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.delta import Delta
from workbench.core.errors import InputError, NumericsError
from workbench.core.mask import Mask
from workbench.core.records import Provenance
from workbench.load.models import Model


@dataclass(eq=False)
class Master:
    """The trainable entries of one parameter.

    weight: the model's parameter.   index: [k] flat positions, or None for all.   master: [k] float32 leaf.
    initial: [k] the bits before training, in the model's dtype.
    """

    name: str
    weight: torch.nn.Parameter
    index: Tensor | None
    master: Tensor
    initial: Tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The trainable entries of a tensor of the parameter's shape, flat."""
        flat = tensor.reshape(-1)
        return flat if self.index is None else flat[self.index]

    def write(self, values: Tensor) -> None:
        """Put `values` [k] into the model's parameter, rounded to its dtype."""
        flat = self.weight.data.view(-1)
        if self.index is None:
            flat.copy_(values)
        else:
            flat[self.index] = values.to(flat.dtype)

    def collect_gradient(self) -> None:
        """Move the parameter's gradient to the master and free it."""
        gradient = self.weight.grad
        if gradient is None:
            return
        taken = self.gather(gradient).to(self.master.dtype)
        # a view of the gradient would keep all of it alive; a dense one is taken over whole
        if self.master.grad is None:
            self.master.grad = taken
        else:
            self.master.grad += taken
        self.weight.grad = None


@contextmanager
def masters(model: Model, mask: Mask | None) -> Iterator[list[Master]]:
    """The masters of the weights that may move; on exit the model has its old bits, flags and gradients back.

    Raises: InputError if the mask chooses nothing; MismatchError or ShapeError if it is another model's.
    """
    if mask is not None:
        mask.check(model.fingerprint(), model.shapes())
        if mask.count == 0:
            raise InputError("train: the mask chooses no weight at all, so nothing could be learned.")
    made = [m for name, p in model.hf.named_parameters() if (m := _master(name, p, mask)) is not None]
    trainable = {m.name for m in made}
    with kept_flags(model):
        try:
            for name, parameter in model.hf.named_parameters():
                parameter.requires_grad_(name in trainable)
            yield made
        finally:
            with torch.no_grad():
                for m in made:
                    m.write(m.initial)


@contextmanager
def kept_flags(model: Model) -> Iterator[None]:
    """Gradients are empty inside; on exit every parameter has the gradient and the flag back that it had."""
    before = [(p, p.requires_grad, p.grad) for p in model.hf.parameters()]
    for parameter, _, _ in before:
        parameter.grad = None  # what the caller left there is not ours to add to
    try:
        yield
    finally:
        for parameter, flag, gradient in before:
            parameter.grad = None
            parameter.requires_grad_(flag)
            parameter.grad = gradient


def whole(name: str, parameter: torch.nn.Parameter) -> Master:
    """A master of all of a parameter."""
    initial = parameter.detach().reshape(-1).clone()
    return Master(name, parameter, None, initial.to(precise_dtype(parameter), copy=True).requires_grad_(), initial)


def _master(name: str, parameter: torch.nn.Parameter, mask: Mask | None) -> Master | None:
    if not parameter.is_floating_point() or (mask is not None and name not in mask):
        return None
    if mask is None or bool(mask[name].all()):
        return whole(name, parameter)
    index = mask[name].view(-1).nonzero().squeeze(-1).to(parameter.device)
    if not len(index):
        return None
    initial = parameter.detach().reshape(-1)[index].clone()
    return Master(name, parameter, index, initial.to(precise_dtype(parameter), copy=True).requires_grad_(), initial)


def precise_dtype(parameter: Tensor) -> torch.dtype:
    """What the masters of a parameter are kept in: float32, or float64 of a float64 parameter."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def write_back(made: list[Master]) -> None:
    """Show the model the masters' present values."""
    with torch.no_grad():
        for m in made:
            m.write(m.master.detach())


def difference(made: list[Master], provenance: Provenance) -> Delta:
    """Masters minus initial values, as a Delta.

    Raises: NumericsError naming the first parameter that became NaN or infinite.
    """
    changes: dict[str, Tensor] = {}
    for m in made:
        moved = (m.master.detach() - m.initial.to(m.master.dtype)).float().cpu()
        if not bool(torch.isfinite(moved).all()):
            raise NumericsError(f"train: {m.name} became NaN or infinite; a lower lr or a clip_norm is the usual cure.")
        full = moved if m.index is None else torch.zeros(m.weight.numel()).index_copy_(0, m.index.cpu(), moved)
        changes[m.name] = full.view(m.weight.shape)
    return Delta.of(changes, provenance)
