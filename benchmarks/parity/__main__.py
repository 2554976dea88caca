"""Our numbers against TOFU's published logs, metric by metric.

    python -m benchmarks.parity [LOGS]

LOGS holds llama2-7b_full_eval_log_aggregated.json and llama2-7b_retain90_eval_log_aggregated.json as locuslab/tofu publishes them
(its data/ft_epoch5_lr1e-05_llama2-7b_*_wd0.01/eval_results/ds_size300); without it the cut ones of tests/evaluate/golden are read.
Exits with status 1 if a number differs by more than 1e-6, or a p-value by more than 1e-6 of itself; with 2 without logs.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.parity.published import Log, forget_quality, numbers
from workbench.core.errors import InputError
from workbench.core.store import existing
from workbench.evaluate import rescore
from workbench.evaluate.logs import read_logs
from workbench.evaluate.rouge_l_recall import rouge_l_recall

GOLDEN = Path(__file__).resolve().parents[2] / "tests/evaluate/golden"
NAMES = {"full": "llama2-7b_full_eval_log_aggregated.json", "retain90": "llama2-7b_retain90_eval_log_aggregated.json"}
CLOSE = 1e-6


class Line(NamedTuple):
    """One number, as published and as ours. relative: whether the difference is a share of the published one."""

    log: str
    metric: str
    split: str
    published: float
    ours: float
    relative: bool = False

    @property
    def difference(self) -> float:
        """|ours - published|, over the published one where that is asked for."""
        apart = abs(self.ours - self.published)
        return apart / abs(self.published) if self.relative else apart


def compare(logs: Path, *, ours: Path | None = None) -> list[Line]:
    """Every number that has one definition there and here.

    Args: ours: where this package reads its logs; None for the same folder.
    Raises: InputError for a folder without the two logs.
    """
    read: dict[str, Log] = {name: json.loads(existing(logs / file).read_text(encoding="utf-8")) for name, file in NAMES.items()}
    paths = {name: (ours or logs) / file for name, file in NAMES.items()}
    lines = []
    for name, path in paths.items():
        found = rescore(path, paths["retain90"])
        published = numbers(read[name]) | (forget_quality(read[name], read["retain90"]) if name == "full" else {})
        for (metric, split), value in published.items():
            lines.append(Line(name, metric, split, value, found[metric, split].value, metric == "forget_quality"))
        lines += list(_texts(name, path))
    return lines


def _texts(name: str, path: Path) -> Iterator[Line]:
    """ROUGE-L recall of the logged texts against the logged recalls, where the log has texts: the row that differs most."""
    for split, logged in read_logs(path).items():
        if logged.recall is None or None in logged.generated:
            continue
        ours = rouge_l_recall(replace(logged, recall=None))
        worst = int(np.abs(ours - logged.recall).argmax())
        yield Line(name, f"rouge_l_recall, worst of {len(ours)} texts", split, float(logged.recall[worst]), float(ours[worst]))


def main() -> int:
    """Print the table; 0 if all agree."""
    try:
        lines = compare(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("| log | metric | split | published | ours | difference |\n|---|---|---|---|---|---|")
    for one in lines:
        print(f"| {one.log} | {one.metric} | {one.split} | {one.published:.8g} | {one.ours:.8g} | {one.difference:.1e} |")
    apart = [one for one in lines if not one.difference <= CLOSE]
    print(f"\n{len(lines) - len(apart)} of {len(lines)} agree to {CLOSE:g}.")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
