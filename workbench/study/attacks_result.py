"""What a study of attacks compares, on the same rows of every model:

    recovered         (after - before) / (untouched - before): 0 where the attack brings nothing back, 1 where it brings back all
    beyond retrained  after, less the retrained model's after: what the attack finds that was never really gone

Both are taken of means over rows, with bootstrap intervals that draw rows whole, so that every model is drawn on the same ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from workbench.core.comparison import Paired, paired
from workbench.core.records import Examples
from workbench.core.statistics import Estimate, bootstrap, mean_estimate
from workbench.study.attacks_arms import Arm
from workbench.study.attacks_grid import OUTPUT
from workbench.study.attacks_plan import RETRAINED, UNTOUCHED, Settings

if TYPE_CHECKING:
    import pandas as pd

Values = Mapping[str, Float[np.ndarray, "row"]]
READ = {
    "head_projection": "Extraction by head projection",
    "probability_delta": "Extraction by probability delta",
}
LEARNED = {
    "forget_subset": "Relearning on other forget rows",
    "retain_only": "Relearning on retain rows alone",
    "unrelated": "Relearning on unrelated rows",
}


@dataclass(frozen=True, eq=False)
class Line:
    """One attack and one measure.

    key: short name.   heading: of its section.   measure: what is measured, with its unit.   before, after: by model, row by row.
    by_seed: by model and seed, where the attack has seeds; `after` is then the mean over them.
    also: more values by heading and model, some of other rows.
    """

    key: str
    heading: str
    measure: str
    before: Values
    after: Values
    by_seed: Mapping[str, Float[np.ndarray, "seed row"]] = field(default_factory=dict)
    also: Mapping[str, Mapping[str, Float[np.ndarray, "_"]]] = field(default_factory=dict)

    def recovered(self, arm: str) -> Estimate:
        """Share of what was forgotten that the attack brings back; NaN where nothing was, or not with its whole interval above 0.

        It can exceed 1, and be negative where the attack makes the model worse.
        """
        rows = np.stack([self.before[arm], self.after[arm], self.before[UNTOUCHED]], axis=1)
        forgotten = bootstrap(lambda x: (x[..., 2] - x[..., 0]).mean(axis=1), rows)
        if not forgotten.low > 0:
            return Estimate(float("nan"), float("nan"), float("nan"), len(rows))

        def share(drawn: Float[np.ndarray, "resample row 3"]) -> Float[np.ndarray, "resample"]:
            before, after, untouched = np.moveaxis(drawn.mean(axis=1), -1, 0)
            away = untouched - before
            return np.divide(after - before, away, out=np.full(away.shape, np.inf), where=away != 0)

        return bootstrap(share, rows)

    def beyond(self, arm: str) -> Paired:
        """After the attack, less the retrained model after the same attack, row by row."""
        return paired(self.after[arm], self.after[RETRAINED])


@dataclass(frozen=True, eq=False)
class Result:
    """Everything that was measured. found: by attack and model, as `attacks_grid` says.   report: the reported retain rows."""

    settings: Settings
    arms: Sequence[Arm]
    found: Mapping[str, Mapping[str, Mapping[str, Any]]]
    forget: Examples
    report: Examples
    d_vocab: int

    @property
    def names(self) -> list[str]:
        """Of the models, in order."""
        return [arm.name for arm in self.arms]

    @property
    def methods(self) -> list[str]:
        """Of the models that were unlearned."""
        return [arm.name for arm in self.arms if arm.delta is not None]

    @cached_property
    def lines(self) -> list[Line]:
        """All that is compared before and after, in the order of the attacks."""
        every = {
            "extraction": self._extraction,
            "prompts": self._prompts,
            "relearning": self._relearning,
            "quantization": self._quantization,
        }
        return [line for attack in self.settings.attacks if attack in every for line in every[attack]()]

    def _extraction(self) -> list[Line]:
        shares = self.values("extraction", lambda point: np.array([point["shares"][name][-1] for name in (OUTPUT, *READ)]))
        measure = f"share of the secret tokens among {max(self.settings.budgets)} candidates"
        return [
            Line(
                name,
                heading,
                measure,
                {arm: value[0] for arm, value in shares.items()},
                {arm: value[1 + i] for arm, value in shares.items()},
            )
            for i, (name, heading) in enumerate(READ.items())
        ]

    def _prompts(self) -> list[Line]:
        lines = []
        for key, measure in (("recall", "ROUGE-L recall of the greedy answer"), ("probability", "probability of the true answer")):
            found = self.values("prompts", lambda point, key=key: np.array(point[key]))
            direct, best, mean = (
                {arm: reduce(value) for arm, value in found.items()}
                for reduce in (lambda v: v[0], lambda v: v.max(0), lambda v: v.mean(0))
            )
            also = {"mean over prompts": mean}
            lines.append(Line(f"prompts_{key}", f"Other prompts: {measure.split(' of ')[0]}", measure, direct, best, also=also))
        return lines

    def _relearning(self) -> list[Line]:
        steps = np.array(next(iter(self.found["relearning"].values()))["steps"], dtype=np.float64)
        lines = []
        for kind, heading in LEARNED.items():
            likely = self.values("relearning", lambda point, kind=kind: np.exp(-np.array(point["nll"][kind])))
            area = {arm: (np.trapezoid(p, steps, axis=1) / steps[-1]).mean(0) for arm, p in likely.items()}
            before, by_seed = ({arm: p[:, at] for arm, p in likely.items()} for at in (0, -1))
            lines.append(
                Line(
                    f"relearning_{kind}",
                    heading,
                    "probability of the held-out true answers",
                    {arm: p.mean(0) for arm, p in before.items()},
                    {arm: p.mean(0) for arm, p in by_seed.items()},
                    by_seed,
                    {"area, less retrained": {arm: a - area[RETRAINED] for arm, a in area.items()}},
                )
            )
        return lines

    def _quantization(self) -> list[Line]:
        lines = []
        for bits in map(str, self.settings.bits):
            found = self.values(
                "quantization",
                lambda point, bits=bits: [
                    np.array(point["probability"][w][s]) for s in ("forget", "retain") for w in ("before", bits)
                ],
            )
            before, after, kept, left = ({arm: value[i] for arm, value in found.items()} for i in range(4))
            also = {"retain rows before": kept, "retain rows after": left}
            measure = "probability of the true answers"
            lines.append(Line(f"quantization_{bits}", f"Weights of {bits} bits", measure, before, after, also=also))
        return lines

    def values(self, attack: str, read: Any) -> dict[str, Any]:
        """What `read` makes of each model's point of an attack."""
        return {name: read(self.found[attack][name]) for name in self.names}

    def frame(self, run: str) -> "pd.DataFrame":
        """Every number as a line: run, arm, method, mask, seed, metric, split, value, low, high, n, unit."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for line in self.lines:
            for arm in self.arms:
                method = "" if arm.delta is None else arm.delta.provenance.method
                about = {"run": run, "arm": arm.name, "method": method, "mask": "", "unit": line.measure}
                found = {
                    "before": mean_estimate(line.before[arm.name]),
                    "after": mean_estimate(line.after[arm.name]),
                    "recovered": line.recovered(arm.name),
                    "beyond_retrained": line.beyond(arm.name).difference,
                } | {name: mean_estimate(values[arm.name]) for name, values in line.also.items()}
                for name, one in found.items():
                    metric = f"{line.key}_{name.replace(',', '').replace(' ', '_')}"
                    split = "retain" if name.startswith("retain") else "forget"
                    unit = {"unit": "share"} if name == "recovered" else {}
                    rows.append(about | {"seed": self.settings.seed, "metric": metric, "split": split, **one._asdict()} | unit)
                by_seed = line.by_seed.get(arm.name, np.empty((0, 1)))
                rows += [
                    about
                    | {"seed": seed, "metric": f"{line.key}_after_of_seed", "split": "forget", **mean_estimate(values)._asdict()}
                    for seed, values in zip(self.settings.relearn_seeds, by_seed, strict=False)
                ]
        first = ["run", "arm", "method", "mask", "seed", "metric", "split", "value", "low", "high", "n", "unit"]
        return pd.DataFrame(rows, columns=first)
