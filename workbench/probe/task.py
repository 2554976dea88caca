"""What a probe is asked: labels as codes or numbers, and which rows train, judge, and cross-validate."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Num

from workbench.core.errors import DataError, InputError, ShapeError, unknown
from workbench.probe.fitters import numbers
from workbench.probe.split import folds, judging_rows, together

LEAST = 5
"""Rows a class must have; of numeric labels, twice as many in all."""
SIDE = 2
"""Rows of a class that must train, and that must judge."""
FOLDS = 5


class Task(NamedTuple):
    """What is to be learned.

    truth: codes of the classes, or numbers where there are no classes.   groups: number of the group of each row.
    train, held: positions of the rows that train and that judge.
    inner: folds of the training rows, (those that train, those that judge) as positions among them; none where there are too few.
    """

    truth: Num[np.ndarray, "n"]
    classes: tuple[Any, ...]
    groups: Int[np.ndarray, "n"]
    train: Int[np.ndarray, "train"]
    held: Int[np.ndarray, "held"]
    inner: list[tuple[np.ndarray, np.ndarray]]


def task_of(
    texts: Sequence[str],
    labels: Sequence[Any],
    groups: Sequence[Hashable] | None,
    *,
    numeric: bool,
    positive: Any,
    held_out: float,
    seed: int,
) -> Task:
    """Check the labels and split the rows; see `probe.fit`."""
    if isinstance(texts, str):
        raise InputError(f"probe.fit: texts is the string {texts[:40]!r}, expected a list of texts.")
    if len(texts) != len(labels):
        raise ShapeError(f"probe.fit: there are {len(texts)} texts and {len(labels)} labels; expected one label a text.")
    if groups is not None and len(groups) != len(texts):
        raise ShapeError(f"probe.fit: there are {len(texts)} texts and {len(groups)} groups; expected one group a text.")
    if not 0 < held_out < 1:
        raise InputError(f"probe.fit: held_out is {held_out}, expected a share of the rows between 0 and 1.")
    given = [label.item() if isinstance(label, np.generic) else label for label in labels]
    if numeric:
        truth, classes = _numbers(given, positive), ()
    else:
        truth, classes = _codes(given, positive)
    strata = truth if classes else np.zeros(len(truth), dtype=np.int64)
    named = together(texts, None if groups is None else list(groups))
    held = judging_rows(strata, named, share=held_out, seed=seed)
    for side, rows in (("train", ~held), ("judge", held)):
        _check_side(side, truth[rows], classes, held_out)
    train = np.flatnonzero(~held)
    return Task(truth, classes, named, train, np.flatnonzero(held), inner_folds(strata[train], named[train], truth[train], seed))


def _numbers(labels: Sequence[Any], positive: Any) -> Num[np.ndarray, "n"]:
    if positive is not None:
        raise InputError(f"probe.fit: positive is {positive!r}, but numeric labels have no classes.")
    found = numbers(np.array(labels, dtype=object))
    if len(found) < 2 * LEAST or np.ptp(found) == 0:
        raise DataError(
            f"probe.fit: {len(found)} numeric labels, of which {len(np.unique(found))} differ; expected at least {2 * LEAST} rows "
            "with labels that are not all equal."
        )
    return found


def _codes(labels: Sequence[Any], positive: Any) -> tuple[Int[np.ndarray, "n"], tuple[Any, ...]]:
    """Number of each row's class, and the classes in order, the positive one last."""
    for i, label in enumerate(labels):
        if not isinstance(label, str | int | float) or label != label:
            raise DataError(f"label {i} is {label!r}, expected a str, int, bool or float.")
    counts = Counter(labels)
    try:
        classes = sorted(counts)
    except TypeError as error:
        kinds = ", ".join(sorted({type(label).__name__ for label in labels}))
        raise DataError(f"probe.fit: labels are of several kinds ({kinds}); expected one.") from error
    if len(classes) < 2:
        raise DataError(f"probe.fit: all {len(labels)} labels are {classes}; expected at least two classes to tell apart.")
    rarest = min(classes, key=counts.__getitem__)
    if counts[rarest] < LEAST:
        hint = " For numeric labels choose method='ridge'." if not isinstance(rarest, str) and len(classes) > LEAST else ""
        raise DataError(
            f"probe.fit: class {rarest!r} has {counts[rarest]} row(s) of {len(labels)}, expected at least {LEAST} of every class "
            f"(there are {len(classes)}). Give more rows, or leave the class out.{hint}"
        )
    if positive is not None:
        if positive not in classes:
            raise unknown("positive class", str(positive), map(str, classes))
        if len(classes) > 2:
            raise InputError(f"probe.fit: positive is {positive!r}, but there are {len(classes)} classes; it names one of two.")
        classes.append(classes.pop(classes.index(positive)))
    number = {c: i for i, c in enumerate(classes)}
    return np.array([number[label] for label in labels], dtype=np.int64), tuple(classes)


def _check_side(side: str, truth: np.ndarray, classes: tuple[Any, ...], held_out: float) -> None:
    counts = np.bincount(truth, minlength=len(classes)) if classes else np.array([len(np.unique(truth))])
    if counts.min() < SIDE:
        what = f"of class {classes[int(counts.argmin())]!r}" if classes else "with different labels"
        raise DataError(
            f"probe.fit: after the split only {counts.min()} row(s) {what} {side}, expected at least {SIDE}. Give more rows, "
            f"another held_out than {held_out:g}, or smaller groups: rows of one group, and equal texts, stay on one side."
        )


def inner_folds(strata: np.ndarray, groups: np.ndarray, truth: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds in which every class trains and judges; as many as the class with the fewest groups allows, at most FOLDS.

    One fold, or one without a class, is none: nothing could be learned, or judged, in it.
    """
    groups = np.unique(groups, return_inverse=True)[1]
    classes = np.unique(strata)
    n = min(FOLDS, *(len(np.unique(groups[strata == c])) for c in classes))
    fold = folds(strata, groups, n=n, seed=seed)
    found = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n)]
    least = max(2, len(classes))  # all classes; of numbers, two that differ
    return [pair for pair in found if all(len(np.unique(truth[rows])) >= least for rows in pair)]
