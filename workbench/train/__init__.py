"""The one optimization loop; see `loop.fit`."""

from workbench.train.adapter_folder import export_adapter
from workbench.train.check import Check
from workbench.train.loop import fit
from workbench.train.lora import Lora
from workbench.train.optimizers import Checkpoint, Moments
from workbench.train.result import Audit, Trained
from workbench.train.task import AnswerTask, Named, Observing, Sharp, Stepping, Task

__all__ = [
    "AnswerTask",
    "Audit",
    "Check",
    "Checkpoint",
    "Lora",
    "Moments",
    "Named",
    "Observing",
    "Sharp",
    "Stepping",
    "Task",
    "Trained",
    "export_adapter",
    "fit",
]
