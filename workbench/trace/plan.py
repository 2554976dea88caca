"""How much memory a pass over gradients will take, said before it starts."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.core.runtime import plan_memory
from workbench.load.batches import Encoded, by_length, collate
from workbench.load.models import Model
from workbench.trace.forward import forward
from workbench.trace.gradients import tracked


class MemoryPlan(NamedTuple):
    """Bytes that a pass holds. weights: the model's.   sums: what is accumulated.   activations: of the largest batch.

    scores: what is made of the sums, once the activations are gone, with one tensor's temporaries.
    """

    weights: int
    sums: int
    activations: int
    scores: int

    @property
    def total(self) -> int:
        """At the peak: activations and scores are never there together."""
        return self.weights + self.sums + max(self.activations, self.scores)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in self._asdict().items())
        return f"{self.total / 2**30:.2f} GiB at the peak ({parts})"


def plan_pass(
    model: Model,
    rows: Sequence[Encoded],
    names: Collection[str],
    *,
    sums: int,
    beside: int = 0,
    autograd: bool,
    batch_tokens: int,
    job: str,
) -> MemoryPlan:
    """Plan a pass that keeps `sums` float32 numbers for each weight in `names`, and `beside` more after it.

    Args:
        sums, beside: during the pass, and after it.
        autograd: whether autograd sums the gradients, in the weights' own dtype, before they are added to ours.
    Raises: MemoryPlanError if it does not fit into nine tenths of what is free; the model itself is there already.

    What autograd keeps for its backward pass is not derived from a formula: one forward pass of the longest row counts its bytes,
    and the largest batch has so many times as many tokens. On top come the logits and, as the backward pass begins, two gradients
    of their size.
    """
    sizes = {name: p for name, p in model.hf.named_parameters() if name in names}
    weights = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    chosen = sum(p.numel() for p in sizes.values())
    needed = 4 * sums * chosen
    if autograd and any(p.element_size() == 2 for p in sizes.values()):
        needed += 2 * chosen  # autograd's own half-precision gradients, which are added to the sums batch by batch
    groups = [max(len(rows[i].tokens) for i in chosen) * len(chosen) for chosen in by_length(rows, max_tokens=batch_tokens)]
    longest = max(rows, key=lambda row: len(row.tokens))
    logits = 3 * max(groups) * model.d_vocab * model.dtype.itemsize
    activations = _kept(model, longest, names) * max(groups) // len(longest.tokens) + logits
    largest = max(p.numel() for p in sizes.values())
    plan = MemoryPlan(weights, needed, activations, 4 * (beside * chosen + 2 * largest))
    plan_memory(
        job, plan.total - weights, model.device, cure="Give a smaller batch_tokens, or fewer parameters (include=, exclude=)."
    )
    return plan


def _kept(model: Model, row: Encoded, names: Collection[str]) -> int:
    """Bytes that autograd keeps of one row's forward pass; the weights themselves are not counted."""
    owned = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with tracked(model, names), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        passed = forward(model, collate([row], device=model.device))
    del passed
    return sum(kept.values())
