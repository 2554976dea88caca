"""RowScores: one number for every row of a set, with what was measured beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from workbench.core.errors import ShapeError
from workbench.core.records import Provenance

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class RowScores:
    """One number a row.

    name: of the score.   ids: of the rows, in their order.   values: [row] float64.   higher: what a higher value means, in words.
    unit: of the values.   columns: other numbers about the same rows, each [row] float64.
    """

    name: str
    ids: tuple[str, ...]
    values: Float[np.ndarray, "row"]
    higher: str
    provenance: Provenance
    unit: str = ""
    columns: Mapping[str, Float[np.ndarray, "row"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in {self.name: self.values, **self.columns}.items():
            if np.shape(values) != (len(self.ids),):
                raise ShapeError(f"{self.name}: {name} is {np.shape(values)}, but there are {len(self.ids)} rows.")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {len(self)} rows)"

    def frame(self) -> "pd.DataFrame":
        """The score and its companions, one row a line, indexed by id."""
        import pandas as pd

        every: dict[str, Any] = {self.name: self.values, **self.columns}
        return pd.DataFrame(every, index=pd.Index(self.ids, name="id"))
