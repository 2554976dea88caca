"""Unlearning methods compared at one budget: each in no mask, in a located one and in a matched random one, with several seeds.

name: tofu                           # the run folder is OUT/tofu
model: ../data/organism/full         # paths are relative to the study file
data: {root: ../data/tofu-mini, forget: "tofu:forget", retain: "tofu:retain", real_authors: ..., world_facts: ...}
compare:
  retrained: ../data/organism/retain      # trained without the forget rows: what every distance is to
  retrained_b: ../data/organism/retain-b  # the same with another seed: how far apart two perfect answers lie
  unlearn:                           # by name; see `study.methods`. Beside the options of `unlearn.run`:
    npo: {}
    sam: {objective: gradient_difference, sharpness: 0.01, rates: [3e-4, 1e-3, 3e-3]}   # own rates, as many as the others'
    npo-lora: {objective: npo, lora: {rank: 8}, masks: [none]}                          # some of the masks below
    salun: {objective: random_label, mask: {attribute: saliency, fraction: 0.5}}        # a mask of its own
  edits:                             # computed once, taken in part; what they need is found on the rows, see `study.locate`
    dampen: {alpha: 5}
    neurons: {method: ablate_neurons, locate: {attribute: fisher_ratio, fraction: 0.1}}
    elsewhere: {method: ablate_neurons, locate: {attribute: fisher_ratio, fraction: 0.1}, control: place}
  masks:
    none: {}
    wagle: {attribute: wagle, fraction: 0.1}
    random: {attribute: wagle, fraction: 0.1, control: matched_random}
  seeds: [0, 1, 2]
  rates: [1e-4, 3e-4, 1e-3]          # tried once each for every method in every mask; see `compare_choice`
  validation: 16                     # forget rows that choose among the rates
  budget: 0.05                       # rise of the mean NLL, nats per token, on `budget_rows` retain rows, at which all stop
  max_steps: 40                      # rounded up to whole epochs; who has not spent the budget by then is marked
  batch_size: 8
  budget_rows: 24
  report_rows: 64                    # retain rows that are neither trained on nor in the budget
  suite_rows: 48                     # of retain, real_authors and world_facts at most, in model utility
  generate: 64
  deltas: true                       # keep what every run did to the weights

Points are files, so several processes can share the work in one folder: `workbench run STUDY compare.only=[npo,simnpo]` runs
those methods, and shows all that are there.

    runs/NAME/measurements.parquet   every number of every run, seeds as rows     runs/NAME/searches.parquet   the trials
    runs/NAME/tests.parquet          masks compared by seed                       runs/NAME/front.parquet      the Pareto front
    runs/NAME/plane.svg, sheet.json, report.html                                  and see `compare_grid`
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.core.errors import DataError
from workbench.core.records import Examples
from workbench.core.runtime import progress
from workbench.evaluate.suites import check_data
from workbench.report import page
from workbench.study.compare_choice import Search
from workbench.study.compare_grid import (
    Arm,
    Bench,
    arms,
    as_it_is,
    hold_out,
    rehearse,
    rehearse_mask,
    search,
)
from workbench.study.compare_plan import RETRAINED, RETRAINED_B, UNTOUCHED, Line, Settings, cells, named, read_settings
from workbench.study.compare_result import Result, Said, gather, said
from workbench.study.compare_sheet import sheet
from workbench.study.compare_tables import front_frame, measured, plane_of, search_frame, test_frame, write
from workbench.study.compare_tests import tested
from workbench.study.config import SPLITS
from workbench.study.folder import begin, state
from workbench.study.head import Head, listing, read_head
from workbench.study.judge import split_retain

RESULTS = ("measurements.parquet", "searches.parquet", "tests.parquet", "front.parquet", "plane.svg", "sheet.json", "report.html")


@dataclass(frozen=True)
class Plan:
    """A comparison, checked. only: the methods that this process runs; all without one."""

    head: Head
    settings: Settings
    only: tuple[str, ...] = ()

    @property
    def mine(self) -> tuple[Line, ...]:
        """The lines that this process runs."""
        return named(self.settings.lines, self.only)


def read(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """A study file with overrides such as "compare.seeds=[0]", fully checked.

    Raises: as `read_head` and `read_settings`; UnknownNameError for a method in `only` that the study does not have.
    """
    head, body = read_head(path, overrides, "compare", splits=SPLITS)
    only = listing("compare.only", body["only"], str) if "only" in body else ()
    plan = Plan(head, read_settings({key: value for key, value in body.items() if key != "only"}, path), only)
    named(plan.settings.lines, only)
    return plan


def run(study: str | Path, *, out: str | Path = "runs", overrides: Iterable[str] = (), show: bool = True) -> Path:
    """Run a comparison, or go on with it; returns the run's folder.

    Raises: any InputError before the first file is written: methods that have not been run yet are tried first, see `rehearse`.
    """
    plan = read(study, overrides)
    head, settings = plan.head, plan.settings
    folder = Path(out) / head.name
    on = prepare(plan, folder)
    todo = [(line, mask) for line, mask in cells(plan.mine) if _there(on, line, mask)[1] is None]
    for line in progress(list({line.method.name: line for line, _ in todo}.values()), label="rehearsal", show=show):
        rehearse(on, line)
    masks = {repr(found): found for line, mask in todo if (found := line.masks[mask]) is not None}
    for found in progress(list(masks.values()), label="rehearsal of masks", show=show):
        rehearse_mask(on, found)
    begin(folder, head.config(folder, "compare", settings.body(folder)), RESULTS)
    models = {UNTOUCHED: "", RETRAINED: settings.retrained, RETRAINED_B: settings.retrained_b}
    baselines = [as_it_is(on, name, head.load(model) if model else on.model) for name, model in models.items()]
    for line, mask in progress(cells(plan.mine), label="compare", show=show):
        found = search(on, line, mask)
        arms(on, line, mask, None if found is None else found.lr)
    collect(on, baselines, head.title or head.name, settings.body(folder))
    page(folder)
    return folder


def prepare(plan: Plan, folder: Path) -> Bench:
    """The model, and all rows cut into their parts.

    Raises: DataError for rows that stand in two sets, too few of them, or without the false answers that the suite needs.
    """
    settings, rows = plan.settings, {split: plan.head.rows(split) for split in SPLITS}
    parts = split_retain(rows["forget"], rows["retain"], budget_rows=settings.budget_rows, report_rows=settings.report_rows)
    if len(rows["forget"]) <= settings.validation + 1:
        raise DataError(
            f"compare: there are {len(rows['forget'])} forget rows, and {settings.validation} are held out to choose a learning "
            "rate; at least two more are needed. Lower compare.validation."
        )
    fitting, validation = hold_out(rows["forget"], settings.validation)
    measured = {split: _few(_usable(rows[split]), settings.suite_rows) for split in SPLITS[2:]}
    measured = {"forget": rows["forget"], "retain": _few(_usable(parts.report), settings.suite_rows), **measured}
    check_data(measured)
    model = plan.head.load()
    return Bench(folder, model, rows["forget"], fitting, validation, parts, measured, settings, tuple(state(model)))


def collect(on: Bench, baselines: Sequence[Arm], title: str, settings: dict[str, Any]) -> Result:
    """Everything that has been run, as tables, pictures and a sheet in the run folder."""
    every, searches, failed, missing = list(baselines), [], [], []
    for line, mask in cells(on.settings.lines):
        trials, runs = _there(on, line, mask)
        if trials is None or runs is None:
            missing.append(f"{line.method.name}, {mask}")
            continue
        searches += [trials] if line.rates else []
        failed += [(arm.name, str(arm.point["note"])) for arm in runs if arm.failed]
        every += [arm for arm in runs if not arm.failed]
    _, gold, second = (arm.tables(on.folder) for arm in baselines)
    found: list[tuple[Arm, Said]] = []
    frames: list[pd.DataFrame] = []
    for arm in every:
        tables = arm.tables(on.folder)
        found.append((arm, said(arm, tables)))
        frames.append(measured(on.folder.name, arm, tables, gold, second, found[0][1]))  # the first arm is the untouched model
    told, others = gather(found)
    result = Result(told, others, searches, on.settings.lines, failed, missing)
    compared = tested(result.told, result.lines)
    write(on.folder / "measurements.parquet", pd.concat(frames, ignore_index=True))
    write(on.folder / "searches.parquet", search_frame(searches))
    write(on.folder / "tests.parquet", test_frame(compared.tests))
    write(on.folder / "front.parquet", front_frame(result))
    plane_of(result, on.folder / "plane.svg")
    sheet(title, result, compared, on, settings).save(on.folder)
    return result


def _there(on: Bench, line: Line, mask: str) -> tuple[Search | None, list[Arm] | None]:
    """The trials and runs of a method in a mask that are in the folder."""
    found = search(on, line, mask, look=True)
    return found, None if found is None else arms(on, line, mask, found.lr, look=True)


def _usable(rows: Examples) -> Examples:
    """The rows with false answers, which the suite needs."""
    return rows.take(i for i, row in enumerate(rows) if row.perturbed)


def _few(rows: Examples, most: int) -> Examples:
    """At most so many rows, evenly spaced."""
    n = min(len(rows), most)
    return rows.take(i * len(rows) // n for i in range(n))
