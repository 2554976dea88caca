"""The token table: one row an answer token, from one forward pass, kept so that metrics can be recomputed without the model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from workbench.core.errors import DataError, InputError
from workbench.core.records import Provenance
from workbench.core.store import existing, new_file
from workbench.evaluate.answers import Answers

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("position", "token", "logprob", "top", "rank", "mean", "variance")
NO_END = -1  # a tokenizer without an end-of-text token


@dataclass(frozen=True)
class TokenTable:
    """Every answer token of a set of examples, and every generated text.

    name: of the set.   ids, truth, generated: per example; generated is None where nothing was generated.
    variants: "response", "paraphrase", "perturbed.0", ...: what `variant` counts.
    row, variant: [token] int32: which example and which of its answers the token belongs to.
    position: [token] int32, from 0 at the answer's first token.   token: [token] int32, its id.
    logprob, top, rank, mean, variance: [token], as in `evaluate.moments`: nats, float32; ids and ranks int32.
    prompt_tokens: prompt tokens that were forwarded, each shared prompt once.
    provenance: fingerprints of model and examples, options, dtype.
    end: id of the end-of-text token that closes every answer; NO_END if the tokenizer has none; None if the table does not say.
    """

    name: str
    ids: tuple[str, ...]
    truth: tuple[str, ...]
    generated: tuple[str | None, ...]
    variants: tuple[str, ...]
    row: Int[np.ndarray, "token"]
    variant: Int[np.ndarray, "token"]
    position: Int[np.ndarray, "token"]
    token: Int[np.ndarray, "token"]
    logprob: Float[np.ndarray, "token"]
    top: Int[np.ndarray, "token"]
    rank: Int[np.ndarray, "token"]
    mean: Float[np.ndarray, "token"]
    variance: Float[np.ndarray, "token"]
    prompt_tokens: int
    provenance: Provenance
    end: int | None = None

    def __len__(self) -> int:
        return len(self.token)

    def __repr__(self) -> str:
        made = sum(text is not None for text in self.generated)
        return (
            f"TokenTable({self.name!r}, {len(self.ids)} examples, {len(self):,} answer tokens after "
            f"{self.prompt_tokens:,} prompt tokens, {made} generated texts)"
        )

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>" + self.answers.frame().head(8).to_html(escape=True, float_format="%.4g")

    def frame(self) -> "pd.DataFrame":
        """One line an answer token: id, variant, position, token, logprob, top, rank, mean, variance."""
        import pandas as pd

        named = {
            "id": pd.Categorical.from_codes(self.row, categories=list(self.ids)),
            "variant": pd.Categorical.from_codes(self.variant, categories=list(self.variants)),
        }
        return pd.DataFrame(named | {name: getattr(self, name) for name in COLUMNS})

    def mean_nll(self) -> Float[np.ndarray, "example variant"]:
        """Mean negative log-likelihood of every answer, nats per token, end-of-text included; NaN where there is no such answer.

        -(1/|y|) * sum_t logprob_t, float64. Each answer counts once, however long; Hugging Face's `loss` averages over the
        tokens of a batch instead.
        """
        shape = (len(self.ids), len(self.variants))
        cell = self.row.astype(np.int64) * shape[1] + self.variant
        total = np.bincount(cell, weights=self.logprob.astype(np.float64), minlength=shape[0] * shape[1])
        count = np.bincount(cell, minlength=shape[0] * shape[1])
        return np.where(count > 0, -total / np.maximum(count, 1), np.nan).reshape(shape)

    @cached_property
    def answers(self) -> Answers:
        """One number per example and variant: what the metrics read."""
        nll = self.mean_nll()
        return Answers(
            name=self.name,
            ids=self.ids,
            response=nll[:, 0],
            paraphrase=nll[:, 1],
            perturbed=nll[:, 2:],
            generated=self.generated,
            truth=self.truth,
            source=self.provenance.model,
        )

    def take(self, positions: Sequence[int] | Int[np.ndarray, "example"]) -> "TokenTable":
        """The examples at `positions`, in that order, with all their tokens; `prompt_tokens` stays that of the whole pass.

        Raises: InputError for a position outside the table; DataError without one.
        """
        rows = np.asarray(positions, dtype=np.int64)
        n = len(self.ids)
        if rows.size == 0:
            raise DataError(f"TokenTable {self.name!r}: take was given no position; nothing would be left to measure.")
        if ((rows < 0) | (rows >= n)).any():
            raise InputError(f"TokenTable {self.name!r}: take was given {rows.min()} to {rows.max()}, expected 0 to {n - 1}.")
        order = np.argsort(self.row, kind="stable")
        count = np.bincount(self.row, minlength=n)
        first = (count.cumsum() - count)[rows]
        size = count[rows]
        inside = np.arange(size.sum()) - np.repeat(size.cumsum() - size, size)
        at = order[np.repeat(first, size) + inside]
        texts = {name: tuple(getattr(self, name)[i] for i in rows) for name in ("ids", "truth", "generated")}
        columns = {name: getattr(self, name)[at] for name in ("variant", *COLUMNS)}
        return replace(self, **texts, **columns, row=np.repeat(np.arange(len(rows), dtype=np.int32), size))

    def save(self, path: str | Path) -> None:
        """Write parquet: the columns of `frame`; ids, texts and provenance as JSON in the file's metadata."""
        import pyarrow
        import pyarrow.parquet

        about = {
            "kind": "TokenTable",
            "name": self.name,
            "ids": self.ids,
            "truth": self.truth,
            "generated": self.generated,
            "variants": self.variants,
            "prompt_tokens": self.prompt_tokens,
            "provenance": self.provenance.as_dict(),
            "end": self.end,
        }
        columns = {
            "id": pyarrow.DictionaryArray.from_arrays(self.row, list(self.ids)),
            "variant": pyarrow.DictionaryArray.from_arrays(self.variant, list(self.variants)),
        }
        made = pyarrow.table(columns | {name: getattr(self, name) for name in COLUMNS})
        made = made.replace_schema_metadata({"workbench": json.dumps(about, allow_nan=False)})
        with new_file(path) as aside:
            pyarrow.parquet.write_table(made, aside, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> "TokenTable":
        """Read what `save` wrote, to the same bits.

        Raises: InputError if the file is missing or holds something else; DataError if it is no parquet file.
        """
        import pyarrow
        import pyarrow.parquet

        try:
            read = pyarrow.parquet.read_table(existing(path))
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"{path}: not a parquet file ({error}).") from error
        about = json.loads((read.schema.metadata or {}).get(b"workbench", b"{}"))
        if about.pop("kind", None) != "TokenTable":
            raise InputError(f"{path}: holds no token table; expected a file that TokenTable.save wrote.")
        codes = {
            key: _codes(read.column(column), about[names])
            for key, column, names in (("row", "id", "ids"), ("variant", "variant", "variants"))
        }
        columns = {name: read.column(name).to_numpy() for name in COLUMNS}
        texts = {name: tuple(about.pop(name)) for name in ("ids", "truth", "generated", "variants")}
        return cls(**texts, **codes, **columns, **about | {"provenance": Provenance(**about["provenance"])})


Table = TokenTable | Answers


def answers(table: Table) -> Answers:
    """The example-level record of either kind of table."""
    return table.answers if isinstance(table, TokenTable) else table


def _codes(column: Any, known: list[str]) -> Int[np.ndarray, "token"]:
    """Places in `known` of a column of names, which the file holds as a dictionary in an order of its own."""
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    place = {name: i for i, name in enumerate(known)}
    order = np.array([place[name] for name in encoded.dictionary.to_pylist()], dtype=np.int32)
    return order[encoded.indices.to_numpy()]
