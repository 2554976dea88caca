"""A diagnosis in sentences: what came out, and what to be careful about. Every sentence is made from its numbers."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from workbench.core.statistics import Estimate, mean_estimate
from workbench.core.svg import number, percent
from workbench.report.words import listed

if TYPE_CHECKING:
    from workbench.study.diagnose_result import Diagnosis

Line = dict[str, Any]


def records(frame: Any) -> list[Line]:
    """The rows of a frame as dictionaries, its index among them; none of None."""
    return [] if frame is None else frame.reset_index().to_dict("records")


def changes(lines: Sequence[Line]) -> Float[np.ndarray, "row"]:
    """The changes of some rows."""
    return np.array([line["change"] for line in lines], dtype=np.float64)


def share_text(value: float) -> str:
    """A share in percent, below 0 and above 1 too; a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    return percent(value) if 0 <= value <= 1 else f"{100 * value:.3g} %".replace("-", "−")


def estimate_text(found: Estimate) -> str:
    """A value with its interval."""
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def reading(found: "Diagnosis") -> str:
    """What was done and what came out."""
    rows, control = records(found.rows), records(found.control)
    if not any(changes(rows)):
        said = f"Nothing changed: the NLL of each of the {len(rows)} rows is the same before and after."
        return said if found.modules is not None else f"{said} No weight differs."
    forgotten = [row for row in rows if row["forgotten"]]
    improved = sum(row["improved"] for row in rows)
    rise = f"The mean NLL of their answers rose by {estimate_text(mean_estimate(changes(rows)))} nats per token"
    if forgotten:
        rise += f", that of the forgotten rows by {estimate_text(mean_estimate(changes(forgotten)))}"
    if control:
        rise += f", that of {len(control)} control rows by {estimate_text(mean_estimate(changes(control)))}"
    said = [
        f"{len(forgotten)} of {len(rows)} rows were forgotten and {improved} improved, at a rate of false discoveries of "
        f"{found.settings['level']:g}.",
        f"{rise}.",
    ]
    if not forgotten:
        said.append("No row stands out, so modules and training rows are looked at for all rows together.")
    said += _compared(found, "modules")
    said += _compared(found, "rows")
    if found.agreement is not None:
        same = found.agreement
        said.append(
            f"Of the {same.top} most blamed training rows {same.common} are also among the {same.top} nearest to "
            f"{'the forgotten rows' if forgotten else 'all rows'} in words ({number(same.chance)} by chance)."
        )
    return " ".join(said)


def _compared(found: "Diagnosis", about: str) -> list[str]:
    """The blamed against chance and against the plainest rule, and what that means."""
    lines = [line for line in records(found.counterfactual) if line["about"] == about]
    mine = next((line for line in lines if line["case"] == "blamed"), None)
    if mine is None or not math.isfinite(mine["gone"]):
        return []
    random = [line for line in lines if line["case"] == "random"]
    drawn = [line["gone"] for line in random]
    plain = next(line["gone"] for line in lines if line["case"] not in ("blamed", "random"))
    names = f" ({listed(mine['names'])})" if mine["n"] <= 3 else ""
    what, rule, chance = {
        "modules": (f"Putting back the {mine['n']} most blamed modules{names}", "that changed most", "others that changed as much"),
        "rows": (f"Training again without the {mine['n']} most blamed rows", "nearest in words", "as many"),
    }[about]
    if about == "modules" and min(line["size"] for line in random) < 0.9 * mine["size"]:
        chance = f"others, all of which together changed less ({share_text(min(line['size'] for line in random))} of ||Delta||²)"
    sure = math.isfinite(mine["gone_low"]) and mine["gone_low"] > max(drawn)
    verdict = "so it is more than chance" if sure else "so it is not clearly more than chance"
    value, low, high = (share_text(mine[name]) for name in ("gone", "gone_low", "gone_high"))
    return [
        f"{what} takes {value} [{low}, {high}] of the forgetting away, of the {mine['n']} {rule} {share_text(plain)}; {chance}, "
        f"drawn at random, take {listed(map(share_text, drawn))}, {verdict}."
    ]


def cautions(found: "Diagnosis") -> tuple[str, ...]:
    """What to know before quoting a number."""
    rows, n = records(found.rows), len(records(found.control))
    if n:
        least = math.ceil(len(rows) / ((n + 1) * found.settings["level"]))
        said = ["The p-values hold if the control rows are like rows that nothing happened to; they must be of the same kind."]
        if least > 1:
            few = f"fewer than {least} forgotten rows" if least <= len(rows) else "forgotten rows, however many,"
            said.append(
                f"With {n} control rows no p-value is below {number(1 / (n + 1))}, so {few} among {len(rows)} cannot be found. "
                "More control rows find more."
            )
    else:
        said = [
            "Without control rows a row is tested against no change at all, by its own tokens. Tokens of an answer depend on each "
            "other, so these p-values are too small, and a drift of the whole model counts as forgetting. Give control rows."
        ]
    both = sum(row["forgotten"] and row["asked"] for row in rows)
    if both:
        said.append(
            f"The very question of {both} forgotten rows stands in the training rows: those were trained on, not lost by accident."
        )
    if len(found.judged) < len(found.forgotten):
        said.append(
            f"Modules, blame and counterfactuals are about {len(found.judged)} of the {len(found.forgotten)} forgotten rows."
        )
    if found.modules is not None:
        said.append("Modules work together: what they carry alone need not add up, and another set may carry as much.")
    if found.blame is not None:
        if found.replay is not None:
            test = "The retraining is what tests it; it used one training seed."
        elif found.settings["recipe"] is not None:
            test = "No retraining tested it, because the rows it is about did not lose anything on the mean."
        else:
            test = "No retraining tested it; give recipe=."
        said.append(f"Blame looks at two points of a long path. {test}")
    return tuple(said)
