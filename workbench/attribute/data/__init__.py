"""Which training rows: the influence of every training row on every query, and the ways between rows and weights.

Methods are `@influence` functions, (model, query, train) -> Influence, higher = training on the row lowers the query's loss. Beside
them: which rows an edit moves, which weights a row pulls on, and which set of rows is hardest to forget.
"""

from workbench.attribute.data.edits import edit_to_data
from workbench.attribute.data.ekfac import ekfac
from workbench.attribute.data.hard_to_forget import HardSet, hard_to_forget
from workbench.attribute.data.similarity import gradient_similarity
from workbench.attribute.data.text_match import random, text_match
from workbench.attribute.data.weights import Pull, data_to_weights

__all__ = [
    "HardSet",
    "Pull",
    "data_to_weights",
    "edit_to_data",
    "ekfac",
    "gradient_similarity",
    "hard_to_forget",
    "random",
    "text_match",
]
