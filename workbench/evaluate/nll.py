"""How improbable an answer is, per token: the loss, as a score of membership."""

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError, InputError, unknown
from workbench.core.registry import metric
from workbench.evaluate.answers import Answers
from workbench.evaluate.spans import RESPONSE, spans
from workbench.evaluate.table import Table


@metric(unit="nats/token", better="reference")
def nll(table: Table, reference: Table | None = None, *, variant: str = RESPONSE, end: bool = True) -> Float[np.ndarray, "example"]:
    """Mean negative log-likelihood of each answer; as a score of membership, higher = less of a member.

    -(1/|y|) * sum_t ln p(y_t | x, y_<t), float64. Each answer counts once, however long; the `loss` of a padded batch weighs long
    answers more. Known as the LOSS attack.

    Args:
        table: a token table, or Answers, whose means hold the end-of-text token.   reference: not used.
        variant: which answer.   end: whether the end-of-text token counts; False needs a token table.
    Returns: [example] >= 0, nats per token; ln |V| for a uniform model.
    Raises: InputError for `end=False` of Answers; UnknownNameError for a variant that is not there; DataError naming a row
        without this answer; else as `spans`.
    Reference: Yeom et al. 2018, arXiv:1709.01604.
    """
    return mean_nll("nll", table, variant=variant, end=end)


def mean_nll(name: str, table: Table, *, variant: str, end: bool) -> Float[np.ndarray, "example"]:
    """`nll` in the name of another metric, for its errors."""
    if isinstance(table, Answers):
        return _stored(name, table, variant=variant, end=end)
    read = spans(name, table, variant=variant, end=end)
    return -read.average(read.logprob)


def _stored(name: str, table: Answers, *, variant: str, end: bool) -> Float[np.ndarray, "example"]:
    if not end:
        raise InputError(
            f"{name}: end=False needs the token table of {table.name!r}; the means in Answers hold the end-of-text token. "
            "Read the rows with `evaluate.tokens`."
        )
    columns = {RESPONSE: table.response, "paraphrase": table.paraphrase}
    columns |= {f"perturbed.{k}": table.perturbed[:, k] for k in range(table.perturbed.shape[1])}
    if variant not in columns:
        raise unknown("variant", variant, columns)
    values = columns[variant]
    absent = np.flatnonzero(np.isnan(values))
    if len(absent):
        raise DataError(
            f"{name}: the {variant} of {len(absent)} of {len(table)} rows of {table.name!r} has no NLL, first "
            f"{table.ids[int(absent[0])]!r}. Leave those rows out."
        )
    return values
