"""One forward pass, one token table, any number of metrics, each with its interval."""

from workbench.evaluate.answers import Answers
from workbench.evaluate.ask import ask
from workbench.evaluate.attacks import extraction, in_context, prompting, relearning, rephrased, worded
from workbench.evaluate.cka import Cka, cka, linear_cka
from workbench.evaluate.concept_vectors import behavioral, concept_vectors, intrinsic, written
from workbench.evaluate.depth import unlearning_depth
from workbench.evaluate.depth_record import Depth
from workbench.evaluate.entity_spans import Entities, Entity, entities
from workbench.evaluate.gradient_norm import gradient_norm
from workbench.evaluate.leak import privleak, privleak_estimate, s_mia
from workbench.evaluate.lens_recovery import LensRecovery, lens_recovery
from workbench.evaluate.lm_eval import lm_eval
from workbench.evaluate.logs import rescore
from workbench.evaluate.membership import Membership, membership, membership_of, memberships
from workbench.evaluate.probe_recovery import ProbeRecovery, probe_recovery
from workbench.evaluate.suites import muse, read, read_muse, suite, tofu
from workbench.evaluate.table import TokenTable
from workbench.evaluate.tokens import tokens

__all__ = [
    "Answers",
    "Cka",
    "Depth",
    "Entities",
    "Entity",
    "LensRecovery",
    "Membership",
    "ProbeRecovery",
    "TokenTable",
    "ask",
    "behavioral",
    "cka",
    "concept_vectors",
    "entities",
    "extraction",
    "gradient_norm",
    "in_context",
    "intrinsic",
    "lens_recovery",
    "linear_cka",
    "lm_eval",
    "membership",
    "membership_of",
    "memberships",
    "muse",
    "privleak",
    "privleak_estimate",
    "probe_recovery",
    "prompting",
    "read",
    "read_muse",
    "relearning",
    "rephrased",
    "rescore",
    "s_mia",
    "suite",
    "tofu",
    "tokens",
    "unlearning_depth",
    "worded",
    "written",
]
