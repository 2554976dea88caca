"""Does unlearning touch the vectors that carry a concept? ConceptVectors' claim, on one's own model.

name: concepts                       # the run folder is OUT/concepts
model: ../data/organism/full         # paths are relative to the study file; hub ids stay as they are
data: {root: ../data/tofu-mini, forget: "tofu:forget", retain: "tofu:retain"}
concepts:
  rows: 20                           # consecutive forget rows make a concept: one author
  vectors: 10                        # of each concept are compared
  arms:                              # besides the untouched model
    npo: {unlearn: {objective: npo, lr: 5e-4}}
    zeroed: {ablate: {kind: zero, vectors: 10}}
    retrained: {model: ../data/organism/retain}

Vectors are found on half of a concept's rows (`probe.find_concept`); answers are measured on the other half and on retain rows that
neither unlearning nor the search has seen. Unlearning itself trains on all forget rows.

    runs/NAME/points/KEY.json      one arm      runs/NAME/found.parquet     the vectors      runs/NAME/sheet.json, report.html
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.core.errors import DataError, StudyError, unknown
from workbench.core.records import Examples
from workbench.core.registry import Member, objective
from workbench.core.runtime import announce, progress
from workbench.core.store import file_sha256, new_file
from workbench.edit import ablate_value_vectors
from workbench.edit.places import check_control
from workbench.edit.value_vectors import KINDS
from workbench.evaluate.ask import ask
from workbench.evaluate.concept_vectors import written
from workbench.load.concepts import own_concept
from workbench.load.models import Model, check_source
from workbench.probe import find_concept
from workbench.report import page
from workbench.study.concept_arms import Arm, Bench, Point, as_many_others, chosen, measure
from workbench.study.concepts_sheet import sheet
from workbench.study.file import known, mapping, relative, resolve
from workbench.study.folder import begin, kept, state
from workbench.study.head import Head, count, read_head
from workbench.study.intervene import row_nll
from workbench.study.judge import split_retain
from workbench.unlearn.run import run as unlearn


@dataclass(frozen=True)
class Settings:
    """What all arms share. against: retain rows the vectors are sought against; report_rows: those that are measured.

    candidates: how many vectors of a concept are taken out one by one in the search.   generate: new tokens of an answer at most.
    """

    rows: int = 20
    vectors: int = 10
    candidates: int = 64
    against: int = 80
    report_rows: int = 60
    generate: int = 64

    def __post_init__(self) -> None:
        for one in fields(self):
            count(f"concepts.{one.name}", getattr(self, one.name))
        if self.vectors > self.candidates:
            raise StudyError(f"concepts.vectors is {self.vectors}, but only {self.candidates} candidates are sought.")


@dataclass(frozen=True)
class Plan:
    """A study of concepts, checked."""

    head: Head
    settings: Settings
    arms: tuple[Arm, ...]


def read(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """A study file with overrides such as "concepts.vectors=5", fully checked.

    Raises: as `read_head`, also for values and arms of `concepts`; UnknownNameError for an objective or option nobody knows.
    """
    head, given = read_head(path, overrides, "concepts", splits=("forget", "retain"))
    body = dict(given)
    asked = mapping("concepts.arms", body.pop("arms", {}))
    known("key of concepts", body, [*(f.name for f in fields(Settings)), "arms"])
    settings = Settings(**body)
    arms = tuple(_arm(str(name), mapping(f"arm {name}", one), settings, Path(path).parent) for name, one in asked.items())
    if not arms:
        raise StudyError(f"{path}: concepts has no arms; give at least one of unlearn, ablate and model.")
    for arm in arms:
        if arm.model:
            check_source(arm.model)
    return Plan(head, settings, (Arm("untouched"), *arms))


def _arm(name: str, body: Mapping[str, Any], settings: Settings, folder: Path) -> Arm:
    kinds = ("unlearn", "ablate", "model")
    known(f"key of arm {name}", body, kinds)
    if len(body) != 1 or name == "untouched":
        raise StudyError(
            f"arm {name}: give one of {', '.join(kinds)}; got {', '.join(body) or 'none'}. 'untouched' is always there."
        )
    if "model" in body:
        return Arm(name, model=resolve(str(body["model"]), folder))
    if "unlearn" in body:
        options = Member(f"arm {name}", unlearn).check_options(dict(mapping(f"arm {name}: unlearn", body["unlearn"])))
        objective[str(options.get("objective", "npo"))].check_options(dict(options.get("options") or {}))
        return Arm(name, unlearn=options)
    options = dict(mapping(f"arm {name}: ablate", body["ablate"]))
    vectors = options.pop("vectors", settings.vectors)
    if type(vectors) is not int or not 1 <= vectors <= settings.candidates:
        raise StudyError(
            f"arm {name}: vectors is {vectors!r}, expected a whole number from 1 to {settings.candidates} (candidates)."
        )
    _check_ablation(name, Member(f"arm {name}", ablate_value_vectors).check_options(options))
    return Arm(name, ablate={**options, "vectors": vectors})


def _check_ablation(name: str, options: Mapping[str, Any]) -> None:
    """What `ablate_value_vectors` would refuse, and a study cannot give, before vectors are sought."""
    given = Member(name, ablate_value_vectors).options | dict(options)
    kind, std, factor = given["kind"], given["std"], given["factor"]
    if kind not in KINDS:
        raise unknown("kind of ablation", kind, KINDS)
    if kind == "project_out" or "direction" in options:
        raise StudyError(f"arm {name}: a study file has no direction to give; leave out 'project_out' and 'direction'.")
    if not (std >= 0 and math.isfinite(std) and math.isfinite(factor)):
        raise StudyError(f"arm {name}: std is {std} and factor {factor}; expected finite numbers, std >= 0.")
    check_control(given["control"])


def run(study: str | Path, *, out: str | Path = "runs", overrides: Iterable[str] = (), show: bool = True) -> Path:
    """Run a study of concepts, or go on with it; returns the run's folder.

    Raises: any InputError before the first file is written.
    """
    plan = read(study, overrides)
    rows = {split: plan.head.rows(split) for split in ("forget", "retain")}
    model = plan.head.load()
    folder = Path(out) / plan.head.name
    on = prepare(model, rows["forget"], rows["retain"], plan.settings, show=show)
    begin(folder, plan.head.config(folder, "concepts", _body(plan, folder)), ("found.parquet", "sheet.json", "report.html"))
    causes = [state(model), *(part.fingerprint() for part in rows.values()), asdict(plan.settings)]
    points = [
        replace(Point(**kept(folder, [*causes, _decisive(arm)], lambda arm=arm: measure(on, arm).as_dict())), arm=arm.name)
        for arm in progress(plan.arms, label="arms", show=show)
    ]
    frames = [one.frame().assign(concept=concept.name) for one, concept in zip(on.found, on.concepts, strict=True)]
    with new_file(folder / "found.parquet") as aside:
        pd.concat(frames, ignore_index=True).to_parquet(aside, index=False)
    sheet(plan.head.title or plan.head.name, plan.arms, points, on, asdict(plan.settings)).save(folder)
    page(folder)
    return folder


def prepare(model: Model, forget: Examples, retain: Examples, settings: Settings, *, show: bool = False) -> Bench:
    """Find every concept's vectors, and measure the model before anything is done to it.

    Raises: DataError if the forget rows do not make whole concepts, or there are too few retain rows.
    """
    if len(forget) % settings.rows:
        raise DataError(
            f"concepts: forget ({forget.name}) has {len(forget)} rows, which do not make concepts of {settings.rows}; "
            "give concepts.rows, the number of consecutive rows about one concept."
        )
    parts = split_retain(forget, retain, budget_rows=settings.against, report_rows=settings.report_rows)
    found, concepts, held_out = [], [], []
    for i in range(0, len(forget), settings.rows):
        rows = forget[i : i + settings.rows]
        announce(f"concept {i // settings.rows + 1} of {len(forget) // settings.rows}", show=show)
        one = find_concept(model, rows, parts.budget, n_candidates=settings.candidates, report=settings.vectors)
        reported = {row.id for row in one.held_out.answers}
        mine = rows.take(j for j, row in enumerate(rows) if row.id in reported)
        held_out += list(mine)
        concept = own_concept(model, f"{rows[0].id} to {rows[-1].id}", one.top(settings.vectors), mine, parts.report)
        concepts.append(replace(concept, unrelated_qa=()) if concepts else concept)  # which are the same for all: asked once
        found.append(one)
    report = Examples(held_out, forget.name)
    places = chosen(found, settings.vectors)
    others = as_many_others(model, places, chosen(found, settings.candidates))
    return Bench(
        model=model,
        forget=forget,
        train=parts.train,
        held_out=report,
        unrelated=parts.report,
        found=found,
        concepts=concepts,
        places=places,
        others=others,
        before={"places": written(model, places), "others": written(model, others)},
        nll={"concept": row_nll(model, report), "unrelated": row_nll(model, parts.report)},
        said=ask(model, concepts, max_new_tokens=settings.generate),
        tokens=settings.generate,
    )


def _decisive(arm: Arm) -> dict[str, Any]:
    """What decides an arm's numbers: its options, and a model by its content. Its name does not."""
    plain: dict[str, Any] = {"unlearn": dict(arm.unlearn), "ablate": dict(arm.ablate)}
    folder = Path(arm.model)
    if arm.model and folder.is_dir():
        return plain | {"model": {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file()}}
    return plain | {"model": arm.model}


def _body(plan: Plan, folder: Path) -> dict[str, Any]:
    """Settings and arms as a study file has them, paths relative to the run's folder."""
    arms: dict[str, Any] = {}
    for arm in plan.arms[1:]:
        arms[arm.name] = {"model": relative(arm.model, folder)} if arm.model else {}
        arms[arm.name] |= {key: dict(getattr(arm, key)) for key in ("unlearn", "ablate") if getattr(arm, key)}
    return {**asdict(plan.settings), "arms": arms}
