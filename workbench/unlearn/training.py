"""What `run` and `prefer` share: the options of the training, as they are passed on and recorded, and what comes out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from html import escape
from typing import Any

from workbench.core.delta import Delta
from workbench.core.errors import InputError, unknown
from workbench.core.mask import Mask
from workbench.core.records import Provenance
from workbench.load.models import Model
from workbench.train.check import Check
from workbench.train.loop import Audit, Trained, fit
from workbench.train.lora import Lora
from workbench.train.settings import Settings
from workbench.train.task import Task
from workbench.train.trainable import check_apart


@dataclass(frozen=True, eq=False)
class Unlearned:
    """delta: what to add to the weights.   history: one dict a step and a check.   audit: what the run really did.

    layers: per layer ||Delta||, ||W|| and their ratio.
    """

    delta: Delta
    history: list[dict[str, float]]
    audit: Audit
    layers: list[dict[str, Any]]

    @property
    def moved(self) -> float:
        """Share of all the model's weights whose bits, in its own dtype, the run changed."""
        return self.audit.moved

    def _repr_html_(self) -> str:
        shown = [(row["layer"], "not defined" if row["ratio"] is None else f"{row['ratio']:.3g}") for row in self.layers]
        rows = "".join(f"<tr><td>{escape(layer)}</td><td>{ratio}</td></tr>" for layer, ratio in shown)
        head = f"<p>{escape(repr(self.delta))}: {self.moved:.2%} of all weights moved in {self.audit.steps} steps"
        stopped = f"; {escape(self.audit.stopped)}" if self.audit.stopped else ""
        return f"{head}{stopped}</p><table><tr><th>layer</th><th>||Delta||/||W||</th></tr>{rows}</table>"


@dataclass(frozen=True)
class Training:
    """Options that go to `train.fit` as they are, and into the record of what was trained."""

    epochs: int
    batch_size: int
    micro_batch: int | None
    lr: float
    schedule: str
    warmup: float
    weight_decay: float
    clip_norm: float | None
    sharpness: float
    lora: Lora | None
    mask: Mask | None
    seed: int
    show: bool

    def __post_init__(self) -> None:
        """Refuse here what `train.fit` would refuse after passes of the reference."""
        check_apart(self.mask, self.lora)
        first = (self.epochs, self.batch_size, self.micro_batch, self.lr, self.schedule, self.warmup, self.weight_decay)
        Settings(*first, (0.9, 0.999), self.clip_norm, "adamw", self.sharpness, self.seed)

    def recorded(self) -> dict[str, Any]:
        """Those that change the numbers, ready for JSON; the mask as its provenance."""
        plain = ("epochs", "batch_size", "lr", "schedule", "warmup", "weight_decay", "clip_norm", "sharpness")
        return {name: getattr(self, name) for name in plain} | {
            "lora": None if self.lora is None else asdict(self.lora),
            "mask": None if self.mask is None else self.mask.provenance.as_dict(),
        }

    def fit(self, model: Model, task: Task, about: Provenance, *, check: Check | None = None) -> Trained:
        """Train on the one loop."""
        return fit(
            model,
            task,
            about,
            mask=self.mask,
            lora=self.lora,
            epochs=self.epochs,
            batch_size=self.batch_size,
            micro_batch=self.micro_batch,
            lr=self.lr,
            schedule=self.schedule,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            sharpness=self.sharpness,
            seed=self.seed,
            check=check,
            show=self.show,
        )


def read_lora(lora: Lora | Mapping[str, Any] | None) -> Lora | None:
    """Low-rank adapters as they are, or from a mapping such as {"rank": 8, "alpha": 16} in a file.

    Raises: UnknownNameError for a key they do not have; InputError for a value that cannot be.
    """
    if lora is None or isinstance(lora, Lora):
        return lora
    if not isinstance(lora, Mapping):
        raise InputError(f"lora is {lora!r}, expected a `Lora`, a mapping such as {{'rank': 8, 'alpha': 16}}, or None.")
    known = [one.name for one in fields(Lora)]
    for key in lora:
        if key not in known:
            raise unknown("option of lora", key, known)
    listed = lora.get("targets")
    return Lora(**{**lora, "targets": tuple(listed) if isinstance(listed, list) else listed})
