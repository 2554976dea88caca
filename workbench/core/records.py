"""What travels between stages: rows of data, and where a result came from.

Directions of activations are in `direction.py` (Direction), the records about weights in `scores.py` (Scores), `mask.py` (Mask) and
`delta.py` (Delta), the numbers that are reported in `measurements.py` (Measurements).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, overload, runtime_checkable

from workbench.core.errors import DataError
from workbench.core.store import text_sha256

if TYPE_CHECKING:
    import pandas as pd


VERSIONED = ("mechanistic-workbench", "torch", "transformers")


@dataclass(frozen=True)
class Provenance:
    """How a result was made; stored with every record.

    model: fingerprint of the model.   data: fingerprint of each set by its role.   options: those that change the numbers.
    versions: of the packages in VERSIONED.
    """

    method: str
    model: str
    data: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    dtype: str | None = None
    reduction: str | None = None
    tokens: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: {p: version(p) for p in VERSIONED})

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Example:
    """One prompt and its answer, with the same fact in other words and false variants where the set has them."""

    id: str
    prompt: str
    response: str
    paraphrase: str | None = None
    perturbed: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreferencePair:
    """One prompt with the answer that is preferred and the one that is not."""

    id: str
    prompt: str
    chosen: str
    rejected: str


@runtime_checkable
class Row(Protocol):
    """What a set asks of its rows: a dataclass with an id."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Row)
S = TypeVar("S", bound="Rows")  # pyright: ignore[reportMissingTypeArgument]


class Rows(Sequence[R], Generic[R]):
    """An ordered set of rows with unique ids, a name, and a fingerprint of its text."""

    def __init__(self, rows: Iterable[R], name: str) -> None:
        self.rows: tuple[R, ...] = tuple(rows)
        self.name = name
        if not self.rows:
            raise DataError(f"{name}: the set is empty. Nothing can be measured on, or learned from, no rows.")
        seen: set[str] = set()
        for row in self.rows:
            if row.id in seen:
                raise DataError(f"{name}: two rows have the id {row.id!r}; ids must be unique.")
            seen.add(row.id)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self: S, index: slice) -> S: ...
    def __getitem__(self, index: int | slice) -> Any:
        return type(self)(self.rows[index], self.name) if isinstance(index, slice) else self.rows[index]

    def __iter__(self) -> Iterator[R]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} rows)"

    @property
    def ids(self) -> list[str]:
        """Row ids in order."""
        return [row.id for row in self.rows]

    def fingerprint(self) -> str:
        """SHA-256 over all rows in order; a changed letter or a changed order changes it."""
        return text_sha256([asdict(row) for row in self.rows])

    def take(self: S, positions: Iterable[int]) -> S:
        """The rows at `positions`, in that order."""
        return type(self)((self.rows[i] for i in positions), self.name)

    def frame(self) -> "pd.DataFrame":
        """One row per line, indexed by id."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows]).set_index("id")

    def _repr_html_(self) -> str:
        frame = self.frame().head(8)
        return f"<p>{escape(repr(self))}</p>" + frame.to_html(escape=True, max_cols=6)


class Examples(Rows[Example]):
    """Rows of (id, prompt, response, paraphrase, perturbed)."""

    def answered(self, response: str) -> "Examples":
        """The same prompts, all with this response, such as a refusal; without paraphrases and false variants."""
        return Examples((Example(row.id, row.prompt, response) for row in self.rows), self.name)


class PreferencePairs(Rows[PreferencePair]):
    """Rows of (id, prompt, chosen, rejected)."""


def check_disjoint(forget: Examples, retain: Examples) -> None:
    """DataError naming the shared rows, if a (prompt, response) stands in both sets."""
    kept = {(row.prompt, row.response) for row in retain}
    shared = [row.id for row in forget if (row.prompt, row.response) in kept]
    if shared:
        listed = ", ".join(shared[:5]) + (" ..." if len(shared) > 5 else "")
        raise DataError(
            f"forget ({forget.name}) and retain ({retain.name}) share {len(shared)} rows: {listed}. "
            "A row cannot be forgotten and kept at once; take it out of one of them."
        )
