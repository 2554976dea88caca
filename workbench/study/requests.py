"""Requests to forget that come one after another, and requests of growing size: does a method stand them?

    in_sequence   fold after fold, each on top of what was done for those before it   (sustainability)
    growing       larger and larger sets, each from the untouched model               (scalability)

Every request is carried out by `methods.at_budget`: until the mean NLL on the budget rows has risen by the budget from where it was
when the request came. So the rows of a frame are compared at one price each, and in a sequence the prices add up (`spent`).

    nll               on the rows of the request, in nats per token, mean over rows; `before` on the untouched model
    earlier_nll       on the rows of all requests before it, which must stay forgotten; NaN in the first
    retain_nll        on retain rows that were neither trained on nor looked at; `retain_before` on the untouched model

Each of the three has its 95 % bootstrap interval, `_low` and `_high`, over rows or, with `groups`, over groups of rows, such as the
questions about one author, which are not independent; NaN if there are fewer than statistics.LEAST of them. A request in which
numbers were not finite has NaN in place of all of its numbers and the reason in `note`; those after it go on from where it began.

Reference: Shi et al. 2024 (MUSE), arXiv:2407.06460: its fifth and sixth criterion, over the size and the number of requests. They
look at the utility that is left; here the utility that may be lost is fixed, and the forgetting it buys is measured beside it.
"""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError, NumericsError
from workbench.core.records import Examples, check_disjoint
from workbench.core.runtime import progress
from workbench.core.statistics import LEAST, bootstrap
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.study.intervene import Parts
from workbench.study.judge import split_retain
from workbench.study.methods import Method, Spent, Training, at_budget
from workbench.trace.forward import row_nll

COLUMNS = (
    *("request", "set", "method", "seed", "rows", "nll", "nll_low", "nll_high", "before"),
    *("earlier_nll", "earlier_nll_low", "earlier_nll_high", "retain_nll", "retain_nll_low", "retain_nll_high", "retain_before"),
    *("used", "spent", "reached", "steps", "part", "moved", "note"),
)


def in_sequence(
    model: Model,
    folds: Sequence[Examples],
    retain: Examples,
    method: Method,
    training: Training,
    *,
    seeds: Sequence[int] = (0,),
    lr: float = 5e-4,
    budget_rows: int = 48,
    report_rows: int = 100,
    groups: Mapping[str, Hashable] | None = None,
    show: bool = False,
) -> pd.DataFrame:
    """Forget fold after fold, each on top of the Deltas of those before it; the model is left as it was.

    Args:
        folds: the requests in order; no row may stand in two of them, or in `retain`.
        method, training, lr: see `methods.at_budget`; the budget is that of one request.
        seeds: the whole sequence is gone through once for each; one for an edit, which draws nothing.
        budget_rows, report_rows: retain rows set aside; see `split_retain`. They are the same for all requests.
        groups: by row id the group it belongs to, such as its author: intervals draw groups whole. None: every row is its own.
    Returns: a row a seed and fold, with COLUMNS. used: of the fold's budget; spent: rise of the NLL on the budget rows since the
        untouched model, of this and all earlier folds; moved: share of the weights that the fold's own Delta changes.
    Raises: InputError without folds or seeds, or for several seeds of an edit; DataError for a row that stands in two sets or has
        no group; as `methods.at_budget`, but for numbers that are not finite, which are a line of the frame.
    """
    parts = _parts(folds, seeds, retain, method, budget_rows, report_rows)
    _check_apart(folds)
    _check_groups(folds, parts, groups)
    untouched = _Untouched(model, folds, parts, groups)
    found: list[dict[str, Any]] = []
    for seed in progress(seeds, label=f"{method.name} in sequence", show=show):
        with ExitStack() as before:
            for number, fold in enumerate(folds, 1):
                try:
                    done = at_budget(model, fold, parts.train, parts.budget, method, training, lr=lr, seed=seed)
                    with ExitStack() as state:
                        if not done.delta.is_empty:
                            state.enter_context(applied(model, done.delta))
                        found.append(untouched.row(number, method, seed, done, earlier=number - 1))
                        before.enter_context(state.pop_all())
                except NumericsError as error:
                    found.append(untouched.failed(number, method, seed, error))
    return _frame(found)


def growing(
    model: Model,
    sets: Sequence[Examples],
    retain: Examples,
    method: Method,
    training: Training,
    *,
    seeds: Sequence[int] = (0,),
    lr: float = 5e-4,
    budget_rows: int = 48,
    report_rows: int = 100,
    groups: Mapping[str, Hashable] | None = None,
    show: bool = False,
) -> pd.DataFrame:
    """Forget sets of growing size, each from the untouched model, which is left as it was.

    Args:
        sets: of growing size, such as [forget[:50], forget[:100], forget]; a row may stand in several of them.
        The others as in `in_sequence`.
    Returns: a row a seed and set, with COLUMNS; there are no earlier rows, and spent is used.
    Raises: InputError without sets or seeds, for several seeds of an edit, or if the sets do not grow; DataError for a row that
        stands in a set and in `retain`, or has no group; as `methods.at_budget`, but for numbers that are not finite, as in
        `in_sequence`.
    """
    sizes = [len(one) for one in sets]
    if any(small >= large for small, large in pairwise(sizes)):
        raise InputError(f"growing: the sets have {sizes} rows, expected each to be larger than the one before it.")
    parts = _parts(sets, seeds, retain, method, budget_rows, report_rows)
    _check_groups(sets, parts, groups)
    untouched = _Untouched(model, sets, parts, groups)
    found: list[dict[str, Any]] = []
    for seed in progress(seeds, label=f"{method.name}, growing", show=show):
        for number, rows in enumerate(sets, 1):
            try:
                done = at_budget(model, rows, parts.train, parts.budget, method, training, lr=lr, seed=seed)
                with ExitStack() as state:
                    if not done.delta.is_empty:
                        state.enter_context(applied(model, done.delta))
                    found.append(untouched.row(number, method, seed, done))
            except NumericsError as error:
                found.append(untouched.failed(number, method, seed, error))
    return _frame(found)


class _Untouched:
    """What the model said of all rows before the first request, and how far it is from there now."""

    def __init__(
        self, model: Model, requests: Sequence[Examples], parts: Parts, groups: Mapping[str, Hashable] | None = None
    ) -> None:
        self.model = model
        self.groups = groups
        self.requests = [encode_all(model, rows) for rows in requests]
        self.names = [rows.name for rows in requests]
        self.budget, self.report = encode_all(model, parts.budget), encode_all(model, parts.report)
        self.before = [self._mean(rows) for rows in self.requests]
        self.budget_before, self.retain_before = self._mean(self.budget), self._mean(self.report)

    def row(self, number: int, method: Method, seed: int, done: Spent, *, earlier: int = 0) -> dict[str, Any]:
        """The line of one request, counted from 1, from the model as it is now. earlier: how many went before it."""
        rows = self.requests[number - 1]
        past = [row for one in self.requests[:earlier] for row in one]
        about = {"request": number, "set": self.names[number - 1], "method": method.name, "seed": seed, "rows": len(rows)}
        measured = self._with_interval("nll", rows) | {"before": self.before[number - 1]}
        measured |= self._with_interval("earlier_nll", past) | self._with_interval("retain_nll", self.report)
        cost = {"retain_before": self.retain_before, "used": done.used, "spent": self._mean(self.budget) - self.budget_before}
        came = {"reached": done.reached, "steps": done.steps, "part": done.part, "moved": done.moved, "note": ""}
        return about | measured | cost | came

    def failed(self, number: int, method: Method, seed: int, error: NumericsError) -> dict[str, Any]:
        """The line of a request in which numbers were not finite: who it was, and why."""
        about = {"request": number, "set": self.names[number - 1], "method": method.name, "seed": seed}
        return dict.fromkeys(COLUMNS, float("nan")) | about | {"rows": len(self.requests[number - 1]), "note": str(error)}

    def _mean(self, rows: Sequence[Encoded]) -> float:
        return float(row_nll(self.model, rows).mean())

    def _with_interval(self, name: str, rows: Sequence[Encoded]) -> dict[str, float]:
        if not rows:
            return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
        values = row_nll(self.model, rows).numpy()
        number: dict[Hashable, int] = {}
        place = [number.setdefault(i if self.groups is None else self.groups[row.id], len(number)) for i, row in enumerate(rows)]
        drawn = np.stack([np.bincount(place, weights=values), np.bincount(place)], axis=1)  # sum and count of each group
        found = bootstrap(lambda x: x[..., 0].sum(axis=1) / x[..., 1].sum(axis=1), drawn)
        low, high = (found.low, found.high) if len(number) >= LEAST else (float("nan"), float("nan"))
        return {name: found.value, f"{name}_low": low, f"{name}_high": high}


def _parts(
    requests: Sequence[Examples], seeds: Sequence[int], retain: Examples, method: Method, budget_rows: int, report_rows: int
) -> Parts:
    """The retain rows, cut once for all requests.

    Raises: InputError without requests or seeds, or for several seeds of an edit; DataError for a row that stands in a request and
        in `retain`, or for too few.
    """
    if not requests or not seeds or len(set(seeds)) < len(seeds):
        raise InputError(
            f"requests: {len(requests)} sets of rows and the seeds {list(seeds)}, expected one or more of each, none twice."
        )
    if method.kind == "edit" and len(seeds) > 1:
        raise InputError(f"requests: {method.name} is an edit, which draws nothing: {len(seeds)} seeds are one result. Give one.")
    for rows in requests:
        check_disjoint(rows, retain)
    return split_retain(requests[0], retain, budget_rows=budget_rows, report_rows=report_rows)


def _check_apart(folds: Sequence[Examples]) -> None:
    """DataError if a row stands in two folds, or twice in one: it cannot be forgotten twice."""
    seen: dict[tuple[str, str], str] = {}
    for fold in folds:
        for row in fold:
            here = f"{row.id!r} of {fold.name}"
            before = seen.setdefault((row.prompt, row.response), here)
            if before != here:
                raise DataError(f"in_sequence: the row {here} is the same as {before}, asked for before; take one of them out.")


def _check_groups(requests: Sequence[Examples], parts: Parts, groups: Mapping[str, Hashable] | None) -> None:
    """DataError if a row that is measured has no group."""
    if groups is None:
        return
    for rows in (*requests, parts.report):
        missing = [row.id for row in rows if row.id not in groups]
        if missing:
            raise DataError(f"requests: groups has no group for {len(missing)} rows of {rows.name}, such as {missing[0]!r}.")


def _frame(found: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows with COLUMNS; what was not measured (steps of an edit, the part of a training) is NaN."""
    return pd.DataFrame(list(found), columns=list(COLUMNS)).astype({"steps": "float64", "part": "float64"})
