"""Change weights without a training loop: each method computes a Delta, `applied` shows what it does, undo is exact."""

from workbench.core.delta import applied, apply, undo
from workbench.edit.dampen import dampen

__all__ = ["applied", "apply", "dampen", "undo"]
