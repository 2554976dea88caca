"""Any task of EleutherAI's lm-evaluation-harness, on the model as it stands: with the edits applied to it, and its own tokenizer.

The harness computes; this hands it the model and the options, and puts what it found into Measurements. (OpenUnlearning's options
never reach the harness, and its tokenizer is one that the harness loads by the model's name.)
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from workbench.core.errors import InputError, missing_package, unknown
from workbench.core.measurements import Measurement, Measurements
from workbench.core.numerics import isolated_rng
from workbench.core.statistics import LEVEL, wilson
from workbench.core.store import existing
from workbench.load.models import Model


def lm_eval(
    model: Model,
    tasks: Sequence[str],
    *,
    limit: int | float | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 1,
    include_path: str | Path | None = None,
    apply_chat_template: bool = False,
    bootstrap_iters: int = 2000,
    seed: int = 0,
) -> Measurements:
    """Run tasks of the harness and report every number it finds.

    Args:
        tasks: names, as `lm-eval ls tasks` lists them, or of the task files below `include_path`.
        limit: only so many documents of each task; below 1 a share of them.   num_fewshot: None for each task's own.
        batch_size: rows at once.   include_path: a folder with task files of one's own; their data may be local files.
        apply_chat_template: put each prompt as a user's turn; off, as in most published numbers.
        bootstrap_iters: of metrics that are no means.   seed: of the few-shot examples and the bootstrap.
    Returns: Measurements by the harness' metric names (with the filter where it is not "none") and task as split. Intervals are
        Wilson's for accuracies and exact matches of a task, so a small n is wide also at 0 and at 1, and value -+ 1.96 times the
        harness' standard error for other numbers and for groups of tasks. n: documents, of a group those of all its tasks.
    Raises: MissingPackageError without the package lm-eval; UnknownNameError for a task it does not know; InputError without one.
    """
    if not tasks or isinstance(tasks, str):
        raise InputError(f"lm_eval: tasks is {tasks!r}, expected a list of task names, such as ['wmdp_bio'].")
    with _generators_kept(seed):
        harness, network, manager = _harness()
        known = _tasks(manager, tasks, include_path)
        wrapped = network(pretrained=model.hf, tokenizer=deepcopy(model.tokenizer), batch_size=batch_size)  # it sets a pad token
        found = harness(
            model=wrapped,
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=known,
            apply_chat_template=apply_chat_template,
            bootstrap_iters=bootstrap_iters,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return Measurements(_rows(found))


def _harness() -> tuple[Any, Any, Any]:
    """The harness' functions that are called: simple_evaluate, HFLM, TaskManager."""
    try:
        import lm_eval as harness
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise missing_package("lm-eval", "lm_eval", "lm-eval") from error
    return harness.simple_evaluate, HFLM, TaskManager


def _tasks(manager: Any, tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """The harness' list of tasks; without its own, which take seconds to read, where the folder has all that are asked for."""
    folder = None if include_path is None else str(existing(include_path))
    if folder is not None:
        own = manager(include_path=folder, include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    every = manager(include_path=folder)
    for task in tasks:
        if task not in every.all_tasks:
            near = get_close_matches(task, every.all_tasks, n=8, cutoff=0.3)
            raise unknown("task of lm-evaluation-harness", task, near or ["`lm-eval ls tasks` lists them"])
    return every


@contextmanager
def _generators_kept(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's generators as they were: the harness seeds all three."""
    python, state = random.getstate(), np.random.get_state()
    try:
        with isolated_rng(seed):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(state)


def _rows(found: Mapping[str, Any]) -> Iterator[Measurement]:
    """Every number of every task. The keys are "metric,filter" and "metric_stderr,filter"."""
    groups = found.get("group_subtasks", {})
    for task, values in found["results"].items():
        n = sum(int(found["n-samples"].get(one, {}).get("effective", 0)) for one in _leaves(task, groups))
        for key, value in values.items():
            name, comma, kept = key.partition(",")
            if not comma or name.endswith("_stderr"):
                continue
            share = name.startswith(("acc", "exact_match"))
            error = values.get(f"{name}_stderr,{kept}")
            bounds, note = _bounds(float(value), error, share=share, n=0 if groups.get(task) else n)
            if groups.get(task):
                note = "; ".join(["n: documents of all its tasks", *([note] if note else [])])
            better = {True: "higher", False: "lower"}.get(found["higher_is_better"].get(task, {}).get(name), "")
            full, unit = name if kept == "none" else f"{name},{kept}", "share of documents" if share else "as the harness says"
            yield Measurement(full, task, float(value), *bounds, n, unit, better, note)


def _bounds(value: float, error: object, *, share: bool, n: int) -> tuple[tuple[float, float], str]:
    """The interval of a number, and why there is none. n: documents that a share is of; 0 where its tasks are averaged."""
    if share and n and 0 <= value <= 1:
        found = wilson(value, n)
        return (found.low, found.high), ""
    if not isinstance(error, int | float) or not math.isfinite(error):
        return (math.nan, math.nan), "no interval: the harness gives no standard error"
    if error == 0:
        return (math.nan, math.nan), "no interval: the harness' standard error is 0, which is not certainty"
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    low, high = value - half, value + half
    return (max(low, 0.0), min(high, 1.0)) if share else (low, high), ""


def _leaves(task: str, groups: Mapping[str, Sequence[str]]) -> set[str]:
    """The tasks that a group is of, at any depth; a task itself."""
    below = groups.get(task)
    return {leaf for one in below for leaf in _leaves(one, groups)} if below else {task}
