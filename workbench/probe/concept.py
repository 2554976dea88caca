"""Value vectors that carry a concept, and how much the model's answers about it lose without each of them.

    gap = mean drop on the concept's answers - mean drop on unrelated answers        nats per token, see `removal`

Candidates are judged first by what they write and when they fire (`candidates`), then by taking each out. A vector is chosen on
one half of the rows and its gap is reported on the other half: the largest of many noisy gaps, on the rows it was chosen by,
would be too large. Beside every gap stands that of random vectors of the same norm in its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.core.components import Place
from workbench.core.errors import InputError
from workbench.core.measurements import Measurements
from workbench.core.picture import bars, table
from workbench.core.records import Examples, Provenance
from workbench.core.store import text_sha256
from workbench.core.svg import number, tag
from workbench.load.models import Model
from workbench.probe.candidates import candidates, moments
from workbench.probe.cards import visible
from workbench.probe.halves import Half, halves
from workbench.probe.joint import gap_of, joint_gap
from workbench.probe.removal import drops
from workbench.probe.value_vectors import value_vectors, which_layers

if TYPE_CHECKING:
    import pandas as pd

# On the organism what a vector writes (top_logit, coherence) says little about its gap, how much more it writes on the texts says
# most: Spearman with the true gap over all 2,752 vectors .45 for write, .21 contrast, -.04 top_logit, .00 coherence.
WEIGHTS = {"contrast": 1.0, "write": 1.0, "top_logit": 0.25, "coherence": 0.25}
UNIT = "nats per token"


@dataclass(frozen=True, eq=False)
class Concepts:
    """Value vectors ranked by their gap on the selecting rows; every other gap and drop is of the reporting rows.

    layer, neuron: where.   side: +1 if it writes its top tokens on the concept's texts, -1 if its bottom tokens.
    tokens: those it writes there.   score, contrast, write, top_logit, coherence: see `candidates`.
    selected: gap on the selecting rows.   drop, unrelated_drop, gap: nats per token; gap_low, gap_high: 95 % bootstrap interval
    over rows.   control: mean gap of random vectors of the same norm; its interval is over draws.   advantage: gap minus
    control, row by row, with its interval over rows.   n, n_unrelated: reporting rows.   held_out: those rows.
    ranked: all candidates by their gap on the selecting rows, of which the first are the vectors here.
    """

    layer: Int[np.ndarray, "vector"]
    neuron: Int[np.ndarray, "vector"]
    side: Int[np.ndarray, "vector"]
    tokens: tuple[tuple[str, ...], ...]
    values: Mapping[str, Float[np.ndarray, "vector"]]
    n: int
    n_unrelated: int
    held_out: Half
    ranked: tuple[Place, ...]
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.layer)

    def __getitem__(self, name: str) -> Float[np.ndarray, "vector"]:
        return self.values[name]

    @property
    def places(self) -> list[Place]:
        """(layer, neuron) of every vector, best first."""
        return [Place(int(layer), int(neuron)) for layer, neuron in zip(self.layer, self.neuron, strict=True)]

    @property
    def beats_control(self) -> Bool[np.ndarray, "vector"]:
        """Whether the gap is larger than that of random vectors of the same norm, by its interval over the reporting rows."""
        return self.values["advantage_low"] > 0

    def top(self, k: int) -> list[Place]:
        """The k best of all candidates, by the selecting rows."""
        if not 1 <= k <= len(self.ranked):
            raise InputError(f"Concepts.top: k is {k}, expected 1 to {len(self.ranked)}, the number of candidates.")
        return list(self.ranked[:k])

    def joint_gap(self, model: Model, *, sizes: Sequence[int] = (1, 2, 5, 10, 20), seeds: Sequence[int] = range(5)) -> Measurements:
        """What is lost without the best n candidates together, on the reporting rows; see `probe.joint_gap`."""
        return joint_gap(model, self.ranked, self.held_out.answers, self.held_out.unrelated, sizes=sizes, seeds=seeds)

    def frame(self) -> "pd.DataFrame":
        """One row a vector, best first: layer, neuron, all values, beats_control, tokens."""
        import pandas as pd

        place = {"layer": self.layer, "neuron": self.neuron, "side": self.side}
        return pd.DataFrame({**place, **self.values, "beats_control": self.beats_control, "tokens": list(self.tokens)})

    def __repr__(self) -> str:
        above = int(self.beats_control.sum())
        return (
            f"Concepts({len(self)} value vectors, {above} above their random control; gaps in {UNIT} on {self.n} concept and "
            f"{self.n_unrelated} unrelated rows that did not select)"
        )

    def _repr_html_(self) -> str:
        labels = [f"{layer}/{neuron}" for layer, neuron in self.places]
        v = self.values
        control = float(v["control"].mean())
        label = f"gap, {UNIT}, of {self.n} + {self.n_unrelated} rows"
        picture = bars(labels, v["gap"].tolist(), label=label, line=control, line_label="random vectors", write=_three)
        rows = [
            (
                labels[i],
                _with_interval(v, "gap", i),
                " ".join(visible(token) for token in self.tokens[i][:10]),
                _with_interval(v, "control", i),
                _three(v["drop"][i]),
                _three(v["unrelated_drop"][i]),
                number(v["contrast"][i]),
            )
            for i in range(len(self))
        ]
        headings = ("layer/neuron", "gap [95 %]", "writes", "random vectors", "drop", "unrelated drop", "contrast")
        return str(tag("p", repr(self)) + picture + table(headings, rows))


def find_concept(
    model: Model,
    texts: Examples | Sequence[str],
    against: Examples | Sequence[str],
    *,
    answers: Examples | None = None,
    unrelated: Examples | None = None,
    layer: int | Sequence[int] | None = None,
    n_candidates: int = 64,
    report: int = 8,
    weights: Mapping[str, float] | None = None,
    norm: str = "raw",
    k: int = 20,
    seeds: Sequence[int] = range(5),
    most_rows: int = 32,
    batch_tokens: int = 4096,
    seed: int = 0,
    show: bool = False,
) -> Concepts:
    """Value vectors that fire on the texts, and how much the answers about the concept need each of them.

    1. Coefficients are read on the selecting halves of `texts` and `against`; the `n_candidates` of highest score go on.
    2. Each is taken out on the selecting halves of `answers` and `unrelated`; the `report` of largest gap go on.
    3. Their gaps, and those of random vectors of the same norm, are measured on the reporting halves.

    Args:
        texts, against: of the concept, and of something else of the same kind. Examples are read prompt and response.
        answers, unrelated: whose answers are measured; without, `texts` and `against` are (of plain texts the log-probability
            behind their first 4 tokens), each row either selecting or reporting in all three steps.
        layer: one, several, or None for all.
        weights: of contrast, write, top_logit and coherence in the score; WEIGHTS without.
        norm, k: of the tokens that a vector writes, see `value_vectors`.
        seeds: one draw of random vectors each.
        most_rows: of each set and half that steps 2 and 3 measure on; drawn by the seed.
        seed: of the halves and the bootstrap.
    Returns: Concepts, best on the selecting rows first.
    Raises: DataError for fewer than two rows in a set, or a row that stands in both sets; InputError for a bad count.
    Reference: Hong et al. 2024 (ConceptVectors), arXiv:2406.11614, let GPT-4 judge the tokens and tested 0.1-noise instead of
        removal, choosing and reporting on the same questions.
    """
    if not 1 <= report <= n_candidates or most_rows < 1 or not len(seeds):
        raise InputError(
            f"find_concept: report is {report}, n_candidates {n_candidates}, most_rows {most_rows} and {len(seeds)} seeds; "
            "expected 1 <= report <= n_candidates, at least one row and one seed."
        )
    layers = which_layers(model, layer)
    first, second = halves(model, texts, against, seed)
    selecting, reporting = (first, second) if answers is None and unrelated is None else (None, None)
    if selecting is None or reporting is None:
        if answers is None or unrelated is None:
            raise InputError("find_concept: answers and unrelated belong together; give both, or neither.")
        selecting, reporting = halves(model, answers, unrelated, seed)
        first = Half(first.answers + second.answers, first.unrelated + second.unrelated)
    options = {"batch_tokens": batch_tokens, "show": show}
    vectors = value_vectors(model, layer=layers, norm=norm, k=k)
    read = [moments(model, rows, layers, **options) for rows in first]
    judged = candidates(vectors, *read, weights=WEIGHTS if weights is None else weights)
    chosen = np.argsort(-judged.score, kind="stable")[:n_candidates]
    selecting, reporting = (Half(*(rows[:most_rows] for rows in half)) for half in (selecting, reporting))
    sets = [[Place(int(vectors.layer[i]), int(vectors.neuron[i]))] for i in chosen]
    lost = [drops(model, sets, rows, **options, label="selecting")[:, 0].mean(1) for rows in selecting]
    ranking = np.argsort(-(lost[0] - lost[1]), kind="stable")
    order = ranking[:report]
    kept = chosen[order]
    measured = _report(model, [sets[i] for i in order], reporting, seeds=seeds, seed=seed, **options)
    written = np.where(judged.side[kept][:, None] > 0, vectors.top_ids[kept], vectors.bottom_ids[kept])
    return Concepts(
        layer=vectors.layer[kept],
        neuron=vectors.neuron[kept],
        side=judged.side[kept].astype(np.int64),
        tokens=tuple(tuple(vectors.tokens(row)) for row in written),
        values={
            **{name: getattr(judged, name)[kept] for name in ("score", "contrast", "write", "top_logit", "coherence")},
            "selected": (lost[0] - lost[1])[order],
            **measured,
        },
        n=len(reporting.answers),
        n_unrelated=len(reporting.unrelated),
        held_out=reporting,
        ranked=tuple(sets[i][0] for i in ranking),
        provenance=Provenance(
            "find_concept",
            model.fingerprint(),
            {name: _fingerprint(rows) for name, rows in (("texts", texts), ("against", against))},
            {"norm": norm, "k": k, "n_candidates": len(chosen), "weights": dict(WEIGHTS if weights is None else weights)},
            seed=seed,
            dtype=str(model.dtype),
            notes={"selecting_rows": [len(rows) for rows in selecting], "draws": len(seeds)},
        ),
    )


def _report(
    model: Model,
    sets: Sequence[Sequence[Place]],
    rows: Half,
    *,
    seeds: Sequence[int],
    seed: int,
    batch_tokens: int,
    show: bool,
) -> dict[str, Float[np.ndarray, "vector"]]:
    """The measured columns of Concepts, but for `selected`."""
    options = {"batch_tokens": batch_tokens, "show": show}
    lost = [drops(model, sets, each, **options, label="reporting")[:, 0] for each in rows]
    random = [drops(model, sets, each, seeds=seeds, **options, label="random vectors") for each in rows]
    found = [gap_of(lost[0][i], lost[1][i], random[0][i], random[1][i], seed=seed) for i in range(len(sets))]
    columns = {"drop": lost[0].mean(1), "unrelated_drop": lost[1].mean(1)}
    for name in ("gap", "control", "advantage"):
        for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
            columns[name + suffix] = np.array([getattr(getattr(one, name), part) for one in found])
    return columns


def _three(value: float) -> str:
    """Three digits: gaps of one vector are small, and 0.001 beside 6.14e-4 is hard to compare."""
    return f"{value:.3g}"


def _with_interval(values: Mapping[str, Float[np.ndarray, "vector"]], name: str, i: int) -> str:
    return f"{_three(values[name][i])} [{_three(values[name + '_low'][i])}, {_three(values[name + '_high'][i])}]"


def _fingerprint(rows: Examples | Sequence[str]) -> str:
    return rows.fingerprint() if isinstance(rows, Examples) else text_sha256(list(rows))
