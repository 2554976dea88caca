"""The budget of a run: how much the NLL may rise on rows that are to be kept."""

import math
from collections.abc import Sequence

from workbench.core.errors import DataError, InputError, NumericsError
from workbench.core.records import Examples
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.train.check import Check
from workbench.unlearn.pairs import set_nll


def check_budget(forget: Examples, retain: Examples, budget: float | None, rows: Examples | None, every: int | None) -> None:
    """InputError or DataError for a budget that cannot be kept, or rows that would measure it wrongly."""
    if budget is None:
        for name, value in (("budget_rows", rows), ("budget_every", every)):
            if value is not None:
                raise InputError(f"unlearn: {name} is given without retain_budget, so there is no budget to look at. Give both.")
        return
    if not (math.isfinite(budget) and budget >= 0):
        raise InputError(f"unlearn: retain_budget is {budget}, expected a rise, 0 or more, of the mean NLL in nats per token.")
    if every is not None and every < 1:
        raise InputError(f"unlearn: budget_every is {every}, expected a number of steps, at least 1.")
    if rows is None:
        return
    found = {(row.prompt, row.response): row.id for row in rows}
    for name, others in (("forget", forget), ("retain", retain)):
        shared = [found[row.prompt, row.response] for row in others if (row.prompt, row.response) in found]
        if shared:
            raise DataError(
                f"unlearn: budget_rows ({rows.name}) and {name} ({others.name}) share {len(shared)} rows, such as {shared[0]!r}. "
                "Rows that are trained on do not measure what is kept; take them out of one of the sets."
            )


def budget_check(model: Model, rows: Examples, budget: float | None, every: int | None) -> Check | None:
    """Stop when the mean NLL of `rows` has risen by more than `budget`; nothing without one."""
    if budget is None:
        return None
    coded = encode_all(model, rows)
    limit = set_nll(model, coded) + budget
    return Check(lambda: nll_or_infinite(model, coded), limit, "retain_nll", every, partial=every is not None)


def nll_or_infinite(model: Model, rows: Sequence[Encoded]) -> float:
    """Mean NLL of rows for a comparison with a budget: of weights that give NaN or infinity, infinite, which no budget allows."""
    try:
        return set_nll(model, rows)
    except NumericsError:
        return math.inf
