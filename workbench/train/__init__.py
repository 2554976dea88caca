"""The one optimization loop; see `loop.fit`."""

from workbench.train.loop import Audit, Check, Trained, fit

__all__ = ["Audit", "Check", "Trained", "fit"]
