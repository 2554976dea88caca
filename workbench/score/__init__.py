"""Numbers about one example or one preference pair, and where a pair's training would move probability."""

from workbench.score.ches import ches
from workbench.score.mass_shift import MassShift, mass_shift
from workbench.score.pair_scores import Displacement, PairScores
from workbench.score.rows import el2n, grad_norm, length, loss

__all__ = ["Displacement", "MassShift", "PairScores", "ches", "el2n", "grad_norm", "length", "loss", "mass_shift"]
