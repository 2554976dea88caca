"""Named sets of rows and metrics that others publish, with an interval beside every number."""

from collections.abc import Callable, Mapping
from typing import Any

from workbench.core.errors import unknown
from workbench.core.measurements import Measurements
from workbench.core.registry import Member
from workbench.evaluate.lm_eval import lm_eval
from workbench.evaluate.suites.conceptvectors import run_conceptvectors
from workbench.evaluate.suites.multiple_choice import run_multiple_choice
from workbench.evaluate.suites.muse import muse, read_muse, run_muse
from workbench.evaluate.suites.tofu import SPLITS, check_data, read, run_tofu, tofu
from workbench.evaluate.table import Table
from workbench.load.models import Model

SUITES = ("tofu",)
"""Suites an arm of a study can be measured with: those whose numbers come from the tables of `read`."""

RUNS: dict[str, Callable[..., Measurements]] = {
    "tofu": run_tofu,
    "muse": run_muse,
    "multiple_choice": run_multiple_choice,
    "conceptvectors": run_conceptvectors,
    "lm_eval": lm_eval,
}
"""Every suite by name: (model, data, *, options) -> Measurements."""

__all__ = ["RUNS", "SPLITS", "SUITES", "check_data", "muse", "read", "read_muse", "suite", "tofu"]


def suite(
    name: str,
    model: Model,
    *,
    data: Any,
    reference: Model | Mapping[str, Table] | None = None,
    options: Mapping[str, Any] | None = None,
    generate: int | None = None,
    batch_tokens: int | None = None,
    seed: int = 0,
    show: bool = False,
) -> Measurements:
    """Run a published suite on a model.

    Args:
        name: "tofu", "muse", "multiple_choice", "conceptvectors" or "lm_eval".
        data: what the suite asks; see `run_tofu` and its like in `suites`, which also list the options.
        reference: a model retrained without the forget rows, or what it says about them; for conceptvectors the untouched model.
        options: of the suite, such as {"form": "letters"}.
        generate, batch_tokens: two of these, for suites that have them; None for the suite's own.   seed: of the bootstrap.
        show: draw a progress bar.
    Raises: UnknownNameError for another suite, or an option it does not have; as the suite.
    """
    if name not in RUNS:
        raise unknown("suite", name, RUNS)
    member = Member(name, RUNS[name])
    common = {"reference": reference, "generate": generate, "batch_tokens": batch_tokens}
    given = dict(options or {}) | {key: value for key, value in common.items() if value is not None}
    member.check_options(given)
    rest = {key: value for key, value in (("seed", seed), ("show", show)) if key in member.options}
    return member.function(model, data, **rest | given)
