"""Unlearn by training: objectives (one loss a forget example each) and `run`, on the one loop."""

from workbench.unlearn.ascent import gradient_ascent, gradient_difference
from workbench.unlearn.npo import npo, simnpo
from workbench.unlearn.run import Unlearned, run

__all__ = ["Unlearned", "gradient_ascent", "gradient_difference", "npo", "run", "simnpo"]
