"""Unlearn, or tune to preferences, by training: objectives (one loss an example each), `run` and `prefer`, on the one loop."""

from workbench.unlearn.ascent import gradient_ascent, gradient_difference, kl_minimization
from workbench.unlearn.npo import npo, npo_kl, simnpo
from workbench.unlearn.pdu import pdu
from workbench.unlearn.prefer import prefer
from workbench.unlearn.preference import dpo, dpo_sft, ipo
from workbench.unlearn.random_label import random_label
from workbench.unlearn.refusal import idk, refusal_dpo
from workbench.unlearn.refusals import REFUSALS
from workbench.unlearn.rmu import rmu
from workbench.unlearn.run import run
from workbench.unlearn.sharded import Sharded, sharded
from workbench.unlearn.targets import ceu, generic_logits, undial, whos_harry_potter
from workbench.unlearn.task_vector import task_vector
from workbench.unlearn.training import Unlearned
from workbench.unlearn.weighted import satimp, wga

__all__ = [
    "REFUSALS",
    "Sharded",
    "Unlearned",
    "ceu",
    "dpo",
    "dpo_sft",
    "generic_logits",
    "gradient_ascent",
    "gradient_difference",
    "idk",
    "ipo",
    "kl_minimization",
    "npo",
    "npo_kl",
    "pdu",
    "prefer",
    "random_label",
    "refusal_dpo",
    "rmu",
    "run",
    "satimp",
    "sharded",
    "simnpo",
    "task_vector",
    "undial",
    "wga",
    "whos_harry_potter",
]
