"""PairScores, what `ches` returns: drop the worst pairs, look at them, hold the score against a measurement."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from workbench.core.errors import InputError, NumericsError, ShapeError
from workbench.core.picture import table
from workbench.core.records import PreferencePair, PreferencePairs
from workbench.core.row_scores import RowScores
from workbench.core.statistics import Estimate, spearman_estimate, spearman_unbounded, spearman_undefined
from workbench.core.store import new_file
from workbench.core.svg import number, shorten, tag
from workbench.score.pictures import histogram, scatter

if TYPE_CHECKING:
    import pandas as pd

KEEP = 0.95
_EITHER_END = 5  # pairs shown from each end of the ranking
_TEXT = 64  # characters of a text that are shown


def check_keep(keep: float) -> None:
    """InputError unless `keep` is a share of the pairs."""
    if not 0 < keep <= 1:
        raise InputError(f"filter: keep is {keep!r}, expected a share above 0 and at most 1; 0.95 drops the highest twentieth.")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PairScores(RowScores):
    """One number a preference pair. pairs: the pairs themselves, in the order of the values."""

    pairs: PreferencePairs

    def cut(self, keep: float = KEEP) -> list[int]:
        """Positions of the round(keep x pairs) pairs with the lowest scores, in their order; ties go to the earlier pair.

        Raises: InputError if `keep` is outside (0, 1], or so small that no pair is left, or if pairs are to be dropped and all
            scores are equal; NumericsError if a score is NaN.
        """
        check_keep(keep)
        count = round(keep * len(self))
        if count == 0:
            raise InputError(f"filter: keep {keep} of {len(self)} pairs is none; give a larger share.")
        if not np.isfinite(self.values).all():
            bad = self.ids[int(np.flatnonzero(~np.isfinite(self.values))[0])]
            raise NumericsError(f"filter: {self.name} of pair {bad!r} is NaN or infinite; it has no place in the order.")
        if count < len(self) and self.uniform:
            raise InputError(
                f"filter: {self.name} is {self.values[0]:.4g} for all {len(self)} pairs, so none is higher than another. "
                + ("; ".join(self.said()) or "Filter by another score.")
            )
        return sorted(np.argsort(self.values, kind="stable")[:count].tolist())

    @property
    def uniform(self) -> bool:
        """Whether all scores are equal, so that they order nothing."""
        return bool((self.values == self.values[0]).all())

    def filter(self, keep: float = KEEP, *, out: str | Path | None = None) -> PreferencePairs:
        """The share of the pairs with the lowest scores, in their order.

        Args:
            keep: share to keep; exactly round(keep x pairs) of them (see `cut`). The paper keeps the lowest 0.05 for its last
                experiment; the default drops the highest twentieth.
            out: a new .jsonl file of id, prompt, chosen, rejected, which `wb.pairs` reads.
        Raises: InputError for a bad share, if all scores are equal, or if `out` exists already.
        """
        kept = self.pairs.take(self.cut(keep))
        if out is not None:
            if Path(out).exists():
                raise InputError(f"filter: {out} exists already; give another file, or remove it first.")
            with new_file(out) as aside:
                lines = (json.dumps(asdict(pair), ensure_ascii=False) for pair in kept)
                aside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return kept

    def against(self, measured: Sequence[float] | Float[np.ndarray, "pair"], *, seed: int = 0) -> "Displacement":
        """Whether the score, and every other number beside it, foretold displacement: how far ln p(chosen) fell.

        Displacement is minus the measured change, so a rank correlation above 0 means that a higher score went with a larger fall.
        Its interval draws prompts, with all their pairs.

        Args: measured: the change of ln p(chosen) of each pair, in the order of `ids`: after training minus before, in nats.
        Raises: ShapeError unless there is one number a pair; DataError if one is NaN or infinite.
        """
        found = np.asarray(measured, dtype=np.float64)
        if found.shape != (len(self),):
            raise ShapeError(
                f"against: measured is {found.shape}, expected one number for each of {len(self)} pairs, in their order."
            )
        fall, prompts = 0.0 - found, [pair.prompt for pair in self.pairs]
        beside = {name: values for name, values in self.columns.items() if not np.array_equal(values, self.values)}
        every = {self.name: self.values, **beside}
        estimates = {name: spearman_estimate(values, fall, groups=prompts, seed=seed) for name, values in every.items()}
        missing = {
            name: spearman_undefined(values, fall) or spearman_unbounded(estimates[name], groups=prompts)
            for name, values in every.items()
        }
        return Displacement(self.name, self.ids, self.values, fall, estimates, {name: why for name, why in missing.items() if why})

    def card(self, *, keep: float = KEEP, measured: Sequence[float] | Float[np.ndarray, "pair"] | None = None) -> "PairCard":
        """A page's worth of HTML: the histogram with the cut, the pairs at both ends and, with `measured`, what came true.

        Args: keep: see `filter`.   measured: see `against`.
        """
        check_keep(keep)
        return PairCard(self, keep, None if measured is None else self.against(measured))

    def _repr_html_(self) -> str:
        return self.card()._repr_html_()


@dataclass(frozen=True, eq=False)
class Displacement:
    """Scores held against what training then did to ln p(chosen).

    name: of the score.   ids, scores, displaced: by pair; displaced is ln p(chosen) before minus after, in nats.   estimates:
    Spearman's rho of the score and of every number beside it with displacement.   notes: why one has none, or no interval.
    A score that foretells displacement has a positive rho: the higher the score, the further ln p(chosen) fell.
    """

    name: str
    ids: tuple[str, ...]
    scores: Float[np.ndarray, "pair"]
    displaced: Float[np.ndarray, "pair"]
    estimates: dict[str, Estimate]
    notes: dict[str, str]

    def __repr__(self) -> str:
        return f"Displacement({self.name}, {len(self.ids)} pairs)\n{self.frame().to_string(float_format='%.3f')}"

    @property
    def rho(self) -> Estimate:
        """Spearman's rho of the score itself."""
        return self.estimates[self.name]

    def frame(self) -> "pd.DataFrame":
        """Columns rho, low, high, n and note; a line for the score and for every number beside it."""
        import pandas as pd

        rows = [
            {
                "score": name,
                "rho": found.value,
                "low": found.low,
                "high": found.high,
                "n": found.n,
                "note": self.notes.get(name, ""),
            }
            for name, found in self.estimates.items()
        ]
        return pd.DataFrame(rows).set_index("score")

    def _repr_html_(self) -> str:
        rho, why = self.rho, self.notes.get(self.name, "")
        if math.isnan(rho.value):
            said = f"no rho: {why}"
        else:
            said = f"Spearman's rho {number(rho.value)}{_interval(rho)}, n = {rho.n}" + (f"; {why}" if why else "")
        drawn = scatter(
            self.scores, self.displaced, self.ids, x_label=self.name, y_label="displacement: fall of ln p(chosen), nats"
        )
        lines = [
            (name, number(one.value), _interval(one).strip(), self.notes.get(name, "")) for name, one in self.estimates.items()
        ]
        return str(tag("p", said) + drawn + table(("score", "rho", "95 % interval", ""), lines))


@dataclass(frozen=True, eq=False)
class PairCard:
    """What a notebook shows of PairScores. keep: where the histogram is cut.   displacement: the measurement, if there is one."""

    scores: PairScores
    keep: float
    displacement: Displacement | None = None

    def __repr__(self) -> str:
        return repr(self.scores)

    def _repr_html_(self) -> str:
        scores = self.scores  # where all are equal nothing can be cut
        kept = set(scores.cut(1 if scores.uniform else self.keep))
        chosen = np.array([i in kept for i in range(len(scores))])
        said = {"kept_label": f"the {len(kept):,} kept", "dropped_label": f"the {len(scores) - len(kept):,} dropped"}
        drawn = histogram(scores.values, chosen, label=scores.name, **said)
        parts = [scores.head(), drawn, self._ranking()]
        if self.displacement is not None:
            parts.append(tag("h4", "Against the measurement"))
            parts.append(self.displacement._repr_html_())
        return "".join(parts)

    def _ranking(self) -> str:
        order = self.scores.ranked()
        shown = order if len(order) <= 2 * _EITHER_END else order[:_EITHER_END] + order[-_EITHER_END:]
        place = {i: rank for rank, i in enumerate(order, 1)}
        rows = [(place[i], number(float(self.scores.values[i])), *_shown(self.scores.pairs[i])) for i in shown]
        return tag("p", "Highest and lowest:") + table(("rank", self.scores.name, "id", "prompt", "chosen", "rejected"), rows)


def _interval(found: Estimate) -> str:
    """ " [low, high]", or nothing where there is none."""
    return f" [{number(found.low)}, {number(found.high)}]" if math.isfinite(found.low) else ""


def _shown(pair: PreferencePair) -> tuple[str, ...]:
    return tuple(shorten(text, _TEXT) for text in (pair.id, pair.prompt, pair.chosen, pair.rejected))
