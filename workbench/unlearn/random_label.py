"""Learning wrong answers: tokens drawn by chance, or the answers of other rows."""

import random
from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import DataError, InputError, TooLongError
from workbench.core.numerics import Forward, mean_nll, permutation
from workbench.core.records import Example, Examples
from workbench.core.registry import objective
from workbench.load.batches import Encoded, encode, encode_all
from workbench.load.models import Model

LABELS = ("tokens", "rows")


@objective(answers="random")
def random_label(
    policy: Forward, reference: Forward | None = None, *, labels: Literal["tokens", "rows"] = "tokens"
) -> Float[Tensor, "batch"]:
    """Random labels: mean NLL of a wrong answer in place of each forget example's own.

    -(1/|y'|) sum_t ln p(y'_t | x, y'_<t) + retain_weight * NLL(retain), with y' from `wrong_answers`.

    Inside the mask of the highest saliency it is SalUn (Fan et al. 2023, arXiv:2310.12508).

    Args:
        policy: forward pass on the forget prompts with wrong answers; logprob [batch pos] in nats, mask [batch pos].
        reference: not used.
        labels: "tokens" for tokens drawn by chance, "rows" for the answer of another forget row.
    Returns: loss of each example, [batch], nats per token, >= 0.
    Raises: InputError for other labels.
    Reference: Golatkar et al. 2020, arXiv:1911.04933; for language models Yao et al. 2024, arXiv:2402.15159. The wrong tokens are
        also what later ones are predicted from, so it is an answer that is learned; code that draws labels alone keeps the true
        answer before each of them, and code that draws anew in every batch teaches a uniform distribution.
    """
    del reference
    if labels not in LABELS:
        raise InputError(f"random_label: labels is {labels!r}, expected 'tokens' or 'rows'.")
    return mean_nll(policy)


def wrong_answers(model: Model, rows: Examples, *, labels: str = "tokens", seed: int = 0) -> list[Encoded]:
    """Every row with a wrong answer, the same in every epoch.

    "tokens": each answer token is replaced by one of the d_vocab tokens, drawn uniformly by the row's id and the seed; the answer
    keeps its length. "rows": each row has the answer of another one: of the next in a round that the seed draws whose answer is
    not the row's own.

    Raises: DataError if rows are asked for and there is only one, or one answer; TooLongError naming the row and the giver of an
        answer that does not fit behind its prompt.
    """
    if labels == "tokens":
        return [_random_tokens(row, model.d_vocab, seed) for row in encode_all(model, rows)]
    if len(rows) < 2:
        raise DataError(f"random_label: labels='rows' needs the answer of another row, but {rows.name} has only one.")
    order = permutation(len(rows), seed)
    place = {i: k for k, i in enumerate(order)}
    return [_answered(model, row, _giver(rows, order[place[i] + 1 :] + order[: place[i]], row)) for i, row in enumerate(rows)]


def _giver(rows: Examples, others: Sequence[int], row: Example) -> Example:
    """The first of the others that answers something else."""
    for i in others:
        if rows[i].response.strip() != row.response.strip():
            return rows[i]
    raise DataError(
        f"random_label: labels='rows' needs another answer for row {row.id!r}, but all {len(rows)} rows of {rows.name} have its "
        "own; use labels='tokens'."
    )


def _answered(model: Model, row: Example, giver: Example) -> Encoded:
    """A row with another one's answer."""
    try:
        return encode(model, row.prompt, giver.response, id=row.id)
    except TooLongError as error:
        raise TooLongError(f"random_label: with the answer of {giver.id!r}, {error}") from error


def _random_tokens(row: Encoded, d_vocab: int, seed: int) -> Encoded:
    draw = random.Random(f"random_label {seed} {row.id}")
    answer: Sequence[int] = [draw.randrange(d_vocab) for _ in row.tokens[row.start :]]
    return Encoded(row.id, [*row.tokens[: row.start], *answer], row.start)
