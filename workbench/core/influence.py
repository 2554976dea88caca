"""Influence: how much training on each row of one set would lower the loss of each row of another.

One sign for every method: a higher value means that training on the row lowers the query's loss (a proponent); a negative one that
training on it raises the loss. Methods that define the opposite sign are turned round before they become an Influence.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from workbench.core.errors import ShapeError, unknown
from workbench.core.records import Provenance
from workbench.core.store import load_tensors, save_tensors

HIGHER = "training on this row lowers the query's loss"


@dataclass(frozen=True, eq=False)
class Influence:
    """values: [query train] float64.   query, train: ids of the rows, in their order.

    Scales differ from method to method; only the order within one query, and sums over training rows, are compared.
    """

    values: Float[np.ndarray, "query train"]
    query: tuple[str, ...]
    train: tuple[str, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        if np.shape(self.values) != (len(self.query), len(self.train)):
            raise ShapeError(
                f"Influence: values are {np.shape(self.values)}, but there are {len(self.query)} queries and {len(self.train)} "
                "training rows."
            )

    def __repr__(self) -> str:
        return f"Influence({self.provenance.method}, {len(self.query)} queries x {len(self.train)} training rows)"

    def of(self, query: str) -> Float[np.ndarray, "train"]:
        """Values of every training row for one query.

        Raises: UnknownNameError, with the nearest id.
        """
        if query not in self.query:
            raise unknown("query", query, self.query)
        return self.values[self.query.index(query)]

    def save(self, path: str | Path) -> None:
        """Write values, ids, sign and provenance to one safetensors file."""
        about: dict[str, Any] = {"kind": "Influence", "query": list(self.query), "train": list(self.train), "higher": HIGHER}
        save_tensors(path, {"values": torch.from_numpy(self.values)}, about | {"provenance": self.provenance.as_dict()})

    @classmethod
    def load(cls, path: str | Path) -> "Influence":
        """Read what `save` wrote."""
        tensors, about = load_tensors(path, "Influence")
        made = Provenance(**about["provenance"])
        return cls(tensors["values"].numpy(), tuple(about["query"]), tuple(about["train"]), made)
