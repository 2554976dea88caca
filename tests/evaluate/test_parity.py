"""Published logs, scored by a plain restatement of the published script and by the suite."""

import json

import pytest

from benchmarks.parity.__main__ import CLOSE, GOLDEN, NAMES, compare
from benchmarks.parity.published import numbers


def test_every_number_agrees():
    lines = compare(GOLDEN)
    assert len(lines) == 28  # 13 a log, and two against the retrained model
    for one in lines:
        assert one.difference <= CLOSE, one


def test_the_restatement_gives_the_published_digits():
    log = json.loads((GOLDEN / NAMES["full"]).read_text())
    assert numbers(log)["model_utility_geometric", "all"] == pytest.approx(0.622677, abs=5e-7)  # six digits were published


def test_a_wrong_number_is_seen(tmp_path):
    """The comparison is no tautology: a log that is scored against another restatement differs."""
    for name in NAMES.values():
        (tmp_path / name).write_text((GOLDEN / name).read_text())
    log = json.loads((tmp_path / NAMES["full"]).read_text())
    changed = json.loads((tmp_path / NAMES["full"]).read_text())
    row = next(iter(changed["eval_log.json"]["avg_gt_loss"]))
    changed["eval_log.json"]["avg_gt_loss"][row] += 0.1
    assert abs(numbers(log)["probability", "retain"] - numbers(changed)["probability", "retain"]) > CLOSE
