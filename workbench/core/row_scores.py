"""RowScores: one number for every row of a set, with what was measured beside it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from workbench.core.errors import InputError, ShapeError
from workbench.core.picture import table
from workbench.core.records import Provenance
from workbench.core.store import existing, new_file
from workbench.core.svg import number, tag

if TYPE_CHECKING:
    import pandas as pd

_KEY = b"workbench"
_KIND = "RowScores"


@dataclass(frozen=True, eq=False)
class RowScores:
    """One number a row.

    name: of the score.   ids: of the rows, in their order.   values: [row] float64.   higher: what a higher value means, in words.
    unit: of the values.   columns: other numbers about the same rows, each [row] float64.
    What a reader must be told about the numbers stands in provenance.notes.
    """

    name: str
    ids: tuple[str, ...]
    values: Float[np.ndarray, "row"]
    higher: str
    provenance: Provenance
    unit: str = ""
    columns: Mapping[str, Float[np.ndarray, "_"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in {self.name: self.values, **self.columns}.items():
            if np.shape(values) != (len(self.ids),):
                raise ShapeError(f"{self.name}: {name} is {np.shape(values)}, but there are {len(self.ids)} rows.")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return "\n".join([f"{type(self).__name__}({self.name}, {len(self)} rows)", *self.said()])

    def said(self) -> list[str]:
        """The notes, a line each."""
        return [f"{key}: {value}" for key, value in self.provenance.notes.items()]

    def ranked(self) -> list[int]:
        """Positions of the rows, highest value first; equal ones in their order."""
        return np.argsort(-self.values, kind="stable").tolist()

    def frame(self) -> "pd.DataFrame":
        """The score and its companions, one row a line, indexed by id."""
        import pandas as pd

        every: dict[str, Any] = {self.name: self.values, **self.columns}
        return pd.DataFrame(every, index=pd.Index(self.ids, name="id"))

    def save(self, path: str | Path) -> None:
        """Write `frame` as parquet; name, higher, unit and provenance go into the schema's metadata, as JSON under "workbench"."""
        import pyarrow
        import pyarrow.parquet

        about = {
            "kind": _KIND,
            "name": self.name,
            "higher": self.higher,
            "unit": self.unit,
            "provenance": self.provenance.as_dict(),
        }
        made = pyarrow.Table.from_pandas(self.frame())
        noted = json.dumps(about, sort_keys=True, allow_nan=False).encode()
        with new_file(path) as aside:
            pyarrow.parquet.write_table(made.replace_schema_metadata({**(made.schema.metadata or {}), _KEY: noted}), aside)

    @classmethod
    def load(cls, path: str | Path) -> "RowScores":
        """Read what `save` wrote: a RowScores of whatever was saved, so the pairs of PairScores are not in it.

        Raises: InputError if the file is missing, is not parquet, or was not written by `save`.
        """
        import pyarrow
        import pyarrow.parquet

        path = existing(path)
        try:
            read = pyarrow.parquet.read_table(path)
        except pyarrow.ArrowInvalid as error:
            raise InputError(f"{path}: not a parquet file ({error}).") from error
        about = json.loads((read.schema.metadata or {}).get(_KEY, b"{}"))
        if about.get("kind") != _KIND:
            raise InputError(f"{path}: holds no scores of rows with their provenance, expected a file that RowScores.save wrote.")
        frame = read.to_pandas()
        values = {str(name): frame[name].to_numpy(np.float64) for name in frame.columns}
        name = about["name"]
        return RowScores(
            name,
            tuple(frame.index),
            values.pop(name),
            about["higher"],
            Provenance(**about["provenance"]),
            about["unit"],
            values,
        )

    def head(self) -> Markup:
        """What the numbers are, and the notes, as HTML."""
        unit = f" ({self.unit})" if self.unit else ""
        lines = (tag("p", line) for line in self.said())
        return tag("p", tag("b", self.name), f"{unit} of {len(self)} rows; higher: {self.higher}") + Markup("").join(lines)

    def _repr_html_(self) -> str:
        order = self.ranked()
        shown = order if len(order) <= 10 else order[:5] + order[-5:]
        names = [self.name, *self.columns]
        rows = [
            (order.index(i) + 1, self.ids[i], *(number(float(v[i])) for v in (self.values, *self.columns.values()))) for i in shown
        ]
        return str(self.head() + table(("rank", "id", *names), rows))
