"""Which weights carry a behavior: one function a method, (model, forget, retain) -> Scores, higher = choose first.

And which heads, neurons and residual sites: functions of contrasting prompts -> Components; and, in `data`, which training rows.
"""

from workbench.attribute import data
from workbench.attribute.contrast_runs import answer_difference
from workbench.attribute.controls import magnitude, random
from workbench.attribute.cosine import forget_retain_cosine
from workbench.attribute.direct_logits import direct_logit_attribution
from workbench.attribute.first_order import saliency, snip
from workbench.attribute.fisher import fisher, fisher_ratio
from workbench.attribute.gather import gather
from workbench.attribute.integrated import integrated_gradients
from workbench.attribute.needles import Needle, needles
from workbench.attribute.patching import activation_patching, attribution_patching
from workbench.attribute.retrieval import retrieval_heads
from workbench.attribute.several import several
from workbench.attribute.units import LocatedUnits, structured, unit_scores, units_mask
from workbench.attribute.wagle import wagle
from workbench.attribute.wanda import wanda

__all__ = [
    "LocatedUnits",
    "Needle",
    "activation_patching",
    "answer_difference",
    "attribution_patching",
    "data",
    "direct_logit_attribution",
    "fisher",
    "fisher_ratio",
    "forget_retain_cosine",
    "gather",
    "integrated_gradients",
    "magnitude",
    "needles",
    "random",
    "retrieval_heads",
    "saliency",
    "several",
    "snip",
    "structured",
    "unit_scores",
    "units_mask",
    "wagle",
    "wanda",
]
