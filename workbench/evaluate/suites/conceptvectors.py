"""ConceptVectors' protocol as a suite: an edited model against the untouched one."""

from collections.abc import Mapping, Sequence

from workbench.core.errors import InputError
from workbench.core.measurements import Measurements
from workbench.evaluate.ask import NEW_TOKENS
from workbench.evaluate.concept_vectors import TOP, concept_vectors
from workbench.evaluate.table import Table
from workbench.evaluate.tokens import BATCH_TOKENS
from workbench.load.concepts import Concept
from workbench.load.models import Model


def run_conceptvectors(
    model: Model,
    data: Concept | Sequence[Concept],
    *,
    reference: Model | Mapping[str, Table] | None = None,
    k: int = TOP,
    norm: str = "raw",
    generate: int = NEW_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
    show: bool = False,
) -> Measurements:
    """`concept_vectors` of an edited model.

    Args:
        model: edited.   data: the concepts the edit is meant to remove.
        reference: the untouched model, which all numbers compare with.   k, norm: see `written`.
        generate: new tokens of an answer.
    Raises: InputError without an untouched model; as `concept_vectors`.
    """
    if not isinstance(reference, Model):
        raise InputError(
            "conceptvectors: needs the untouched model, which vectors and answers are compared with; pass it as reference=, or "
            "call evaluate.concept_vectors(untouched, delta, concepts)."
        )
    return concept_vectors(
        reference, model, data, k=k, norm=norm, max_new_tokens=generate, batch_tokens=batch_tokens, seed=seed, show=show
    )
