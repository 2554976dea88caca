"""Which weights carry a behavior: one function a method, (model, forget, retain) -> Scores, higher = choose first."""

from workbench.attribute.controls import magnitude, random
from workbench.attribute.saliency import saliency
from workbench.attribute.wagle import wagle

__all__ = ["magnitude", "random", "saliency", "wagle"]
