"""An edit beside its controls: the same thing elsewhere, and a random change as large in the same places."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.core.change import Along, Change
from workbench.core.delta import Delta
from workbench.core.errors import InputError
from workbench.core.names import places
from workbench.core.picture import table
from workbench.core.registry import edit as registry
from workbench.core.svg import number, tag
from workbench.edit.size import Size, size
from workbench.load.models import Model

ARMS = {"edit": "the edit", "place": "the same elsewhere", "change": "random, as large"}


@dataclass(frozen=True, eq=False)
class Edited:
    """An edit and its two controls. place, change: None where there is none, and `missing` says why.

    sizes: of each of the three that exist, by "edit", "place", "change".
    """

    delta: Delta
    place: Delta | None
    change: Delta | None
    sizes: Mapping[str, Size]
    missing: Mapping[str, str]

    @property
    def arms(self) -> dict[str, Delta]:
        """Those that exist, by "edit", "place", "change"."""
        every = {"edit": self.delta, "place": self.place, "change": self.change}
        return {name: delta for name, delta in every.items() if delta is not None}

    def __repr__(self) -> str:
        said = "; ".join(f"{ARMS[name]}: {one}" for name, one in self.sizes.items())
        return f"Edited({self.delta.provenance.method!r}; {said})"

    def _repr_html_(self) -> str:
        head = ["", "touched", "weights", "share", "‖Δ‖", "‖Δ‖/‖W‖", "by hooks", "file"]
        rows = [[ARMS[name], *_row(delta, self.sizes[name])] for name, delta in self.arms.items()]
        said = [tag("p", f"{ARMS[name]}: {reason}") for name, reason in self.missing.items()]
        layers = [
            [one.layer, f"{one.n_parameters:,}", number(one.delta_norm), _ratio(one.ratio)] for one in self.sizes["edit"].layers
        ]
        by_layer = table(["the edit by layer", "weights", "‖Δ‖", "‖Δ‖/‖W‖"], layers) if layers else ""
        about = self.delta.provenance
        hidden = ("places", "edited", "direction", "control")
        options = ", ".join(f"{key}={value}" for key, value in about.options.items() if value is not None and key not in hidden)
        title = tag("p", tag("b", about.method), f" ({options}): {about.notes.get('why', '')}")
        return str(tag("div", title, table(head, rows), *said, by_layer))


def with_controls(method: str, model: Model, where: Any, *, seed: int = 0, options: Mapping[str, Any] | None = None) -> Edited:
    """Compute an edit and both of its controls.

    Args:
        method: name of an edit along a direction or at places, such as "surgery" or "ablate_heads".
        where: its direction or places.
        seed: of the edit's own draws and of the controls.
        options: the edit's other options.
    Returns: three Deltas with their sizes. Where a control is undefined (every head of a layer ablated; a random change as
        large as a hook that holds zero), it is None with its reason in `missing`.
    Raises: UnknownNameError for the method or an option; InputError for an edit of two sets, or for `control` or `seed` among the
        options.
    """
    member = registry[method]
    given = dict(options or {})
    if member.about["where"] == "sets" or "control" not in member.options:
        raise InputError(
            f"with_controls: {member.name} has no place to be done elsewhere; compare its Delta with matched_random(delta)."
        )
    for name in ("control", "seed"):
        if name in given:
            raise InputError(f"with_controls: {name} stands in options; controls are set here, and seed is an argument of its own.")
    member.check_options(given)
    delta: Delta = member.function(model, where, seed=seed, **given)
    found: dict[str, Delta] = {}
    missing: dict[str, str] = {}
    for control in ("place", "change"):
        try:
            found[control] = member.function(model, where, seed=seed, control=control, **given)
        except InputError as error:
            missing[control] = str(error)
    sizes = {name: size(model, one) for name, one in {"edit": delta, **found}.items()}
    return Edited(delta, found.get("place"), found.get("change"), sizes, missing)


def _row(delta: Delta, one: Size) -> list[str]:
    hooks = [f"{hook.kind} {hook.site} ({len(hook.index)} features)" for hook in delta.hooks]
    return [
        _few(_touched(delta)),
        f"{one.n_parameters:,}",
        f"{one.share:.3%}",
        number(one.delta_norm),
        _ratio(one.ratio),
        _few(hooks),
        f"{one.bytes / 1024:,.1f} KiB",
    ]


def _touched(delta: Delta) -> list[str]:
    """What is changed of every kind of matrix, and in how many of them: "mlp.gate_proj.weight (4): 138 rows"."""
    kinds: dict[str, list[Change]] = {}
    for name, place in places(delta.changes).items():
        kinds.setdefault(place.kind, []).append(delta.changes[name])
    said = []
    for kind, changes in kinds.items():
        forms = {type(change).__name__.lower() for change in changes}
        lines = sum(len(change.index) for change in changes if isinstance(change, Along))
        what = " and ".join(sorted(forms)).replace("lowrank", "low rank")
        said.append(f"{kind} ({len(changes)}): {f'{lines:,} ' if lines else ''}{what}")
    return said


def _few(said: list[str]) -> str:
    return ", ".join(said[:4]) + (" ..." if len(said) > 4 else "") or "–"


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else number(ratio)
