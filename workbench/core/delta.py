"""Delta: a change of weights as a value. Computed first, applied by one function, undone to the same bits.

`w + d - d == w` fails for a third of all floats, so undoing is not subtracting: `apply` keeps the entries it overwrites in the
model's ledger and `undo` writes them back. A Delta names Hugging Face parameters and the fingerprint of the model it was
computed on, and refuses another.

    before = model.fingerprint()
    with applied(model, delta):
        ...                             # model.fingerprint() != before
    model.fingerprint() == before       # True: the same bits
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench.core.change import Change, add, change_from, smallest, touched
from workbench.core.errors import MismatchError, ShapeError, UndoError, unknown
from workbench.core.names import layer_of
from workbench.core.numerics import check_finite
from workbench.core.records import Provenance
from workbench.core.store import check_vacant, load_tensors, new_folder, save_tensors, tensor_sha256, text_sha256


@runtime_checkable
class HasWeights(Protocol):
    """What a Delta needs of a model: the HF module, its tokenizer, its fingerprint, and the ledger of applied edits."""

    hf: Any
    tokenizer: Any
    ledger: "list[Applied]"

    def fingerprint(self) -> str: ...
    def base_fingerprint(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Applied:
    """One line of a model's ledger: the Delta and the bits it overwrote."""

    delta: "Delta"
    overwritten: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Delta:
    """What to add to which weights.

    changes: by HF parameter name, a Change (rows, columns, indices, low rank or dense) with float32 values.
    """

    changes: Mapping[str, Change]
    provenance: Provenance

    def __post_init__(self) -> None:
        for name, change in self.changes.items():
            for part, tensor in change.tensors().items():
                if tensor.is_floating_point():
                    check_finite(f"Delta: {name} ({part})", tensor)

    @classmethod
    def of(cls, differences: Mapping[str, Tensor], provenance: Provenance) -> "Delta":
        """From full differences by parameter name; each is stored in its smallest form, an all-zero one not at all."""
        changes = {name: smallest(difference) for name, difference in differences.items() if bool(difference.any())}
        return cls(changes, provenance)

    @property
    def id(self) -> str:
        """SHA-256 of what it changes, tensor by tensor."""
        parts = {
            f"{name}/{part}": tensor_sha256(tensor)
            for name, change in self.changes.items()
            for part, tensor in change.tensors().items()
        }
        return text_sha256(parts)

    @property
    def is_empty(self) -> bool:
        """True if it changes nothing."""
        return not self.changes

    def __repr__(self) -> str:
        return f"Delta({self.provenance.method!r}, {self.n_touched:,} weights in {len(self.changes)} tensors)"

    @property
    def n_touched(self) -> int:
        """How many weights it may change."""
        return sum(change.n_touched for change in self.changes.values())

    def scaled(self, factor: float) -> "Delta":
        """The same change times `factor`; -1 negates it, 0 gives an empty Delta."""
        about = replace(self.provenance, method=f"{factor:g} x {self.provenance.method}")
        return Delta({n: c.scaled(factor) for n, c in self.changes.items()} if factor else {}, about)

    def compose(self, other: "Delta") -> "Delta":
        """Both changes at once, as one Delta on the same base model.

        Raises: MismatchError if they were computed on different models.
        """
        if other.provenance.model != self.provenance.model:
            raise MismatchError(
                f"compose: one Delta is of model {self.provenance.model[:12]}, the other of {other.provenance.model[:12]}."
            )
        changes = dict(self.changes)
        for name, change in other.changes.items():
            changes[name] = add(changes[name], change) if name in changes else change
        options = {"of": [self.provenance.as_dict(), other.provenance.as_dict()]}
        return Delta(changes, Provenance("compose", self.provenance.model, options=options))

    def by_layer(self, model: HasWeights) -> list[dict[str, Any]]:
        """Per layer of the model, changed or not: layer, delta_norm, weight_norm and ratio = ||Delta|| / ||W||.

        The ratio is None where weights that are all zero are changed: it is not defined there.
        Norms are over all tensors of the layer, accumulated in float64. A tensor outside the layers stands by itself.
        """
        _parameters(model, self)
        squares: dict[str, list[float]] = {}
        for name, weight in model.hf.named_parameters():
            pair = squares.setdefault(layer_of(name), [0.0, 0.0])
            pair[0] += self.changes[name].norm() ** 2 if name in self.changes else 0.0
            pair[1] += float(weight.detach().double().square().sum())
        return [
            {"layer": layer, "delta_norm": d**0.5, "weight_norm": w**0.5, "ratio": (d / w) ** 0.5 if w else (None if d else 0.0)}
            for layer, (d, w) in squares.items()
        ]

    def moved(self, model: HasWeights) -> float:
        """Share of all the model's weights whose bits, in its own dtype, differ once this is applied."""
        with applied(model, self):
            parameters = _parameters(model, self)
            before = model.ledger[-1].overwritten
            changed = sum(int((touched(c, parameters[n].data) != before[n]).sum()) for n, c in self.changes.items())
        return changed / sum(p.numel() for p in model.hf.parameters())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{type(change).__name__}</td><td>{change.n_touched:,}</td><td>{change.norm():.4g}</td></tr>"
            for name, change in self.changes.items()
        )
        head = "<tr><th>parameter</th><th>form</th><th>weights</th><th>norm</th></tr>"
        return f"<p>{escape(repr(self))}</p><table>{head}{rows}</table>"

    def save(self, path: str | Path) -> None:
        """Write safetensors; the size follows what is touched, not the model."""
        tensors = {f"{n}/{part}": t for n, change in self.changes.items() for part, t in change.tensors().items()}
        forms = {n: {"form": type(c).__name__, "shape": list(c.shape)} for n, c in self.changes.items()}
        save_tensors(path, tensors, {"kind": "delta", "forms": forms, "provenance": self.provenance.as_dict()})

    @classmethod
    def load(cls, path: str | Path) -> "Delta":
        """Read what `save` wrote."""
        tensors, about = load_tensors(path, "delta")
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, part = key.rsplit("/", 1)
            parts.setdefault(name, {})[part] = tensor
        changes = {n: change_from(about["forms"][n]["form"], about["forms"][n]["shape"], p) for n, p in parts.items()}
        return cls(changes, Provenance(**about["provenance"]))

    def export(self, model: HasWeights, folder: str | Path) -> None:
        """Write the edited model as a Hugging Face checkpoint; `model` itself is as before afterwards.

        Raises: InputError if `folder` exists and is not empty.
        """
        check_vacant(folder)
        with applied(model, self), new_folder(folder) as aside:
            model.hf.save_pretrained(aside)
            model.tokenizer.save_pretrained(aside)


def _parameters(model: HasWeights, delta: Delta) -> dict[str, torch.nn.Parameter]:
    """The parameters `delta` names, checked for name and shape."""
    every = dict(model.hf.named_parameters())
    for name, change in delta.changes.items():
        if name not in every:
            raise unknown("parameter in the Delta", name, every)
        if tuple(every[name].shape) != tuple(change.shape):
            raise ShapeError(f"Delta: {name} is {tuple(change.shape)}, the model's is {tuple(every[name].shape)}.")
    return {name: every[name] for name in delta.changes}


@torch.no_grad()
def apply(model: HasWeights, delta: Delta) -> None:
    """Add `delta` to the weights in place; `undo(model, delta)` puts the old bits back.

    Each touched weight becomes round(float32(w) + d) in the model's dtype, rounded once; where d is zero it keeps its bits.

    Raises:
        MismatchError: the Delta was computed on another model. A Delta fits the model as loaded and the model's present
            state (with the edits in its ledger); nothing else.
        UndoError: it is applied already.
    """
    if any(line.delta is delta or line.delta.id == delta.id for line in model.ledger):
        raise UndoError(f"{delta!r} is applied to this model already; undo it first, or scale it to apply it twice.")
    if delta.provenance.model not in (model.base_fingerprint(), model.fingerprint()):
        raise MismatchError(
            f"Delta {delta.provenance.method!r} belongs to model {delta.provenance.model[:12]}, but this one is "
            f"{model.base_fingerprint()[:12]}. Load the checkpoint it was computed on."
        )
    parameters = _parameters(model, delta)
    overwritten = {name: touched(change, parameters[name].data).clone() for name, change in delta.changes.items()}
    try:
        for name, change in delta.changes.items():
            change.add_to(parameters[name].data)  # through .data: PyTorch's version counters see only other people's writes
    except BaseException:  # out of memory or interrupted half way: nobody could undo it later
        for name, change in delta.changes.items():
            change.put_back(parameters[name].data, overwritten[name])
        raise
    model.ledger.append(Applied(delta, overwritten))


@torch.no_grad()
def undo(model: HasWeights, delta: Delta) -> None:
    """Put back the bits that `apply(model, delta)` overwrote.

    Raises: UndoError if it is not applied, or if another edit lies on top of it.
    """
    if not any(line.delta is delta for line in model.ledger):
        raise UndoError(f"{delta!r} is not applied to this model, so there is nothing to undo.")
    top = model.ledger[-1]
    if top.delta is not delta:
        above = [line.delta for line in model.ledger]
        above = above[[d is delta for d in above].index(True) + 1 :]
        raise UndoError(
            f"{delta!r} lies under {len(above)} later edit(s); undo {above[-1]!r} first. Bits come back only in reverse order."
        )
    parameters = _parameters(model, delta)
    for name, change in delta.changes.items():
        change.put_back(parameters[name].data, top.overwritten[name])
    model.ledger.pop()


@contextmanager
def applied(model: HasWeights, delta: Delta) -> Iterator[HasWeights]:
    """The model with `delta` applied; the exact bits are back on exit, also after an exception."""
    apply(model, delta)
    try:
        yield model
    finally:
        undo(model, delta)
