"""The random control of any edit: a Delta as large as a given one, in the same places, that means nothing."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from workbench.core.activation import ActivationChange
from workbench.core.change import Change, Columns, Dense, Indices, LowRank, Rows
from workbench.core.delta import Delta
from workbench.core.errors import InputError
from workbench.core.numerics import generator
from workbench.edit.places import stream


def matched_random(delta: Delta, *, seed: int = 0) -> Delta:
    """A random change of the same form, place and norm: what the size of an edit does without its content.

        rows, columns       each row or column a Gaussian vector of the norm it had
        indices, dense      Gaussian values of the tensor's norm
        low rank            two Gaussian factors of the same rank, their product of the same Frobenius norm
        hooks               a Gaussian vector of the same norm: another addition, another constant, another direction removed

    Every row of a surgery gets a direction of its own here. `surgery(..., control="change")` adds one random direction to all of
    them, which keeps the change's rank too; `orthogonalize` and `steer` likewise.

    Args: seed: of the draw; tensors are drawn in the order of their names, then the hooks in theirs.
    Returns: float32 values whose norms agree with the given ones to rounding; its provenance names the original.
    Raises: InputError for a hook that holds activations at zero: no constant other than zero has that norm.
    """
    source = generator(stream(seed, "matched random"))
    drawn = {name: _random(delta.changes[name], source) for name in sorted(delta.changes)}
    hooks = tuple(_random_hook(hook, source) for hook in delta.hooks)
    about = delta.provenance
    made = replace(about, method=f"random, as large as {about.method}", seed=seed, notes={**about.notes, "like": delta.id})
    return Delta({name: drawn[name] for name in delta.changes}, made, hooks)


def _random(change: Change, source: Generator) -> Change:
    match change:
        case Rows() | Columns():
            along = 1 - change.dim
            return type(change)(change.index, _like(change.values, source, dim=along), change.shape)
        case Indices():
            return Indices(change.index, _like(change.values, source), change.shape)
        case LowRank():
            left, right = (torch.randn(t.shape, generator=source) for t in (change.left, change.right))
            found = LowRank(left, right, change.shape)
            return found.scaled(change.norm() / found.norm())
        case Dense():
            return Dense(_like(change.values, source))
    raise InputError(f"matched_random: a {type(change).__name__} change has no random counterpart.")


def _random_hook(hook: ActivationChange, source: Generator) -> ActivationChange:
    if not bool(hook.values.any()):
        raise InputError(
            f"matched_random: a hook holds {hook.site} at zero, and no other constant has norm 0. Compare with control='place', "
            "the same thing done elsewhere."
        )
    return replace(hook, values=_like(hook.values, source))


def _like(values: Float[Tensor, "..."], source: Generator, *, dim: int | None = None) -> Float[Tensor, "..."]:
    """Gaussian values with the norm of `values`: of the whole, or of every slice along `dim`."""
    drawn = torch.randn(values.shape, generator=source)
    norm, now = (torch.linalg.vector_norm(t, dim=dim, keepdim=dim is not None, dtype=torch.float64) for t in (values, drawn))
    return drawn * (norm / now).float()
