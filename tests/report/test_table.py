"""The frames and the terminal table."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.report.conftest import IMAGE, SCRIPT
from workbench.core.errors import InputError
from workbench.report import card, compare, print_table, summary


def test_summary_has_values_and_intervals_in_the_order_of_the_page(run_folder: Path) -> None:
    frame = summary(run_folder)
    assert list(frame.index) == ["full", "retain", "retain-b", "npo", "ga", "noop", "surgery"]
    row = frame.loc["npo"]
    name = "rouge_l_recall/forget"
    assert (row[name], row[f"{name} low"], row[f"{name} high"]) == pytest.approx((0.34, 0.30, 0.38))
    assert (row["moved"], row["seconds"]) == (0.8, 12.5)
    assert math.isnan(frame.loc["noop", "model_utility_geometric/all"])  # type: ignore[arg-type]
    assert math.isnan(frame.loc["surgery", "moved"])  # type: ignore[arg-type]
    assert not [column for column in frame if "odd_metric" in column or "retain" in column]


def test_compare_stacks_runs_and_keeps_a_metric_of_only_one(make_run: Callable[..., Path]) -> None:
    frame = compare([make_run("one", ("full", "npo")), make_run("two", ("noop",))])
    assert list(frame.index) == [("one", "full"), ("one", "npo"), ("two", "noop")]
    assert frame["model_utility_geometric/all"].isna().tolist() == [False, False, True]
    assert frame["rouge_l_recall/forget"].tolist() == [0.92, 0.34, 0.92]


def test_compare_refuses_nothing_and_two_folders_of_one_name(make_run: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="no run was given"):
        compare([])
    with pytest.raises(InputError, match="two run folders are called demo"):
        compare([make_run("a/demo", ("full",)), make_run("b/demo", ("full",))])


def printed(*runs: Path, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_table(runs[0], *runs[1:], console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut_at_any_width(run_folder: Path, width: int) -> None:
    text = printed(run_folder, width=width)
    assert text.count("[0.880, 0.960]") == 2  # untouched, and the arm that moved nothing
    assert text.count("1.50e-23") == 7
    assert text.count("12.5") == 7
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_the_terminal_gets_no_markup_and_no_escape(run_folder: Path) -> None:
    path = run_folder / "arms/npo/arm.json"
    path.write_text(path.read_text().replace('"title": "', '"title": "[red]x[/red]\\u001b]0;y'))
    text = printed(run_folder, width=200)
    assert "[red]x[/red]\ufffd]0;y" in text
    assert "\x1b]" not in text


def test_several_runs_are_printed_with_their_names(make_run: Callable[..., Path]) -> None:
    lines = printed(make_run("one", ("full",)), make_run("two", ("noop",)), width=200).splitlines()
    assert [line.split()[0] for line in lines if "0.920" in line] == ["one", "two"]


def test_the_card_is_static_and_escaped(run_folder: Path) -> None:
    html = card(run_folder)._repr_html_()
    assert type(html) is str
    assert html.count("<svg") > 1
    assert html.count("<tr>") == 8
    assert "<script" not in html
    assert "<img" not in html
    assert "http" not in html
    assert "[0.880, 0.960]" in html
    assert "was not measured: npo with lr 0." in html
    assert "retrained again" in repr(card(run_folder))
    assert SCRIPT not in html
    assert IMAGE not in html
