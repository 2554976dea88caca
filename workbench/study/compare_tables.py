"""The runs of a comparison as tables for whoever reads them with code, and the forget-utility plane as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from workbench.core.measurements import Measurement
from workbench.core.statistics import Estimate, mean_estimate
from workbench.core.store import new_file
from workbench.evaluate import TokenTable, tofu
from workbench.evaluate.forget_quality import forget_quality, ks_distance
from workbench.report.plane import plane
from workbench.study.compare_choice import Search
from workbench.study.compare_grid import Arm
from workbench.study.compare_plan import EDIT, NONE, RETRAINED, RETRAINED_B, UNTOUCHED
from workbench.study.compare_result import AGGREGATE, Result, Said
from workbench.study.compare_tests import Versus

FIRST = ("run", "arm", "method", "mask", "seed", "metric", "split", "value", "low", "high", "n", "unit", "seconds")
SPENT = {
    "budget_used": ("used", "nats/token"),
    "budget_reached": ("reached", "yes or no"),
    "steps": ("steps", "steps"),
    "part_taken": ("part", "share"),
    "moved": ("moved", "share of the weights"),
}
"""What a run came to, beside what was measured: metric, field of its point, unit."""
MARKS = {UNTOUCHED: "untouched", RETRAINED: "reference", RETRAINED_B: "band"}


def write(path: Path, frame: pd.DataFrame) -> None:
    """A frame as parquet."""
    with new_file(path) as aside:
        frame.to_parquet(aside, index=False)


def measured(
    run: str,
    arm: Arm,
    tables: Mapping[str, TokenTable],
    gold: Mapping[str, TokenTable],
    second: Mapping[str, TokenTable],
    start: Said,
) -> pd.DataFrame:
    """Every number of one run, a line each: the suite against the retrained model, the distance to the second one, what it cost.

    Args: start: the untouched model.
    """
    rows = list(tofu(tables, None if arm.name == RETRAINED else gold))
    rows += _second(tables, second) if arm.name != RETRAINED_B else []
    rows.append(_retain(arm, start))
    nan = math.nan
    for metric, (key, unit) in SPENT.items():
        if arm.point.get(key) is not None:
            rows.append(Measurement(metric, "budget", float(arm.point[key]), nan, nan, 1, unit, note="of one run"))
    if arm.lr is not None:
        rows.append(Measurement("lr", "training", arm.lr, nan, nan, 1, "rate", note="chosen on validation rows"))
    about = {"run": run, "arm": arm.name, "method": arm.method, "mask": arm.mask, "seed": arm.seed}
    frame = pd.DataFrame([vars(row) for row in rows]).assign(**about, seconds=arm.point["seconds"] or nan)
    return frame.reindex(columns=[*FIRST, *(column for column in frame if column not in FIRST)])


def search_frame(searches: Sequence[Search]) -> pd.DataFrame:
    """Every trial, a line each; chosen: whether its rate was."""
    return pd.DataFrame(
        [
            {"method": one.method, "mask": one.mask, "chosen": trial["lr"] == one.lr, **trial}
            for one in searches
            for trial in one.trials
        ]
    )


def test_frame(tests: Sequence[Versus]) -> pd.DataFrame:
    """Every comparison of two masks, a line for each of what is compared; n: seeds."""
    lines = []
    for one in tests:
        for what, found, adjusted in (("forget_nll", one.forget, one.adjusted_forget), ("gap", one.gap, one.adjusted_gap)):
            lines.append(
                {
                    "method": one.method,
                    "mask": one.mask,
                    "against": one.against,
                    "what": what,
                    **dict(zip(("difference", "low", "high", "n"), found.difference, strict=True)),
                    "p": found.p,
                    "p_adjusted": adjusted,
                }
            )
    return pd.DataFrame(lines)


def front_frame(result: Result) -> pd.DataFrame:
    """Every arm on the two axes of the front, with who dominates it."""
    front = result.front
    if front is None:
        return pd.DataFrame()
    return pd.DataFrame(
        {
            "arm": front.names,
            "bands": front.forget,
            "retain_rise": -front.retain,
            "on_front": front.on_front,
            "share_on_front": front.share,
            "dominated_by": [list(names) for names in front.dominated_by],
            "budget_spent_by": [one.reached for one in result.told],
            "runs": [len(one.arms) for one in result.told],
        }
    )


def plane_of(result: Result, path: Path) -> None:
    """Methods without a mask or in one of their own, edits, retrained models and the untouched one, in the forget-utility plane."""
    masked = {line.method.name for line in result.lines if line.rates and NONE not in line.masks}
    drawn = [*result.baselines.values(), *(one for one in result.told if one.mask in (NONE, EDIT) or one.method in masked)]
    lines = []
    for one in drawn:
        x, y = one.distance, one.utility
        ends = {"x": x.value, "x_low": x.low, "x_high": x.high, "y": y.value, "y_low": y.low, "y_high": y.high}
        mark = MARKS.get(one.method, "edit" if one.mask == EDIT else "unlearn")
        lines.append({"title": one.name if one.method in masked else one.method, "mark": mark, **ends})
    gold, second = (result.baselines[name].utility.value for name in (RETRAINED, RETRAINED_B))
    picture = plane(
        pd.DataFrame(lines),
        x_label="D to the retrained model, truth ratios of forget rows",
        y_label="model utility",
        x_band=(0.0, result.band.value),
        y_band=(gold - abs(second - gold), gold + abs(second - gold)),
    )
    with new_file(path) as aside:
        aside.write_text(picture.replace("<svg ", Markup('<svg xmlns="http://www.w3.org/2000/svg" '), 1), encoding="utf-8")


def _second(tables: Mapping[str, TokenTable], second: Mapping[str, TokenTable]) -> list[Measurement]:
    """D and p against the second retrained model."""
    mine, theirs = tables["forget"], second["forget"]
    note = "against the model that was retrained with another seed"
    found = {
        "ks_distance_second": ks_distance(mine, theirs, aggregate=AGGREGATE),
        "forget_quality_second": forget_quality(mine, theirs),
    }
    units = {"ks_distance_second": "distance", "forget_quality_second": "p-value"}
    return [Measurement.of(name, "forget", one, unit=units[name], note=note) for name, one in found.items()]


def _retain(arm: Arm, start: Said) -> Measurement:
    """Rise of the NLL of the reported retain rows."""
    rise: Estimate = mean_estimate([a - b for a, b in zip(arm.point["retain_nll"], start.retain_nll, strict=True)])
    return Measurement.of(
        "retain_nll_rise", "report", rise, unit="nats/token", better="lower", note="rows neither trained on nor in the budget"
    )
