"""What a study of MUSE measures: every model as it is, every method at one budget, requests of growing size and in sequence."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.core.delta import applied
from workbench.core.errors import StudyError
from workbench.core.measurements import Measurement, Measurements
from workbench.core.records import Examples
from workbench.evaluate.suites.muse import muse, read_muse, read_privacy
from workbench.evaluate.table import TokenTable
from workbench.load.models import Model
from workbench.study.folder import kept, state
from workbench.study.intervene import Parts
from workbench.study.methods import Method, Spent, Training, at_budget
from workbench.study.muse_models import Documents, Sizes
from workbench.study.requests import growing, in_sequence

NAN = float("nan")
Kind = Literal["growing", "in sequence"]


@dataclass(frozen=True)
class Planned:
    """A method with the rate its training goes at."""

    method: Method
    lr: float


@dataclass(frozen=True, eq=False)
class Bench:
    """What all measurements of a study share.

    target: the model that learned everything.   reference: what the first retrained model says, for PrivLeak.   parts: the retain
    documents, cut into those trained on, those the budget is measured on, and those that are reported.
    """

    folder: Path
    target: Model
    documents: Documents
    parts: Parts
    reference: Mapping[str, TokenTable]
    sizes: Sizes
    training: Training


@dataclass(frozen=True, eq=False)
class Arm:
    """One line of the result. seed: None where nothing was drawn.   used, steps, seconds: NaN for a model as it is."""

    name: str
    seed: int | None
    numbers: Measurements
    used: float = NAN
    reached: bool = True
    steps: float = NAN
    seconds: float = NAN


def privacy(model: Model, documents: Documents, sizes: Sizes) -> Mapping[str, TokenTable]:
    """What PrivLeak compares with: a retrained model's token tables."""
    return read_privacy(model, documents.data, max_tokens=sizes.max_tokens)


def as_it_is(on: Bench, model: Model, name: str) -> Arm:
    """The numbers of a model nothing is done to."""
    about = ["model", state(model), model.fingerprint(), *_about(on)]
    return _arm(name, None, kept(on.folder, about, lambda: {"numbers": _measure(on, model)}))


def method_arm(on: Bench, one: Planned, seed: int) -> Arm:
    """The numbers after a method has spent the budget on all documents to forget."""

    def make() -> dict[str, Any]:
        begin = time.perf_counter()
        done = at_budget(
            on.target, on.documents.forget, on.parts.train, on.parts.budget, one.method, on.training, lr=one.lr, seed=seed
        )
        seconds = time.perf_counter() - begin
        with nullcontext() if done.delta.is_empty else applied(on.target, done.delta):
            return {"numbers": _measure(on, on.target), **_cost(done), "seconds": seconds}

    about = [
        "method",
        state(on.target),
        on.target.fingerprint(),
        *_about(on),
        asdict(one.method),
        one.lr,
        asdict(on.training),
        seed,
    ]
    return _arm(one.method.name, seed, kept(on.folder, about, make))


def requests(on: Bench, one: Planned, kind: Kind, sets: Sequence[Examples], seed: int) -> pd.DataFrame:
    """The frame of `study.requests` for one method and seed, with the column `kind`."""

    def make() -> dict[str, Any]:
        run = growing if kind == "growing" else in_sequence
        found = run(
            on.target,
            sets,
            on.documents.retain,
            one.method,
            on.training,
            seeds=(seed,),
            lr=one.lr,
            budget_rows=len(on.parts.budget),
            report_rows=len(on.parts.report),
        )
        return {"rows": found.astype(object).where(found.notna(), None).to_dict("records")}

    about = [kind, state(on.target), on.target.fingerprint(), [rows.fingerprint() for rows in sets]]
    about += [on.documents.retain.fingerprint(), len(on.parts.budget), len(on.parts.report)]
    about += [asdict(one.method), one.lr, asdict(on.training), seed]
    frame = pd.DataFrame(kept(on.folder, about, make)["rows"])
    numbers = [column for column in frame if column not in ("set", "method", "reached", "note")]
    return frame.astype(dict.fromkeys(numbers, "float64")).assign(kind=kind)


def portions(rows: Examples, shares: Sequence[float]) -> list[Examples]:
    """The first rows, as many as each share says, ascending; at least one.

    Raises: StudyError if two shares are as many rows.
    """
    sizes = {share: max(1, round(share * len(rows))) for share in sorted(shares)}
    if len(set(sizes.values())) < len(shares):
        raise StudyError(
            f"muse.growing is {list(shares)}, which of {len(rows)} documents are {list(sizes.values())}; expected each to be "
            "more than the one before it."
        )
    return [Examples(rows[:size], f"{share:g} of the documents") for share, size in sizes.items()]


def folds(rows: Examples, count: int) -> list[Examples]:
    """All rows in `count` sets of about one size.

    Raises: StudyError if there are fewer rows than sets.
    """
    if count > len(rows):
        raise StudyError(f"muse.folds is {count}, but there are {len(rows)} documents to forget; expected at most as many folds.")
    cuts = np.array_split(np.arange(len(rows)), count)
    return [Examples(rows.take(cut.tolist()), f"fold {i}") for i, cut in enumerate(cuts, 1)]


def frame(run: str, arms: Sequence[Arm]) -> pd.DataFrame:
    """Every number of every arm, with the columns that measurements.parquet has in all studies."""
    lines = [
        {"run": run, "arm": arm.name, "method": arm.name, "mask": "", "seed": arm.seed, **asdict(row), "seconds": arm.seconds}
        for arm in arms
        for row in arm.numbers
    ]
    return pd.DataFrame(lines).astype({"seed": "Int64"})


def _measure(on: Bench, model: Model) -> list[dict[str, object]]:
    sizes = on.sizes
    tables = read_muse(
        model,
        on.documents.data,
        prompt_tokens=sizes.prompt_tokens,
        new_tokens=sizes.new_tokens,
        answer_tokens=sizes.answer_tokens,
        max_tokens=sizes.max_tokens,
    )
    return muse(tables, on.reference).as_dicts()


def _cost(done: Spent) -> dict[str, Any]:
    steps = done.steps if done.steps is not None and math.isfinite(done.steps) else None
    return {"used": done.used, "reached": done.reached, "steps": steps}


def _about(on: Bench) -> list[Any]:
    """What decides every measurement beside the model."""
    data = {split: rows.fingerprint() for split, rows in on.documents.data.items()}
    reference = sorted(table.provenance.model for table in on.reference.values())
    return [
        data,
        asdict(on.sizes),
        reference,
        on.documents.forget.fingerprint(),
        on.documents.retain.fingerprint(),
        on.parts.train.fingerprint(),
        on.parts.budget.fingerprint(),
    ]


def _arm(name: str, seed: int | None, found: Mapping[str, Any]) -> Arm:
    rows: list[dict[str, Any]] = [{key: NAN if value is None else value for key, value in row.items()} for row in found["numbers"]]
    rest = {key: NAN if found.get(key) is None else float(found[key]) for key in ("used", "steps", "seconds")}
    return Arm(name, seed, Measurements(Measurement(**row) for row in rows), reached=bool(found.get("reached", True)), **rest)
