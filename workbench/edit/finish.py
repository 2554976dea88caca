"""From computed changes to a Delta that says how it was made, how large it is, and what is done by weights and what by hooks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from workbench.core.activation import ActivationChange
from workbench.core.change import Change
from workbench.core.delta import Delta
from workbench.core.direction import Direction
from workbench.core.records import Provenance
from workbench.core.store import tensor_sha256
from workbench.edit.size import size
from workbench.load.models import Model


def finish(
    model: Model,
    method: str,
    changes: Mapping[str, Change],
    hooks: Sequence[ActivationChange] = (),
    *,
    options: Mapping[str, Any],
    why: str,
    seed: int | None = None,
    data: Mapping[str, str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Delta:
    """The Delta, without the parts that change nothing.

    Args:
        why: which part is done by weights, which by hooks, and for what reason.
        options: ready for JSON; those that change the numbers, and what was edited.
        data: fingerprints of the sets that were read.
    """
    kept = {name: change for name, change in changes.items() if change.norm()}
    left = tuple(hook for hook in hooks if hook.kind == "set" or bool(hook.values.any()))
    about = Provenance(method, model.fingerprint(), dict(data or {}), dict(options), seed, str(model.dtype))
    found = Delta(kept, about, left)
    by = {(True, True): "both", (True, False): "weights", (False, True): "hooks"}.get((bool(kept), bool(left)), "nothing")
    said = {**size(model, found).as_notes(), "by": by, "why": why, **(notes or {})}
    return noted(found, said)


def noted(delta: Delta, notes: Mapping[str, Any]) -> Delta:
    """The same Delta with more to say about it."""
    return replace(delta, provenance=replace(delta.provenance, notes={**delta.provenance.notes, **notes}))


def named(direction: Direction) -> dict[str, Any]:
    """A direction in a provenance: where it is, how it was made, and the hash of its vector."""
    made = direction.provenance.method if direction.provenance else "given"
    return {"at": direction.at, "method": made, "vector": tensor_sha256(direction.vector)}
