"""Whether what a model says is language at all."""

import numpy as np
from jaxtyping import Float

from workbench.core.errors import InputError
from workbench.core.registry import metric
from workbench.evaluate.fluency import fluency
from workbench.evaluate.table import Table, answers


@metric(unit="fluency", better="higher")
def gibberish(table: Table, reference: Table | None = None) -> Float[np.ndarray, "example"]:
    """Fluency of each generated text: 1 = reads like English sentences, 0 = gibberish.

    The product of three terms of `evaluate.fluency`: letters form words, words form phrases, the text does not go round in circles.
    Each is 1 from where 95 % of real sentences lie on, so texts are not ranked above that. It does not ask whether an answer is
    true, or an answer at all: "I do not know." is fluent. An empty text is 0, a measured 0; `empty_answer` beside it tells silence
    from gibberish. English only.

    OpenUnlearning's number of this name is the probability of "clean" that a fine-tuned classifier (autonlp-Gibberish-Detector)
    gives to the first 32 tokens: on the same scale, and another number.

    Args: table: a token table or Answers with generated texts.   reference: not used.
    Returns: [example] in [0, 1].
    Raises: InputError naming a row without a generated text.
    """
    return fluency(_texts("gibberish", table)).score


@metric(unit="share", better="lower")
def empty_answer(table: Table, reference: Table | None = None) -> Float[np.ndarray, "example"]:
    """Whether the model said nothing: 1 where the generated text is empty or white space, else 0.

    Args, Raises: as `gibberish`.
    """
    return np.array([float(not text.strip()) for text in _texts("empty_answer", table)])


def _texts(name: str, table: Table) -> list[str]:
    given = answers(table)
    made = [text for text in given.generated if text is not None]
    if len(made) < len(given):
        row = given.ids[given.generated.index(None)]
        raise InputError(
            f"{name}: {given.name!r} has no generated text for row {row!r}. Read the set with generate=200 (the most new tokens of "
            "an answer), or use a log with texts."
        )
    return made
