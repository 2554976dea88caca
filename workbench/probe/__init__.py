"""What is represented, and where: linear probes of a behavior at every layer, with their controls -> Direction.

And what the residual stream would say at every layer: the logit lens, tuned lens and patchscopes -> tables of tokens.
"""

from workbench.probe.behavior import fit
from workbench.probe.concept import Concepts, find_concept
from workbench.probe.fitters import LinearProbe, lda, logistic, mean_difference, ridge
from workbench.probe.joint import joint_gap
from workbench.probe.lens import logit_lens
from workbench.probe.lens_table import LensTable
from workbench.probe.patchscope import Readout, patchscope
from workbench.probe.softmax_head import load_softmax_head
from workbench.probe.sweep import At, ProbeSweep
from workbench.probe.translators import TunedLens
from workbench.probe.tuned_lens import tuned_lens
from workbench.probe.value_vectors import ValueVectors, value_vectors

__all__ = [
    "At",
    "Concepts",
    "LensTable",
    "LinearProbe",
    "ProbeSweep",
    "Readout",
    "TunedLens",
    "ValueVectors",
    "find_concept",
    "fit",
    "joint_gap",
    "lda",
    "load_softmax_head",
    "logistic",
    "logit_lens",
    "mean_difference",
    "patchscope",
    "ridge",
    "tuned_lens",
    "value_vectors",
]
