"""Attacks on a model that is said to have forgotten: does the knowledge come back when somebody tries?

    extraction     is the answer among a few candidates read from the hidden states
    prompting      other words, worked examples and other beginnings in front of the question
    relearning     some training on part of what was forgotten, on retained rows, or on unrelated ones

Every attack measures the model it is given: a Delta is attacked by applying it first. None means anything alone. The same call on a
model that never saw the forget rows says what the attack finds where nothing is left, and the untouched model what there was.
"""

from workbench.evaluate.attacks.extraction import Extraction, extraction
from workbench.evaluate.attacks.prompting import TEMPLATES, Prompting, in_context, prompting, rephrased, worded
from workbench.evaluate.attacks.relearned import Relearning
from workbench.evaluate.attacks.relearning import relearning, text_rows

__all__ = [
    "TEMPLATES",
    "Extraction",
    "Prompting",
    "Relearning",
    "extraction",
    "in_context",
    "prompting",
    "relearning",
    "rephrased",
    "text_rows",
    "worded",
]
