"""Influence: how much training on each row of one set would lower the loss of each row of another.

One sign for every method: a higher value means that training on the row lowers the query's loss (a proponent); a negative one that
training on it raises the loss. Methods that define the opposite sign are turned round before they become an Influence.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from markupsafe import Markup

from workbench.core.errors import InputError, MismatchError, NumericsError, ShapeError, unknown
from workbench.core.picture import table
from workbench.core.records import Example, Examples, Provenance
from workbench.core.row_scores import RowScores
from workbench.core.store import load_tensors, save_tensors
from workbench.core.svg import number, shorten, tag

if TYPE_CHECKING:
    import pandas as pd

_CARDS, _TOP, _TEXT = 3, 5, 110  # queries on a card, rows at each end, characters of a text
HIGHER = "training on this row lowers the query's loss"


@dataclass(frozen=True, eq=False)
class Influence:
    """values: [query train] float64.   query, train: ids of the rows, in their order.

    Scales differ from method to method; only the order within one query, and sums over training rows, are compared.
    query_text, train_text: by id, what `with_text` was given; shown on the card, never saved.
    """

    values: Float[np.ndarray, "query train"]
    query: tuple[str, ...]
    train: tuple[str, ...]
    provenance: Provenance
    query_text: dict[str, str] = field(default_factory=dict)
    train_text: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if np.shape(self.values) != (len(self.query), len(self.train)):
            raise ShapeError(
                f"Influence: values are {np.shape(self.values)}, but there are {len(self.query)} queries and {len(self.train)} "
                "training rows."
            )
        for q, i in np.argwhere(~np.isfinite(self.values))[:1]:
            raise NumericsError(f"Influence: row {self.train[i]!r} on query {self.query[q]!r} is NaN or infinite.")

    def __repr__(self) -> str:
        return f"Influence({self.provenance.method}, {len(self.query)} queries x {len(self.train)} training rows)"

    def of(self, query: str) -> Float[np.ndarray, "train"]:
        """Values of every training row for one query.

        Raises: UnknownNameError, with the nearest id.
        """
        if query not in self.query:
            raise unknown("query", query, self.query)
        return self.values[self.query.index(query)]

    def top(self, query: str, k: int = 10) -> list[str]:
        """Ids of the k training rows that would lower this query's loss most, highest value first; equal ones in their order."""
        return [self.train[i] for i in np.argsort(-self.of(query), kind="stable")[:k]]

    def frame(self, k: int = 10) -> "pd.DataFrame":
        """Both ends of every query's ranking: query, rank, train, value.

        rank: 1 to k for the highest values, -1 to -k for the lowest (-1 is the lowest); no row stands at both ends.
        """
        import pandas as pd

        if k < 1:
            raise InputError(f"Influence.frame: k is {k}, expected at least 1.")
        lines = [
            (query, rank, self.train[i], float(values[i]))
            for query, values in zip(self.query, self.values, strict=True)
            for rank, i in _ends(values, k)
        ]
        return pd.DataFrame(lines, columns=["query", "rank", "train", "value"])

    def mean(self) -> RowScores:
        """One number a training row: the mean over all queries, each counting once."""
        name = f"{self.provenance.method}, mean over {len(self.query)} queries"
        return RowScores(name, self.train, self.values.mean(0), "training on this row lowers the queries' losses", self.provenance)

    def with_text(self, query: Examples, train: Examples) -> "Influence":
        """The same values with prompt and response of every row, for the card.

        Raises: MismatchError unless both sets have exactly these rows.
        """
        for what, ids, rows in (("queries", self.query, query), ("training rows", self.train, train)):
            if set(rows.ids) != set(ids):
                raise MismatchError(f"Influence.with_text: {rows.name} does not hold the {len(ids)} {what} of this influence.")
        texts = [{row.id: _said(row) for row in rows} for rows in (query, train)]
        return replace(self, query_text=texts[0], train_text=texts[1])

    def _repr_html_(self) -> str:
        parts = [tag("p", repr(self), f"; higher: {HIGHER}")]
        for query, values in list(zip(self.query, self.values, strict=True))[:_CARDS]:
            lines = [
                (rank, self.train[i], number(float(values[i])), shorten(self.train_text.get(self.train[i], ""), _TEXT))
                for rank, i in _ends(values, _TOP)
            ]
            parts.append(tag("p", tag("b", f"query {query}"), f" {shorten(self.query_text.get(query, ''), 2 * _TEXT)}"))
            parts.append(table(("rank", "row", "value", "text"), lines))
        if len(self.query) > _CARDS:
            parts.append(tag("p", f"{_CARDS} of {len(self.query)} queries; .frame() has all."))
        return str(Markup("").join(parts))

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


def _ends(values: Float[np.ndarray, "train"], k: int) -> list[tuple[int, int]]:
    """(rank, position) of the k highest values and of the k lowest others, from the top down."""
    order = np.argsort(-values, kind="stable").tolist()
    high = order[:k]
    low = order[max(len(high), len(order) - k) :]
    return [(rank, i) for rank, i in enumerate(high, 1)] + [(rank - len(low), i) for rank, i in enumerate(low)]


def _said(row: Example) -> str:
    return f"{row.prompt} → {row.response}"
