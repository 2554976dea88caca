"""A run folder, read whole and checked, as the report's one input.

    config.yaml  env.json  measurements.parquet  arms/<arm>/arm.json  arms/<arm>/samples.json

Nothing is computed here beyond putting the arms in order: the untouched model, the retrained reference, the second
retrained model, then the methods as the study lists them.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from workbench.core.errors import InputError, unknown
from workbench.core.measurements import Measurement, Measurements
from workbench.core.store import existing, read_json

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("untouched", "reference", "band", "method")
COLUMNS = ("arm", "seed", "metric", "split", "value", "low", "high", "n", "unit", "better", "note")
REQUIRED = ("arm", "title", "kind", "method", "mask", "options", "seconds", "audit", "layers", "order")

Key = tuple[str, str]
"""A metric and the split it was measured on."""


@dataclass(frozen=True)
class Arm:
    """One model of the run: where it comes from, what was done to it, and what was measured.

    role: one of ROLES.   kind: "untouched", "model", "unlearn" or "edit".
    audit: what the training loop counted, of which an edit has only `moved` and `stopped`; None if nothing was changed.
    layers: dicts of layer, delta_norm, weight_norm, ratio (None where the weights were zero); empty if no weight was changed.
    samples: dicts of id, split, prompt, truth, answer; None if no samples.json was written.
    """

    name: str
    title: str
    role: str
    kind: str
    method: str
    mask: str
    options: dict[str, Any]
    seconds: float
    audit: dict[str, Any] | None
    layers: list[dict[str, Any]]
    order: int
    measurements: Measurements
    samples: list[dict[str, str]] | None


@dataclass(frozen=True, eq=False)
class Run:
    """What `workbench run` wrote.

    name: the study's, or the folder's.   text: config.yaml as it stands.   arms: in the order of the page.
    metrics: everything measured, with unit and direction, as the first arm that has it says it.
    """

    path: Path
    name: str
    config: dict[str, Any]
    text: str
    env: dict[str, str]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    metrics: dict[Key, Measurement] = field(default_factory=dict)

    def role(self, role: str) -> Arm | None:
        """The arm with a role that only one arm can have."""
        return next((arm for arm in self.arms if arm.role == role), None)

    @property
    def methods(self) -> tuple[Arm, ...]:
        """The arms that were tried, without the models they are compared with."""
        return tuple(arm for arm in self.arms if arm.role == "method")

    def band(self, key: Key) -> tuple[float, float] | None:
        """The retrain-retrain band of a metric: the reference's value, plus and minus its distance to the second
        retrained model's. None if one of the two was not measured."""
        reference, second = self.role("reference"), self.role("band")
        if reference is None or second is None or key not in reference.measurements or key not in second.measurements:
            return None
        center = reference.measurements[key].value
        distance = abs(second.measurements[key].value - center)
        return (center - distance, center + distance) if distance == distance else None

    def inside_band(self, arm: Arm, key: Key) -> bool:
        """Whether an arm is as close to the reference as the second retrained model is."""
        band = self.band(key)
        return band is not None and key in arm.measurements and band[0] <= arm.measurements[key].value <= band[1]


def read_run(run: str | Path) -> Run:
    """Read a run folder.

    Raises: InputError naming the file if one is missing or broken, or if two files disagree.
    """
    path = existing(run)
    if (path / "verdict.parquet").exists():
        raise InputError(f"{path}: a run of `workbench judge`, which has sets instead of arms; see `workbench report {path}`.")
    text = _part(path, "config.yaml").read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path / 'config.yaml'}: not valid YAML ({error}).") from error
    if not isinstance(config, dict):
        raise InputError(f"{path / 'config.yaml'}: holds a {type(config).__name__}, expected the keys of a study.")
    frame = _measurements(_part(path, "measurements.parquet"))
    arms = _arms(path, frame)
    return Run(
        path=path,
        name=str(config.get("name") or path.resolve().name),
        config=config,
        text=text,
        env={str(k): str(v) for k, v in read_json(_part(path, "env.json")).items()},
        arms=arms,
        seeds=tuple(sorted({int(seed) for seed in frame["seed"].dropna()})),
        metrics=_metrics(arms),
    )


def _metrics(arms: tuple[Arm, ...]) -> dict[Key, Measurement]:
    """Everything that was measured, each as the first arm that has it says it."""
    found: dict[Key, Measurement] = {}
    for arm in arms:
        for row in arm.measurements:
            found.setdefault((row.metric, row.split), row)
    return found


def _part(path: Path, name: str) -> Path:
    if not (path / name).exists():
        raise InputError(f"{path}: has no {name}. Is it a folder written by `workbench run`, and did that run finish?")
    return path / name


def _measurements(path: Path) -> "pd.DataFrame":
    """The table, with the columns and the one row per (arm, metric, split) that the report relies on."""
    import pandas as pd
    from pyarrow import ArrowInvalid

    try:
        frame = pd.read_parquet(path)
    except ArrowInvalid as error:
        raise InputError(f"{path}: not a parquet file ({error}).") from error
    absent = [column for column in COLUMNS if column not in frame.columns]
    if absent:
        raise InputError(f"{path}: lacks the columns {', '.join(absent)}; was it written by an older workbench?")
    for column in ("unit", "better", "note"):
        frame[column] = frame[column].fillna("").astype(str)
    frame = frame.astype({"value": float, "low": float, "high": float, "n": int})
    twice = frame[frame.duplicated(["arm", "metric", "split"])]
    if len(twice):
        row = twice.iloc[0]
        raise InputError(f"{path}: {row['arm']} has two rows for {row['metric']}/{row['split']}; give each seed its own arm.")
    return frame


def _arms(path: Path, frame: "pd.DataFrame") -> tuple[Arm, ...]:
    folders = [f for f in sorted(_part(path, "arms").iterdir()) if f.is_dir() and not f.name.startswith(".")]
    arms = [_arm(folder, frame) for folder in folders]
    if not arms:
        raise InputError(f"{path / 'arms'}: is empty; the run has nothing to report yet.")
    strangers = sorted(set(frame["arm"]) - {arm.name for arm in arms})
    if strangers:
        raise InputError(f"{path}: measurements.parquet has the arms {', '.join(strangers)}, arms/ does not. Run the study again.")
    for role in ROLES[:-1]:
        same = [arm.name for arm in arms if arm.role == role]
        if len(same) > 1:
            raise InputError(f"{path}: the arms {', '.join(same)} all have the role {role!r}; only one can.")
    return tuple(sorted(arms, key=lambda arm: (ROLES.index(arm.role), arm.order, arm.name)))


def _arm(folder: Path, frame: "pd.DataFrame") -> Arm:
    about = read_json(_part(folder, "arm.json"))
    absent = [key for key in REQUIRED if key not in about]
    if absent:
        raise InputError(f"{folder / 'arm.json'}: lacks {', '.join(absent)}; was it written by another version of workbench?")
    role = about.get("role") or ("untouched" if about["kind"] == "untouched" else "method")
    if role not in ROLES:
        raise unknown(f"role in {folder / 'arm.json'}", role, ROLES)
    rows = frame.loc[frame["arm"] == about["arm"], [f.name for f in fields(Measurement)]].to_dict("records")
    samples = folder / "samples.json"
    return Arm(
        name=about["arm"],
        title=about["title"] or about["arm"],
        role=role,
        kind=about["kind"],
        method=about["method"] or "",
        mask=about["mask"] or "",
        options=about["options"] or {},
        seconds=float(about["seconds"]),
        audit=about["audit"],
        layers=about["layers"] or [],
        order=int(about["order"]),
        measurements=Measurements(Measurement(**{str(k): v for k, v in row.items()}) for row in rows),
        samples=read_json(samples) if samples.exists() else None,
    )
