"""A suite as a table: which metric, on which split, reduced how. One more line is one more number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.core.measurements import Measurement
from workbench.core.registry import metric
from workbench.core.statistics import Estimate, mean_estimate, wilson
from workbench.evaluate.answers import Answers
from workbench.evaluate.forget_quality import p_floor
from workbench.evaluate.leak import privleak_estimate
from workbench.evaluate.membership import membership
from workbench.evaluate.table import Table, TokenTable

REFERENCE, TOKENS, TEXTS = "reference", "tokens", "texts"
"""What a line can need beside its split: a retrained model's table of it; a value a token, which logs lack; generated texts."""


@dataclass(frozen=True, eq=False)
class Given:
    """What a suite's numbers are made of.

    tables: by split, as they were read.   answers: the same, one number an example, changed where the suite says so (ROUGE computed
    once, texts cut at a stop).   reference: tables of a model retrained without the forget rows, by split; empty without one.
    seed: of every bootstrap.
    """

    tables: Mapping[str, Table]
    answers: Mapping[str, Answers]
    reference: Mapping[str, Table] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Line:
    """One number of a suite.

    metric: a registered one, whose unit and orientation are reported, or another name beside unit and better.
    split: of the rows, or what the number is about ("all").
    reduce: how one value an example becomes one number with an interval; see `mean`, `share` and `whole`.   options: of the metric.
    name: in the result; the metric's without.   better, unit: in place of the metric's.
    note: with {n}, the rows behind the number, and {floor}, the smallest p-value they can give.
    needs: a line is left out where one of these is absent: REFERENCE, TOKENS, TEXTS, or a split.
    """

    metric: str
    split: str
    reduce: "Reducer"
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    better: str = ""
    unit: str = ""
    note: str = ""
    needs: tuple[str, ...] = ()

    def measure(self, given: Given) -> Measurement:
        """The number."""
        about = {"unit": self.unit, "better": self.better}
        if not all(about.values()):
            about = metric[self.metric].about | {key: value for key, value in about.items() if value}
        found = self.reduce(self, given)
        return Measurement.of(
            self.name or self.metric,
            self.split,
            found,
            unit=about["unit"],
            better=about["better"],
            note=self.note.format(n=found.n, floor=p_floor(found.n, found.n)),
        )

    def table(self, given: Given) -> Table:
        """What the metric reads: the answers, or every token where it needs them."""
        return given.tables[self.split] if TOKENS in self.needs else given.answers[self.split]

    def against(self, given: Given) -> Table | None:
        """The retrained model's table, for a metric that compares with it."""
        return given.reference[self.split] if REFERENCE in self.needs else None


Reducer = Callable[[Line, Given], Estimate]


def measured(lines: Sequence[Line], given: Given) -> list[Measurement]:
    """The number of every line that has what it needs, in order."""
    return [line.measure(given) for line in lines if all(_has(need, line.split, given) for need in line.needs)]


def mean(line: Line, given: Given) -> Estimate:
    """Mean over the examples, with a bootstrap interval over them."""
    values = metric[line.metric].function(line.table(given), line.against(given), **line.options)
    return mean_estimate(values, seed=given.seed)


def share(line: Line, given: Given) -> Estimate:
    """Share of the examples that the metric calls 1, all others being 0; Wilson's interval, which has a width at 0 of n."""
    values = metric[line.metric].function(line.table(given), line.against(given), **line.options)
    return wilson(float(values.mean()), len(values))


def whole(line: Line, given: Given) -> Estimate:
    """A metric of a whole set, which brings its own interval; of the split "all" it reads every split."""
    member = metric[line.metric]
    read = given.answers if line.split == "all" else line.table(given)
    seed = {"seed": given.seed} if "seed" in member.options else {}
    return member.function(read, line.against(given), **line.options, **seed)


def told_from(others: str, *, score: str = "min_k", options: Mapping[str, Any] | None = None) -> "Reducer":
    """AUC with which a score tells the rows of the line's split from those of the split `others`; see `membership`."""

    def reduce(line: Line, given: Given) -> Estimate:
        return membership(given.tables[line.split], given.tables[others], score=score, options=options, seed=given.seed).auc

    return reduce


def leak_of(others: str, *, score: str = "min_k", options: Mapping[str, Any] | None = None) -> "Reducer":
    """PrivLeak: the same AUC beside that of the retrained model; see `privleak_estimate`."""

    def reduce(line: Line, given: Given) -> Estimate:
        tables = (side[split] for side in (given.tables, given.reference) for split in (line.split, others))
        return privleak_estimate(*tables, score=score, options=options, seed=given.seed)

    return reduce


def _has(need: str, split: str, given: Given) -> bool:
    if need == REFERENCE:
        return split in given.reference
    if need == TOKENS:
        return isinstance(given.tables[split], TokenTable)
    if need == TEXTS:
        return None not in given.answers[split].generated
    return need in given.tables
