"""Unlearn, or tune to preferences, by training: objectives (one loss an example each), `run` and `prefer`, on the one loop."""

from workbench.unlearn.ascent import gradient_ascent, gradient_difference
from workbench.unlearn.npo import npo, simnpo
from workbench.unlearn.prefer import prefer
from workbench.unlearn.preference import dpo, dpo_sft, ipo
from workbench.unlearn.run import Unlearned, run

__all__ = ["Unlearned", "dpo", "dpo_sft", "gradient_ascent", "gradient_difference", "ipo", "npo", "prefer", "run", "simnpo"]
