"""A model before and after: which rows were forgotten, which modules carry it, which training rows explain it, and is that so?

    found = wb.study.diagnose(before, after, rows, train=train, control=control, recipe={"epochs": 3, "lr": 5e-4})
    found.rows, found.modules, found.blame, found.counterfactual      # frames
    found.save("runs/diagnose")                                       # parquet files, sheet.json, report.html

Everything is measured on the model before, with the difference of the two applied as a Delta and taken away again to the same bits;
in its own dtype that is the model after, up to one rounding of each weight. See `diagnose_rows` for the tests, `diagnose_weights`
for the modules, `diagnose_data` for blame and `diagnose_counter` for what is put to the test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.core.delta import Delta, applied
from workbench.core.errors import InputError, unknown
from workbench.core.numerics import permutation
from workbench.core.records import Examples
from workbench.core.statistics import mean_estimate
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.study.diagnose_counter import Counterfactual, Replay, check_recipe, how_many, put_back, retrain
from workbench.study.diagnose_data import agreement, blame, method_of
from workbench.study.diagnose_reading import records
from workbench.study.diagnose_result import Diagnosis
from workbench.study.diagnose_rows import Changed, check_control, compare, difference, discovered
from workbench.study.diagnose_weights import GROUPINGS, bench, effects, pieces

if TYPE_CHECKING:
    import pandas as pd

ANSWERS, NEW_TOKENS = 4, 48  # forgotten rows whose answers are shown, and how long those are at most


class _Explained(NamedTuple):
    """What `_explain` found; None, or no line, for what was not asked or cannot be."""

    modules: "pd.DataFrame | None" = None
    blame: "pd.DataFrame | None" = None
    counterfactuals: tuple[Counterfactual, ...] = ()
    replay: Replay | None = None


def diagnose(
    before: Model,
    after: Model | Delta,
    rows: Examples,
    *,
    train: Examples | None = None,
    unlearned: Examples | None = None,
    control: Examples | None = None,
    method: str = "gradient_similarity",
    options: Mapping[str, Any] | None = None,
    modules: str = "matrix",
    recipe: Mapping[str, Any] | None = None,
    top: float = 0.1,
    level: float = 0.05,
    most_rows: int = 64,
    seeds: Sequence[int] = (0, 1, 2),
    show: bool = False,
) -> Diagnosis:
    """Find what a change of the weights made a model forget, where it sits, which training rows explain it, and test that.

    Args:
        before: the model as it was; it is left to the bit as it is.
        after: the same model later (one architecture, tokenizer, dtype and shapes), or a Delta of `before`.
        rows: what may have been forgotten: prompts with the answers that were right before.
        train: rows that were learned between the two.   unlearned: rows that were unlearned, by ascent.
        control: rows of the same kind that nothing should have happened to, none of them in `rows`; they set what counts as
            forgetting beyond the drift of the whole model, and the cost of a counterfactual is measured on them.
        method, options: a registered influence for blame, and its options.
        modules: "matrix" or "layer": what is put back as one.
        recipe: options of `train.fit` by which `before` was fine-tuned on `train`. With it the training is done again, without
            the blamed rows among others: 3 + len(seeds) trainings.
        top: how many training rows are left out: a share of them below 1, or a count.
        level: largest expected share of false discoveries among the rows called forgotten.
        most_rows: forgotten rows, and other rows, that modules, blame and counterfactuals are measured on; drawn, where there are
            more. Where no row was found to be forgotten, all rows stand in.
        seeds: of the random choices the blamed are compared with.
    Raises: MismatchError if `after` does not belong to `before`; DataError if control shares a row with rows or with what was
        trained on; UnknownNameError or InputError for a method, an option, a grouping or a number that cannot be.
    """
    _check(modules, level, most_rows, seeds)
    delta = difference(before, after)
    sets = {name: one for name, one in (("learned", train), ("unlearned", unlearned)) if one is not None}
    check_control(control, {"rows": rows, **sets})
    member, given = method_of(method, options)
    steps = _recipe(recipe, top, train)
    for one in sets.values():
        encode_all(before, one)  # a row that is too long is said now, not after an hour
    changed = compare(before, delta, rows)
    drift = None if control is None else compare(before, delta, control)
    trained_on = {row.prompt for one in sets.values() for row in one}
    frame = discovered(changed, drift, level=level, asked=[row.prompt in trained_on for row in rows])
    found = [i for i, one in enumerate(frame["forgotten"]) if one]
    judged = rows.take(_some(found or range(len(rows)), most_rows))
    rest, kind = _others(rows, found, control, most_rows)
    why = _Explained()
    if not delta.is_empty:
        why = _explain(before, delta, judged, rest, sets, member.name, given, modules, steps, top, seeds, show)
    return Diagnosis(
        rows=frame,
        control=None if drift is None else _plain(drift),
        modules=why.modules,
        blame=why.blame,
        counterfactual=_frame(why.counterfactuals),
        answers=_answers(before, delta, rows, frame),
        judged=tuple(judged.ids),
        others=(0 if rest is None else len(rest), kind),
        replay=why.replay,
        agreement=None if why.blame is None else agreement(why.blame, how_many(top, len(why.blame))),
        settings={
            "before": before.name,
            "after": after.name if isinstance(after, Model) else f"Delta of {after.provenance.method}",
            "rows": _said(rows),
            **{name: _said(one) for name, one in [*sets.items(), *([("control", control)] if control is not None else [])]},
            "method": member.name,
            "options": {name: _json(value) for name, value in given.items()},
            "modules": modules,
            "recipe": None if steps is None else {name: _json(value) for name, value in steps.items()},
            "top": top,
            "level": level,
            "most_rows": most_rows,
            "seeds": list(seeds),
        },
    )


def _explain(
    before: Model,
    delta: Delta,
    judged: Examples,
    rest: Examples | None,
    sets: Mapping[str, Examples],
    method: str,
    options: Mapping[str, Any],
    modules: str,
    recipe: Mapping[str, Any] | None,
    top: float,
    seeds: Sequence[int],
    show: bool,
) -> _Explained:
    """Modules, training rows and their counterfactuals. Where nothing was forgotten, nothing is put to the test."""
    on, others = bench(before, delta, judged), None if rest is None else bench(before, delta, rest)
    cut = pieces(delta, modules)
    single = effects(on, cut, show=show)
    blamed = blame(before, delta, judged, sets, method=method, options=options) if sets else None
    if mean_estimate(on.after - on.before).value <= 0:
        return _Explained(single.modules, blamed)
    lines = put_back(on, others, cut, single, seeds=seeds, show=show)
    if recipe is None or blamed is None:
        return _Explained(single.modules, blamed, tuple(lines))
    train, learned = sets["learned"], blamed.query("source == 'learned'")
    replay, more = retrain(on, others, train, learned, recipe=recipe, top=how_many(top, len(train)), seeds=seeds, show=show)
    return _Explained(single.modules, blamed, (*lines, *more), replay)


def _recipe(recipe: Mapping[str, Any] | None, top: float, train: Examples | None) -> dict[str, Any] | None:
    """The recipe, checked with what it is to be repeated on."""
    removed = how_many(top, 1 if train is None else len(train))
    if recipe is None:
        return None
    if train is None:
        raise InputError("diagnose: recipe says how to train on train again, but there is no train. Give both, or neither.")
    if removed >= len(train):
        raise InputError(f"diagnose: top is {top!r} of {len(train)} training rows, which leaves none to train on.")
    return check_recipe(recipe)


def _check(modules: str, level: float, most_rows: int, seeds: Sequence[int]) -> None:
    if modules not in GROUPINGS:
        raise unknown("grouping of modules", modules, GROUPINGS)
    if not 0 < level < 1:
        raise InputError(f"diagnose: level is {level}, expected a share above 0 and below 1.")
    if most_rows < 1:
        raise InputError(f"diagnose: most_rows is {most_rows}, expected at least 1.")
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise InputError(f"diagnose: seeds is {list(seeds)}, expected whole numbers, at least one, and none twice.")


def _said(rows: Examples) -> str:
    return f"{rows.name}, {len(rows)} rows"


def _json(value: Any) -> Any:
    """An option as it is written down."""
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def _plain(changed: Changed) -> "pd.DataFrame":
    import pandas as pd

    columns = {"before": changed.before, "after": changed.after, "change": changed.change}
    return pd.DataFrame(columns, index=pd.Index(changed.ids, name="id"))


def _frame(lines: Sequence[Counterfactual]) -> "pd.DataFrame":
    import pandas as pd

    columns = [one.name for one in fields(Counterfactual)]
    frame = pd.DataFrame([asdict(line) for line in lines], columns=columns)
    return frame.assign(names=[list(one) for one in frame["names"]], seed=frame["seed"].astype("Int64"))


def _some(positions: Sequence[int], most: int) -> list[int]:
    """At most so many of the positions, drawn and in order."""
    return sorted(positions[i] for i in permutation(len(positions), 0)[:most])


def _others(rows: Examples, found: Sequence[int], control: Examples | None, most: int) -> tuple[Examples | None, str]:
    """Rows on which a counterfactual should change nothing, and what they are."""
    if control is not None:
        return control.take(_some(range(len(control)), most)), "control rows"
    rest = [i for i in range(len(rows)) if i not in set(found)]
    if not found or not rest:
        return None, ""
    return rows.take(_some(rest, most)), "rows that were not found to be forgotten"


def _answers(model: Model, delta: Delta, rows: Examples, frame: "pd.DataFrame") -> "pd.DataFrame":
    """What the rows whose NLL rose most are answered before and after."""
    import pandas as pd

    risen = {i: row["change"] for i, row in enumerate(records(frame)) if row["change"] > 0 and rows[i].prompt.strip()}
    order = sorted(risen, key=lambda i: -risen[i])
    shown = rows.take(order[:ANSWERS]) if order else None
    columns: dict[str, Any] = {"id": [], "prompt": [], "response": [], "before": [], "after": []}
    if shown is not None:
        prompts = [row.prompt for row in shown]
        columns = {"id": shown.ids, "prompt": prompts, "response": [row.response for row in shown]}
        columns["before"] = model.generate(prompts, max_new_tokens=NEW_TOKENS)
        with applied(model, delta):
            columns["after"] = model.generate(prompts, max_new_tokens=NEW_TOKENS)
    return pd.DataFrame(columns).set_index("id")
