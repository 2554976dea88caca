"""Published logs, scored by a plain restatement of the published script and by the suite."""

import json

import pytest

from benchmarks.parity.__main__ import CLOSE, GOLDEN, NAMES, compare, main
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
    """The published numbers of the logs beside ours of logs where one loss is another: those that read it differ, no other."""
    for name in NAMES.values():
        (tmp_path / name).write_text((GOLDEN / name).read_text())
    changed = json.loads((tmp_path / NAMES["full"]).read_text())
    row = next(iter(changed["eval_log.json"]["avg_gt_loss"]))
    changed["eval_log.json"]["avg_gt_loss"][row] += 0.1
    (tmp_path / NAMES["full"]).write_text(json.dumps(changed))
    apart = {(one.log, one.metric, one.split) for one in compare(GOLDEN, ours=tmp_path) if one.difference > CLOSE}
    assert apart == {("full", "probability", "retain"), ("full", "model_utility_geometric", "all")}


def test_a_folder_without_logs_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["parity", str(tmp_path / "nowhere")])
    assert main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "no such file or folder" in said
    assert said.count("\n") == 1
