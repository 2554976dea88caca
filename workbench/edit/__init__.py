"""Change weights without a training loop: each method computes a Delta, `applied` shows what it does, undo is exact."""

from workbench.core.delta import applied, apply, undo
from workbench.edit.controls import Edited, with_controls
from workbench.edit.dampen import dampen
from workbench.edit.heads import ablate_heads
from workbench.edit.layers import ablate_layers
from workbench.edit.matched import matched_random
from workbench.edit.neurons import ablate_neurons
from workbench.edit.orthogonalize import orthogonalize
from workbench.edit.quantize import quantize
from workbench.edit.size import Size, size
from workbench.edit.steer import steer
from workbench.edit.surgery import surgery
from workbench.edit.value_vectors import ablate_value_vectors

__all__ = [
    "Edited",
    "Size",
    "ablate_heads",
    "ablate_layers",
    "ablate_neurons",
    "ablate_value_vectors",
    "applied",
    "apply",
    "dampen",
    "matched_random",
    "orthogonalize",
    "quantize",
    "size",
    "steer",
    "surgery",
    "undo",
    "with_controls",
]
