"""One forward pass, one token table, any number of metrics, each with its interval."""

from workbench.evaluate.answers import Answers
from workbench.evaluate.ask import ask
from workbench.evaluate.concept_vectors import behavioral, concept_vectors, intrinsic, written
from workbench.evaluate.logs import rescore
from workbench.evaluate.suites import read, suite, tofu
from workbench.evaluate.table import TokenTable
from workbench.evaluate.tokens import tokens

__all__ = [
    "Answers",
    "TokenTable",
    "ask",
    "behavioral",
    "concept_vectors",
    "intrinsic",
    "read",
    "rescore",
    "suite",
    "tofu",
    "tokens",
    "written",
]
