"""Judge localizations from a study file: every point a file that is complete or absent, then one table and one page.

name: localization                   # the run folder is OUT/localization
model: ../data/organism/full         # paths are relative to the study file; hub ids stay as they are
data: {root: ../data/tofu-mini, forget: "tofu:forget", retain: "tofu:retain"}
judge:
  scores: {wagle: {}, wagle-paper: {method: wagle, gamma: paper}, heads: {method: snip, unit: head}}
  scope: global                      # the others are the options of `judge`
  sizes: [0.02, 0.2]
  seeds: [0, 1]

    runs/NAME/config.yaml            the study, resolved; running it again repeats the run
    runs/NAME/env.json               machine and versions
    runs/NAME/scores/*.safetensors   the weight scores, found on the forget rows and the retain rows that are trained on
    runs/NAME/points/KEY.json        one intervention; KEY is a hash of all that decides its result
    runs/NAME/verdict.parquet        all points         runs/NAME/areas.parquet   one row a set and comparison
    runs/NAME/report.html            these three are there once all points are; another config.yaml takes them away first
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import __version__
from workbench.attribute import LocatedUnits, several, unit_scores
from workbench.attribute.parts import UNITS
from workbench.core.errors import StudyError, unknown
from workbench.core.records import Examples
from workbench.core.registry import Member, attribution
from workbench.core.runtime import progress_bar
from workbench.core.scopes import SCOPES
from workbench.core.scores import Scores
from workbench.core.store import new_file, text_sha256
from workbench.load.models import Model
from workbench.report.verdict import page
from workbench.study.file import mapping
from workbench.study.folder import begin, kept, state
from workbench.study.head import Head, read_head
from workbench.study.intervene import Bench, Located, Parts, Point, Question, Settings, bench, check, measure
from workbench.study.judge import Ranked, judge, questions, sizes_of, split_retain, verdict

_JUDGE = Member("judge", judge)


@dataclass(frozen=True)
class ScorePlan:
    """One located set: the scores of a registered method with options; of whole units (`attribute/parts.py`) if one is named."""

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    unit: str = ""

    def key(self) -> list[Any]:
        """What decides the scores, besides model and rows; defaults filled in."""
        every = {**attribution[self.method].options, **self.options}
        return [self.method, {key: str(value) for key, value in every.items() if not callable(value)}]


@dataclass(frozen=True)
class Localization:
    """A study of localizations, checked. judge: options of `judge`, as they are given."""

    head: Head
    scores: tuple[ScorePlan, ...]
    judge: Mapping[str, Any]
    settings: Settings
    scope: str = "global"

    @property
    def cut(self) -> dict[str, int]:
        """How many retain rows are set aside, where the study says so."""
        return {key: self.judge[key] for key in ("budget_rows", "report_rows") if key in self.judge}


def read(path: str | Path, overrides: Iterable[str] = (), *, only: Sequence[str] = ()) -> Localization:
    """A study file with overrides such as "judge.budget=0.1", fully checked.

    Args: only: names of scores in the file, or of registered methods, which then have their default options; all of the
        file's without it.
    Raises: as `read_head`; UnknownNameError for a method or option nobody knows; InputError for an option that cannot be.
    """
    head, given = read_head(path, overrides, "judge", splits=("forget", "retain"))
    body = dict(given)
    scores = _plans(path, mapping("judge.scores", body.pop("scores", {})), only)
    scope = body.pop("scope", "global")
    if scope not in SCOPES:
        raise unknown("scope", str(scope), SCOPES)
    units = [one.name for one in scores if one.unit]
    if units and scope != "global":
        raise StudyError(
            f"{path}: judge.scope is {scope!r}, but {', '.join(units)} chooses whole units, which all compete (scope global). Give "
            "such sets a study of their own."
        )
    return Localization(head, scores, body, _settings(body), scope)


def _plans(path: str | Path, given: Mapping[str, Any], only: Sequence[str]) -> tuple[ScorePlan, ...]:
    """The scores of the file, or those asked for."""
    plans = []
    for name in only or given:
        body = dict(mapping(f"scores {name}", given.get(name) or {}))
        if name not in given and name.replace("-", "_") not in attribution.names():
            raise unknown("score", name, {*given, *attribution.names()})
        member = attribution[str(body.pop("method", name))]
        unit = str(body.pop("unit", ""))
        if unit and unit not in UNITS:
            raise unknown("unit", unit, UNITS)
        plans.append(ScorePlan(str(name), member.name, member.check_options(body), unit))
    if not plans:
        raise StudyError(f"{path}: judge has no scores. Known: {', '.join(attribution.names())}.")
    return tuple(plans)


def _settings(body: Mapping[str, Any]) -> Settings:
    """The options of `judge` as the settings of its points, defaults filled in."""
    if "show" in body:
        raise StudyError("judge: show is not an option of a study.")
    full = {**_JUDGE.options, **_JUDGE.check_options(dict(body))}
    full |= {"sizes": tuple(full["sizes"]), "seeds": tuple(full["seeds"]), "options": dict(full["options"] or {})}
    return Settings(**{f.name: full[f.name] for f in fields(Settings)})


def run(
    study: str | Path,
    *,
    out: str | Path = "runs",
    overrides: Iterable[str] = (),
    only: Sequence[str] = (),
    show: bool = True,
) -> Path:
    """Run a study of localizations, or go on with it; returns the run's folder.

    Args:
        study: a study file; see the top of this file.
        out: the folder that holds runs.
        overrides: such as "judge.budget=0.1".
        only: see `read`.
        show: draw a progress bar with the time left on standard error.
    Raises: any InputError before the first file is written.
    """
    plan = read(study, overrides, only=only)
    rows = {split: plan.head.rows(split) for split in ("forget", "retain")}
    parts = split_retain(rows["forget"], rows["retain"], **plan.cut)
    model = plan.head.load()
    folder = Path(out) / plan.head.name
    paths = score_paths(plan, model, rows["forget"], parts, folder)
    scores = locate(plan, model, rows["forget"], parts, paths)
    located = {one.name: _located(one, model, scores[one.name], plan.scope) for one in plan.scores}
    on = bench(model, rows["forget"], parts, plan.settings)
    check(on, located, sizes_of(located, plan.settings))
    begin(folder, plan.head.config(folder, "judge", _body(plan)), ("verdict.parquet", "areas.parquet", "report.html"))
    for name, path in paths.items():
        if not path.exists():
            scores[name].save(path)
    asked = questions(sizes_of(located, plan.settings), plan.settings)
    points = []
    with progress_bar(show=show) as bar:
        task = bar.add_task("judge", total=len(asked))
        for one in asked:
            bar.update(task, description=f"{one.set} {one.size:g} {one.side}")
            made = kept(folder, _about(plan, on, one), lambda one=one: measure(on, located[one.set], one).as_dict())
            points.append(replace(Point(**made), set=one.set))  # a set's name does not decide anything, so it may change
            bar.advance(task)
    found = verdict(points, on)
    for name, frame in (("verdict", found.points), ("areas", found.areas())):
        _write_frame(frame, folder / f"{name}.parquet")
    page(folder)
    return folder


def _located(one: ScorePlan, model: Model, scores: Scores, scope: str) -> Located:
    """A set of single weights, or of whole units, whose control is units."""
    if one.unit:
        return LocatedUnits(one.name, model, unit_scores(model, scores, unit=one.unit), one.unit)
    return Ranked(one.name, scores, scope)


def score_paths(plan: Localization, model: Model, forget: Examples, parts: Parts, folder: Path) -> dict[str, Path]:
    """Where the scores of every set are kept, named by what decides them. Sets that differ in nothing else share a file."""
    about = [__version__, model.fingerprint(), str(model.dtype), model.text_key(), forget.fingerprint(), parts.train.fingerprint()]
    return {
        one.name: folder / "scores" / f"{one.method}-{text_sha256([*about, one.key()])[:12]}.safetensors" for one in plan.scores
    }


def locate(plan: Localization, model: Model, forget: Examples, parts: Parts, paths: Mapping[str, Path]) -> dict[str, Scores]:
    """The scores of every set: those that are kept already, and the others from one pass they share. Writes nothing.

    No row that the budget is measured on or that is reported enters them. A score with an option that `several` takes for all
    (such as `include`) has a pass of its own.
    """
    absent = [one for one in plan.scores if not paths[one.name].exists()]
    alone = [one for one in absent if set(one.options) & set(Member("several", several).options)]
    together = {one.name: {"method": one.method, **one.options} for one in absent if one not in alone}
    found = several(model, forget, parts.train, together) if together else {}
    for one in alone:
        found[one.name] = attribution[one.method].function(model, forget, parts.train, **one.options)
    return {name: found[name] if name in found else Scores.load(path) for name, path in paths.items()}


def _about(plan: Localization, on: Bench, one: Question) -> list[Any]:
    """All that decides a point."""
    rows = [part.fingerprint() for part in (on.forget, *on.parts)]
    chosen = {key: value for key, value in asdict(plan.settings).items() if key not in ("sizes", "seeds")}
    found = next(score for score in plan.scores if score.name == one.set)
    return [state(on.model), rows, chosen, found.key(), found.unit, plan.scope, one.size, one.side, one.seed]


def _body(plan: Localization) -> dict[str, Any]:
    """Scores and options of `judge` as a study file has them, every default filled in."""
    scores = {one.name: {"method": one.method, **({"unit": one.unit} if one.unit else {}), **one.options} for one in plan.scores}
    chosen = asdict(plan.settings) | {"sizes": list(plan.settings.sizes), "seeds": list(plan.settings.seeds)}
    cut = {key: _JUDGE.options[key] for key in ("budget_rows", "report_rows")} | plan.cut
    return {"scores": scores, "scope": plan.scope, **chosen, **cut}


def _write_frame(frame: pd.DataFrame, path: Path) -> None:
    with new_file(path) as aside:
        frame.to_parquet(aside, index=False)
