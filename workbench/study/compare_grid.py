"""What a comparison runs: short trials that choose a learning rate, then every method with every seed, each up to one budget.

The trials train on the forget rows without the validation rows. Among the rates that spend the budget in as many steps as an epoch
of a run has, or more, the one is chosen after which the validation rows' true answers have the highest mean NLL, see
`compare_choice`; no retrained model is looked at. The runs that are reported train on all forget rows, at the rate that was chosen.

    points/KEY.json                a trial, or a run            deltas/ARM-KEY.safetensors      what a run did to the weights
    tokens/ARM-KEY/SPLIT.parquet   what a run's model said      scores/*.safetensors            weight scores, shared by the arms
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workbench.core.delta import applied
from workbench.core.errors import NumericsError
from workbench.core.mask import Mask
from workbench.core.numerics import permutation
from workbench.core.records import Examples
from workbench.core.store import text_sha256
from workbench.evaluate import read as read_tables
from workbench.evaluate.table import TokenTable
from workbench.load.models import Model
from workbench.study.arms import find_mask, find_scores
from workbench.study.compare_choice import Search, choose
from workbench.study.compare_plan import Line, Settings, plain
from workbench.study.config import MaskPlan
from workbench.study.folder import kept, point, state
from workbench.study.intervene import Parts, row_nll
from workbench.study.methods import Spent, Training, at_budget


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything the arms share.

    forget: all forget rows; fitting and validation: the two parts of them that trials use.
    parts: of the retain rows: trained on, those that the budget is measured on, those that are reported.
    measured: the rows of the suite; its retain rows are the reported ones that have false answers.
    """

    folder: Path
    model: Model
    forget: Examples
    fitting: Examples
    validation: Examples
    parts: Parts
    measured: Mapping[str, Examples]
    settings: Settings
    state: tuple[str, ...]


@dataclass(frozen=True)
class Arm:
    """One line of the result: a method in a mask with a seed, at the rate that was chosen; or a model as it is."""

    name: str
    method: str
    mask: str
    seed: int
    lr: float | None
    point: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        """Whether there is no model to measure; `point["note"]` says why."""
        return not self.point["tokens"]

    def delta(self, folder: Path) -> Path | None:
        """The file of what it did to the weights; None where none was kept."""
        said = Path(next(iter(self.point["tokens"].values()), "tokens/none/none")).parts[1]
        found = folder / "deltas" / f"{said}.safetensors"
        return found if found.exists() else None

    def tables(self, folder: Path) -> dict[str, TokenTable]:
        """What the arm's model said, by split."""
        return {split: TokenTable.load(folder / path) for split, path in self.point["tokens"].items()}


def hold_out(forget: Examples, validation: int) -> tuple[Examples, Examples]:
    """Forget rows that trials train on, and those they are judged by, cut by a permutation that depends on their number alone."""
    order = permutation(len(forget), 0)
    return forget.take(sorted(order[validation:])), forget.take(sorted(order[:validation]))


def rehearse_mask(on: Bench, plan: MaskPlan) -> None:
    """Refuse a mask that cannot be found: on two rows of each side, its scores kept nowhere.

    Raises: as the attribution, and as cutting a mask from its scores.
    """
    rows = {"forget": on.forget.take(range(2)), "retain": on.parts.train.take(range(2))}
    with TemporaryDirectory() as folder:
        find_mask(plan, on.model, find_scores(plan, on.model, rows, Path(folder)), seed=0)


def rehearse(on: Bench, line: Line) -> None:
    """Refuse what would stop a comparison half way: one step of a method on two rows, or an edit as a whole.

    Raises: as `at_budget`, but for a loss that is not finite, which is a result.
    """
    forget, train, budget = on.forget, on.parts.train, on.parts.budget
    if line.method.kind == "unlearn":
        forget, train, budget = (rows.take(range(2)) for rows in (forget, train, budget))
    with suppress(NumericsError):
        at_budget(on.model, forget, train, budget, line.method, Training(budget=1e6, max_steps=1, batch_size=2), lr=1e-6)


def search(on: Bench, line: Line, mask: str, *, look: bool = False) -> Search | None:
    """Every rate once, with seed 0, on the forget rows without the validation rows.

    Args: look: run nothing; None if a trial has not been run yet.
    """
    trials = [_trial(on, line, mask, lr, look) for lr in line.rates]
    done = [trial for trial in trials if trial is not None]
    if len(done) < len(trials):
        return None
    epoch = on.settings.training.epoch(len(on.forget))
    return Search(line.method.name, mask, tuple(done), choose(done, epoch))


def arms(on: Bench, line: Line, mask: str, lr: float | None, *, look: bool = False) -> list[Arm] | None:
    """The runs of a method in a mask: one a seed, or one of an edit, which draws nothing.

    Args: look: run nothing; None if one has not been run yet.
    """
    if line.method.kind == "edit":
        seeds: Sequence[int] = on.settings.seeds[:1]
    elif lr is None:
        note = "after no rate of the search was the loss finite, so there is no rate to run with."
        return [Arm(_name(line, mask, s), line.method.name, mask, s, None, {"tokens": {}, "note": note}) for s in on.settings.seeds]
    else:
        seeds = on.settings.seeds
    found = [_run(on, line, mask, seed, lr, look) for seed in seeds]
    done = [arm for arm in found if arm is not None]
    return done if len(done) == len(found) else None


def as_it_is(on: Bench, name: str, model: Model) -> Arm:
    """The arm of a model to which nothing is done."""

    def make() -> dict[str, Any]:
        return _said(on, model, name, key) | {"note": "", "seconds": None}

    about = ["as it is", *state(model), *_rows(on)]
    key = text_sha256(about)
    return Arm(name, name, "", on.settings.seeds[0], None, kept(on.folder, about, make))


def _trial(on: Bench, line: Line, mask: str, lr: float, look: bool) -> dict[str, Any] | None:
    """One rate, up to the budget: what it made of the validation rows. A run whose loss is not finite is a note."""

    def make() -> dict[str, Any]:
        begin, found = time.perf_counter(), {"lr": lr, "validation_nll": None, "forget_nll": None, "note": ""}
        try:
            spent = _carried_out(on, line, line.masks[mask], on.fitting, seed=0, lr=lr)
        except NumericsError as error:
            return found | {"note": str(error), "seconds": time.perf_counter() - begin}
        with applied(on.model, spent.delta):
            nll = {"validation_nll": on.validation, "forget_nll": on.fitting}
            found |= {name: float(row_nll(on.model, rows).mean()) for name, rows in nll.items()}
        return found | _spent(spent) | {"seconds": time.perf_counter() - begin}

    about = ["trial", *on.state, *_training_rows(on, on.fitting), on.validation.fingerprint(), plain(line, mask)]
    return _point(on, [*about, asdict(on.settings.training), lr], make, look)


def _run(on: Bench, line: Line, mask: str, seed: int, lr: float | None, look: bool) -> Arm | None:
    """One run on all forget rows up to the budget, measured; its tables and its Delta are written before its point."""
    name = _name(line, mask, seed)

    def make() -> dict[str, Any]:
        begin = time.perf_counter()
        try:
            spent = _carried_out(on, line, line.masks[mask], on.forget, seed=seed, lr=lr)
        except NumericsError as error:
            return {"note": str(error), "tokens": {}, "seconds": time.perf_counter() - begin}
        seconds = time.perf_counter() - begin
        if on.settings.deltas:
            spent.delta.save(on.folder / "deltas" / f"{name}-{key[:8]}.safetensors")
        with applied(on.model, spent.delta):
            said = _said(on, on.model, name, key)
        return said | _spent(spent) | {"note": "", "seconds": seconds}

    about = ["run", *on.state, *_training_rows(on, on.forget), *_rows(on), plain(line, mask)]
    about += [asdict(on.settings.training), lr, seed]
    key = text_sha256(about)
    found = _point(on, about, make, look)
    return None if found is None else Arm(name, line.method.name, mask, seed, lr, found)


def _name(line: Line, mask: str, seed: int) -> str:
    return f"{line.method.name}-{mask}@{seed}" if line.method.kind == "unlearn" else line.method.name


def _point(on: Bench, about: list[Any], make: Callable[[], Mapping[str, Any]], look: bool) -> dict[str, Any] | None:
    """A measurement, made and kept if it is not there; with `look` none is made."""
    return None if look and not point(on.folder, about).exists() else kept(on.folder, about, make)


def _carried_out(on: Bench, line: Line, plan: MaskPlan | None, forget: Examples, *, seed: int, lr: float | None) -> Spent:
    """A method up to the budget, inside the mask that is found on the rows it trains on."""
    mask = None if plan is None else _mask(on, plan, forget, seed)
    rest = {} if lr is None else {"lr": lr}
    return at_budget(
        on.model, forget, on.parts.train, on.parts.budget, line.method, on.settings.training, mask=mask, seed=seed, **rest
    )


def _mask(on: Bench, plan: MaskPlan, forget: Examples, seed: int) -> Mask:
    scores = find_scores(plan, on.model, {"forget": forget, "retain": on.parts.train}, on.folder / "scores")
    return find_mask(plan, on.model, scores, seed=seed)


def _said(on: Bench, model: Model, name: str, key: str) -> dict[str, Any]:
    """What a model says: its token tables, written to files, and the NLL of the reported retain rows."""
    tables = read_tables(model, on.measured, generate=on.settings.generate)
    paths = {split: f"tokens/{name}-{key[:8]}/{split}.parquet" for split in tables}
    for split, table in tables.items():
        table.save(on.folder / paths[split])
    return {"tokens": paths, "retain_nll": row_nll(model, on.parts.report).tolist()}


def _spent(spent: Spent) -> dict[str, Any]:
    """What a method came to, without its Delta."""
    plain = {name: getattr(spent, name) for name in ("used", "reached", "moved", "steps", "part")}
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in plain.items()}


def _training_rows(on: Bench, forget: Examples) -> list[str]:
    return [rows.fingerprint() for rows in (forget, on.parts.train, on.parts.budget)]


def _rows(on: Bench) -> list[Any]:
    """What of the measurement decides it."""
    split = {name: rows.fingerprint() for name, rows in on.measured.items()}
    return [split, on.parts.report.fingerprint(), on.settings.generate]
