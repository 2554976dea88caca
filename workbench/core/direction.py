"""Direction: a unit vector in one activation site of one layer, and which way is more of the behavior."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from workbench.core.errors import InputError, ShapeError
from workbench.core.numerics import generator
from workbench.core.records import Provenance
from workbench.core.store import load_tensors, save_tensors


@dataclass(frozen=True, eq=False)
class Direction:
    """A unit vector in one activation site of one layer.

    vector: [d_model], stored float32 with norm 1; its sign is the orientation (positive = more of the behavior).
    site: canonical name without the layer, such as "resid_post".
    """

    vector: Tensor
    site: str
    layer: int
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        vector = torch.as_tensor(self.vector).detach().float().cpu()
        if vector.ndim != 1:
            raise ShapeError(f"Direction: vector has shape {tuple(vector.shape)}, expected [d_model].")
        norm = vector.double().norm()
        if not (bool(torch.isfinite(norm)) and float(norm) > 0):
            raise InputError(f"Direction: the vector's norm is {float(norm)}; a direction needs a finite, non-zero vector.")
        object.__setattr__(self, "vector", (vector.double() / norm).float())

    @property
    def at(self) -> str:
        """The site with its layer, such as "blocks.2.resid_post"."""
        return f"blocks.{self.layer}.{self.site}"

    def flipped(self) -> "Direction":
        """The other way round: positive = less of the behavior."""
        return replace(self, vector=-self.vector)

    def random(self, *, seed: int) -> "Direction":
        """A direction drawn uniformly at the same site: the control for whatever is done along this one."""
        drawn = torch.randn(len(self.vector), generator=generator(seed))
        return Direction(drawn, self.site, self.layer, Provenance("random", self._model, options={"like": self.at}, seed=seed))

    @property
    def _model(self) -> str:
        return self.provenance.model if self.provenance else ""

    def __repr__(self) -> str:
        made = self.provenance.method if self.provenance else "given"
        return f"Direction({self.at}, {len(self.vector)} features, {made!r})"

    def _repr_html_(self) -> str:
        notes = self.provenance.notes if self.provenance else {}
        rows = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>" for key, value in notes.items())
        return f"<p>{escape(repr(self))}</p><table>{rows}</table>"

    def save(self, path: str | Path) -> None:
        """Write safetensors."""
        save_directions([self], path)

    @classmethod
    def load(cls, path: str | Path) -> "Direction":
        """Read what `save` wrote.

        Raises: InputError if the file holds the directions of several layers.
        """
        found = load_directions(path)
        if len(found) != 1:
            raise InputError(f"{path}: holds {len(found)} directions; read them with load_directions.")
        return found[0]


def save_directions(directions: Sequence[Direction], path: str | Path) -> None:
    """Write one or several directions, such as one a layer, as safetensors."""
    about = [{"site": d.site, "layer": d.layer, "provenance": d.provenance and d.provenance.as_dict()} for d in directions]
    tensors = {str(i): direction.vector for i, direction in enumerate(directions)}
    save_tensors(path, tensors, {"kind": "directions", "directions": about})


def load_directions(path: str | Path) -> list[Direction]:
    """Read what `save_directions` or `Direction.save` wrote."""
    tensors, about = load_tensors(path, "directions")
    return [
        Direction(tensors[str(i)], one["site"], one["layer"], one["provenance"] and Provenance(**one["provenance"]))
        for i, one in enumerate(about["directions"])
    ]
