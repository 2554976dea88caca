"""Measurements: the numbers that are reported, each with its interval, its n and its unit."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.errors import InputError, unknown
from workbench.core.statistics import Estimate
from workbench.core.store import existing, new_file

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Measurement:
    """One number. low and high bound its 95 % interval; NaN in both means that none is defined, and `note` says why."""

    metric: str
    split: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    better: str = ""
    note: str = ""

    @classmethod
    def of(cls, metric: str, split: str, estimate: Estimate, *, unit: str, better: str = "", note: str = "") -> "Measurement":
        """A measurement from an estimate."""
        return cls(metric, split, *estimate, unit=unit, better=better, note=note)


class Measurements:
    """Rows of Measurement; `m["probability", "forget"]` is the one about that metric and split."""

    def __init__(self, rows: Iterable[Measurement]) -> None:
        self.rows = tuple(rows)
        self._by_key = {(row.metric, row.split): row for row in self.rows}
        if len(self._by_key) != len(self.rows):
            raise InputError("Measurements: a (metric, split) pair stands twice.")

    def __getitem__(self, key: tuple[str, str]) -> Measurement:
        if key not in self._by_key:
            raise unknown("measurement", "/".join(key), ["/".join(k) for k in self._by_key])
        return self._by_key[key]

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Measurements({len(self)} rows)\n{self.frame().to_string(index=False, float_format='%.4g')}"

    def _repr_html_(self) -> str:
        return self.frame().to_html(escape=True, index=False, float_format="%.4g", max_rows=200)

    def frame(self) -> "pd.DataFrame":
        """Columns metric, split, value, low, high, n, unit, better, note."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def as_dicts(self) -> list[dict[str, object]]:
        """The rows as JSON values; NaN becomes None."""
        return [{k: None if isinstance(v, float) and v != v else v for k, v in asdict(row).items()} for row in self.rows]

    def save(self, path: str | Path) -> None:
        """Write parquet."""
        with new_file(path) as aside:
            self.frame().to_parquet(aside, index=False)

    @classmethod
    def load(cls, path: str | Path) -> "Measurements":
        """Read what `save` wrote."""
        import pandas as pd

        records = pd.read_parquet(existing(path)).to_dict("records")
        return cls(Measurement(**{str(k): v for k, v in record.items()}) for record in records)
