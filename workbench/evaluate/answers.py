"""The record all metrics read: what a model says about each example, one number a variant of its answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError, ShapeError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Answers:
    """Mean NLL of every variant of every example's answer, and the texts; reduced from a token table or read from a log.

    Each NLL is in nats per token, averaged over the answer's tokens with the end-of-text token among them, float64.

    name: the split or set.   ids: unique, in order.   source: the model's fingerprint, or the log's path.
    response, paraphrase: [example]; paraphrase is NaN where the example has none.
    perturbed: [example option], NaN on the right where an example has fewer false answers than others; [example 0] if none has.
    generated, truth: text per example, None where there is none.
    recall: [example] ROUGE-L recall that was read from a log or computed before; None lets the metric compute it from the texts.
    """

    name: str
    ids: tuple[str, ...]
    response: Float[np.ndarray, "example"]
    paraphrase: Float[np.ndarray, "example"]
    perturbed: Float[np.ndarray, "example option"]
    generated: tuple[str | None, ...]
    truth: tuple[str | None, ...]
    recall: Float[np.ndarray, "example"] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        n = len(self.ids)
        if n == 0:
            raise DataError(f"Answers {self.name!r}: there is no example; nothing was measured.")
        lengths = {
            "response": len(self.response),
            "paraphrase": len(self.paraphrase),
            "perturbed": len(self.perturbed),
            "generated": len(self.generated),
            "truth": len(self.truth),
            "recall": n if self.recall is None else len(self.recall),
        }
        wrong = {name: length for name, length in lengths.items() if length != n}
        if wrong or self.perturbed.ndim != 2:
            raise ShapeError(
                f"Answers {self.name!r}: {n} ids, but lengths {wrong}; perturbed has shape {self.perturbed.shape}, "
                f"expected [{n}, option]. Every field holds one entry an example, in the order of the ids."
            )
        if len(set(self.ids)) != n:
            raise DataError(f"Answers {self.name!r}: an id stands twice; ids must be unique.")
        if not np.isfinite(self.response).all():
            row = self.ids[int(np.flatnonzero(~np.isfinite(self.response))[0])]
            raise DataError(f"Answers {self.name!r}: the response's NLL of row {row!r} is NaN or infinite.")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Answers({self.name!r}, {len(self)} examples, {self.perturbed.shape[1]} false answers each at most)"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>" + self.frame().head(8).to_html(escape=True, float_format="%.4g")

    def frame(self) -> "pd.DataFrame":
        """Columns response, paraphrase, perturbed.0 ... (nats per token), generated, truth; indexed by id."""
        import pandas as pd

        columns: dict[str, object] = {"response": self.response, "paraphrase": self.paraphrase}
        columns |= {f"perturbed.{k}": self.perturbed[:, k] for k in range(self.perturbed.shape[1])}
        columns |= {"generated": self.generated, "truth": self.truth}
        return pd.DataFrame(columns, index=pd.Index(self.ids, name="id"))

    def take(self, positions: Sequence[int]) -> "Answers":
        """The examples at `positions`, in that order."""
        rows = np.asarray(positions, dtype=np.int64)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            response=self.response[rows],
            paraphrase=self.paraphrase[rows],
            perturbed=self.perturbed[rows],
            generated=tuple(self.generated[i] for i in rows),
            truth=tuple(self.truth[i] for i in rows),
            recall=None if self.recall is None else self.recall[rows],
        )

    def aligned(self, other: "Answers") -> "Answers":
        """`other` in the order of these ids.

        Raises: DataError if it holds other ids, or another true text under one of them: numbers about other rows cannot be
            compared row by row.
        """
        where = {id: i for i, id in enumerate(other.ids)}
        absent = [id for id in self.ids if id not in where]
        if absent or len(other) != len(self):
            raise DataError(
                f"{self.name!r} has {len(self)} rows and the reference {other.name!r} has {len(other)}; "
                f"{len(absent)} ids are missing there{f', first {absent[0]!r}' if absent else ''}. "
                "Evaluate model and reference on the same rows."
            )
        same = other.take([where[id] for id in self.ids])
        for id, mine, theirs in zip(self.ids, self.truth, same.truth, strict=True):
            if mine is not None and theirs is not None and mine != theirs:
                raise DataError(
                    f"{self.name!r}: row {id!r} is {mine[:40]!r} here and {theirs[:40]!r} in the reference. "
                    "The two were evaluated on different rows; is it another forget set?"
                )
        return same

    def options(self) -> Float[np.ndarray, "example option"]:
        """`perturbed`, once every example is known to have a false answer; DataError naming the first that has none."""
        has = np.isfinite(self.perturbed).any(axis=1)
        if not has.all():
            raise DataError(
                f"{self.name!r}: {int((~has).sum())} of {len(self)} rows have no perturbed answer, first "
                f"{self.ids[int(np.flatnonzero(~has)[0])]!r}. Use rows with false answers only"
                + (f", here rows[:{leading}]." if (leading := int(has.argmin())) == has.sum() and leading else ".")
            )
        return self.perturbed
