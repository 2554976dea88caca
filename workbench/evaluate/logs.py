"""TOFU's published evaluation logs, scored again: no model needed.

`eval_log_aggregated.json` of locuslab/tofu holds one section a split; each section holds one dict a quantity, from the row's index
to its value: avg_gt_loss, avg_paraphrased_loss, average_perturb_loss (nats per token, end-of-text included), rougeL_recall,
generated_text ([prompt, generated, truth]). Other fields are not read: the log's own `truth_ratio` is the arithmetic one.
"""

from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError, InputError
from workbench.core.measurements import Measurements
from workbench.core.store import existing, read_json
from workbench.evaluate.answers import Answers
from workbench.evaluate.suites import tofu

SECTIONS = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}


def rescore(logs: str | Path, reference_logs: str | Path | None = None, *, seed: int = 0) -> Measurements:
    """`tofu` of a published log, with forget quality against the log of a retrained model if one is given.

    Args: logs, reference_logs: eval_log_aggregated.json files.   seed: of the bootstrap.
    Raises: InputError for a missing or broken file, DataError for a broken value; both name file, section, field and row.
        DataError also if the two logs hold different forget rows.
    """
    reference = None if reference_logs is None else {"forget": _Section(reference_logs, "forget").answers()}
    return tofu(read_logs(logs), reference, seed=seed)


def read_logs(path: str | Path) -> dict[str, Answers]:
    """The four splits of a log by name; row ids are the log's indices.

    Raises: as `rescore`.
    """
    return {split: _Section(path, split).answers() for split in SECTIONS}


class _Section:
    """One split of a log, checked as it is read; every field must speak of the same rows."""

    def __init__(self, path: str | Path, split: str) -> None:
        if existing(path).is_dir():
            raise InputError(f"{path}: a folder; give the eval_log_aggregated.json in it.")
        log = read_json(path)
        if not isinstance(log, dict) or not isinstance(log.get(SECTIONS[split]), dict):
            has = ", ".join(map(str, log)) if isinstance(log, dict) else f"a JSON {type(log).__name__}"
            raise InputError(
                f"{path}: no section {SECTIONS[split]!r} ({split}); it has {has or 'nothing'}. "
                "Expected TOFU's eval_log_aggregated.json, not the log of one split."
            )
        self.split, self.source, self.fields = split, str(path), log[SECTIONS[split]]
        self.where = f"{path}, section {SECTIONS[split]!r}"
        self.ids = tuple(self.field("avg_gt_loss"))

    def answers(self) -> Answers:
        """The section as the record that the metrics read."""
        with_texts = "generated_text" in self.fields
        texts = self.texts() if with_texts else [(None, None)] * len(self.ids)
        no_recall = with_texts and "rougeL_recall" not in self.fields
        return Answers(
            name=self.split,
            ids=self.ids,
            response=self.numbers("avg_gt_loss"),
            paraphrase=self.numbers("avg_paraphrased_loss"),
            perturbed=self.lists("average_perturb_loss"),
            generated=tuple(generated for generated, _ in texts),
            truth=tuple(truth for _, truth in texts),
            recall=None if no_recall else self.numbers("rougeL_recall"),
            source=self.source,
        )

    def field(self, name: str) -> dict[str, Any]:
        """Values of one field by row."""
        values = self.fields.get(name)
        if not isinstance(values, dict) or not values:
            raise InputError(f"{self.where}: no values under {name!r}; it has {', '.join(map(str, self.fields)) or 'nothing'}.")
        if name != "avg_gt_loss" and values.keys() != set(self.ids):
            odd = sorted(values.keys() ^ set(self.ids))
            raise DataError(f"{self.where}: {name} and avg_gt_loss differ in their rows, first {odd[0]!r}; is the log cut off?")
        return values

    def numbers(self, name: str) -> Float[np.ndarray, "example"]:
        """One number a row."""
        values = self.field(name)
        return np.array([self._number(name, id, values[id]) for id in self.ids])

    def lists(self, name: str) -> Float[np.ndarray, "example option"]:
        """One list of numbers a row, as many in each."""
        values = self.field(name)
        width = len(values[self.ids[0]]) if isinstance(values[self.ids[0]], list) else 0
        for id in self.ids:
            if not isinstance(values[id], list) or len(values[id]) != width or not width:
                raise DataError(f"{self.where}: {name} of row {id!r} is not a list of {width or 'some'} numbers like the others.")
        return np.array([[self._number(name, id, value) for value in values[id]] for id in self.ids])

    def texts(self) -> list[tuple[str, str]]:
        """Generated and true text of each row."""
        values = self.field("generated_text")
        for id in self.ids:
            if not (isinstance(values[id], list) and len(values[id]) == 3 and all(isinstance(t, str) for t in values[id])):
                raise DataError(f"{self.where}: generated_text of row {id!r} is not [prompt, generated, truth].")
        return [(values[id][1], values[id][2]) for id in self.ids]

    def _number(self, name: str, id: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise DataError(f"{self.where}: {name} of row {id!r} is {value!r}, expected a finite number.")
        return float(value)
