"""The one optimization loop; see `loop.fit`."""

from workbench.train.loop import Audit, Check, Trained, fit
from workbench.train.optimizers import Checkpoint, Moments
from workbench.train.task import AnswerTask, Task

__all__ = ["AnswerTask", "Audit", "Check", "Checkpoint", "Moments", "Task", "Trained", "fit"]
