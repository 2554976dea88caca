"""Delta: a change of weights as a value. Computed first, applied by one function, undone to the same bits.

`w + d - d == w` fails for a third of all floats, so undoing is not subtracting: `apply` keeps the entries it overwrites in the
model's ledger and `undo` writes them back. A Delta names Hugging Face parameters and the fingerprint of the model it was
computed on, and refuses another. What no weight can hold (steering, a mean in place of a head where there is no bias) it carries as
changes of activations, which are hooks while it is applied; the views of the model get the same hooks.

    before = model.fingerprint()
    with applied(model, delta):
        ...                             # model.fingerprint() != before
    model.fingerprint() == before       # True: the same bits
"""

import gc
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.core.activation import ActivationChange, attach
from workbench.core.change import Change, add, change_from, kept, smallest, touched
from workbench.core.errors import InputError, MismatchError, ModelError, ShapeError, UndoError, unknown
from workbench.core.names import layer_of
from workbench.core.numerics import check_finite
from workbench.core.records import Provenance
from workbench.core.store import check_vacant, load_tensors, new_folder, save_tensors, tensor_sha256, text_sha256


@runtime_checkable
class HasWeights(Protocol):
    """What a Delta needs of a model: the HF module, its tokenizer, its fingerprint, the ledger of applied edits, and its views.

    views: the modules of every view by their Hugging Face path.
    """

    hf: Any
    tokenizer: Any
    ledger: "list[Applied]"
    views: list[MutableMapping[str, nn.Module]]

    def fingerprint(self) -> str: ...
    def base_fingerprint(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Applied:
    """One line of a model's ledger: the Delta, the bits it overwrote, and the hooks it placed."""

    delta: "Delta"
    overwritten: Mapping[str, Tensor]
    handles: list[RemovableHandle]


@dataclass(frozen=True, eq=False)
class Delta:
    """What to add to which weights.

    changes: by HF parameter name, a Change (rows, columns, indices, low rank or dense) with float32 values.
    hooks: what is done to activations while it is applied, in this order where two are at one site.
    """

    changes: Mapping[str, Change]
    provenance: Provenance
    hooks: tuple[ActivationChange, ...] = field(default=())

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
        hooks = [[_place(hook), tensor_sha256(hook.index), tensor_sha256(hook.values)] for hook in self.hooks]
        return text_sha256([parts, hooks] if hooks else parts)

    @property
    def is_empty(self) -> bool:
        """True if it changes nothing."""
        return not self.changes and not self.hooks

    def __repr__(self) -> str:
        by_hook = f"; {len(self.hooks)} activation sites by hook" if self.hooks else ""
        return f"Delta({self.provenance.method!r}, {self.n_touched:,} weights in {len(self.changes)} tensors{by_hook})"

    @property
    def n_touched(self) -> int:
        """How many weights it may change."""
        return sum(change.n_touched for change in self.changes.values())

    def scaled(self, factor: float) -> "Delta":
        """The same change times `factor`; -1 negates it, 0 gives an empty Delta."""
        about = replace(self.provenance, method=f"{factor:g} x {self.provenance.method}")
        if not factor:
            return Delta({}, about)
        return Delta({n: c.scaled(factor) for n, c in self.changes.items()}, about, tuple(h.scaled(factor) for h in self.hooks))

    def compose(self, other: "Delta") -> "Delta":
        """Both changes at once, as one Delta on the same base model; hooks of this one come first.

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
        return Delta(changes, Provenance("compose", self.provenance.model, options=options), (*self.hooks, *other.hooks))

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
        ) + "".join(
            f"<tr><td>{escape(hook.site)}</td><td>{hook.kind} (hook)</td><td>–</td><td>{float(hook.values.norm()):.4g}</td></tr>"
            for hook in self.hooks
        )
        head = "<tr><th>parameter</th><th>form</th><th>weights</th><th>norm</th></tr>"
        return f"<p>{escape(repr(self))}</p><table>{head}{rows}</table>"

    def save(self, path: str | Path) -> None:
        """Write safetensors; the size follows what is touched, not the model."""
        tensors = {f"{n}/{part}": t for n, change in self.changes.items() for part, t in change.tensors().items()}
        tensors |= {f"{_HOOK}{i}/{part}": getattr(h, part) for i, h in enumerate(self.hooks) for part in ("index", "values")}
        forms = {n: {"form": type(c).__name__, "shape": list(c.shape)} for n, c in self.changes.items()}
        about = {"kind": "delta", "forms": forms, "provenance": self.provenance.as_dict()}
        save_tensors(path, tensors, about | {"hooks": [_place(hook) for hook in self.hooks]})

    @classmethod
    def load(cls, path: str | Path) -> "Delta":
        """Read what `save` wrote."""
        tensors, about = load_tensors(path, "delta")
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, part = key.rsplit("/", 1)
            parts.setdefault(name, {})[part] = tensor
        hooks = tuple(_hook(place, parts.pop(f"{_HOOK}{i}")) for i, place in enumerate(about.get("hooks", [])))
        changes = {n: change_from(about["forms"][n]["form"], about["forms"][n]["shape"], p) for n, p in parts.items()}
        return cls(changes, Provenance(**about["provenance"]), hooks)

    def export(self, model: HasWeights, folder: str | Path) -> None:
        """Write the edited model as a Hugging Face checkpoint; `model` itself is as before afterwards.

        Raises: InputError if `folder` exists and is not empty, or if a part of the change is done by hooks.
        """
        if self.hooks:
            raise InputError(
                f"Delta.export: {self!r} changes {self.hooks[0].site} by a hook, which no checkpoint can hold. Save the Delta and "
                "apply it where the model is used."
            )
        check_vacant(folder)
        with applied(model, self), new_folder(folder) as aside:
            model.hf.save_pretrained(aside)
            model.tokenizer.save_pretrained(aside)


_HOOK = "activation:"


def _place(hook: ActivationChange) -> dict[str, Any]:
    """An activation change without its tensors, ready for JSON."""
    part = None if hook.part is None else list(hook.part)
    return {"kind": hook.kind, "site": hook.site, "module": hook.module, "side": hook.side, "part": part}


def _hook(place: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ActivationChange:
    """The activation change that `_place` and its tensors describe."""
    part = None if place["part"] is None else tuple(place["part"])
    return ActivationChange(place["kind"], place["site"], place["module"], place["side"], part, tensors["index"], tensors["values"])


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
    overwritten = {name: kept(change, parameters[name].data) for name, change in delta.changes.items()}
    if any(hook.module not in view for view in model.views if len(view) for hook in delta.hooks):
        gc.collect()  # a view that nobody holds any more goes in parts: those in reference cycles only now
    model.views[:] = [view for view in model.views if len(view)]  # those that are still there
    handles: list[RemovableHandle] = []
    try:
        for modules in (dict(model.hf.named_modules()), *model.views):
            _attach(modules, delta, handles)
        for name, change in delta.changes.items():
            change.add_to(parameters[name].data)  # through .data: PyTorch's version counters see only other people's writes
    except BaseException:  # out of memory or interrupted half way: nobody could undo it later
        for handle in handles:
            handle.remove()
        for name, change in delta.changes.items():
            change.put_back(parameters[name].data, overwritten[name])
        raise
    model.ledger.append(Applied(delta, overwritten, handles))


def follow(model: HasWeights, view: MutableMapping[str, nn.Module]) -> None:
    """Let a view take part in the hooks of the edits that are applied now and later; its weights are the model's own.

    Args: view: its modules by their Hugging Face path, held weakly, so that a view nobody uses can go.
    """
    for line in model.ledger:
        _attach(view, line.delta, line.handles)
    model.views.append(view)


def _attach(modules: Mapping[str, nn.Module], delta: Delta, handles: list[RemovableHandle]) -> None:
    """Place the hooks of `delta` on these modules, and note their handles."""
    for hook in delta.hooks:
        module = modules.get(hook.module)
        if module is None:
            raise ModelError(f"Delta: it changes {hook.site}, but the model or a view of it has no module {hook.module!r} to hook.")
        handles.append(attach(module, hook))


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
    for handle in top.handles:
        handle.remove()
    model.ledger.pop()


@contextmanager
def applied(model: HasWeights, delta: Delta) -> Iterator[HasWeights]:
    """The model with `delta` applied; the exact bits are back on exit, also after an exception."""
    apply(model, delta)
    try:
        yield model
    finally:
        undo(model, delta)
