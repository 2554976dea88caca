"""Sheets: what a study wrote is what the page and the terminal show, whatever text and numbers it holds."""

import math
import re

import pytest
from rich.console import Console

from workbench.core.errors import InputError
from workbench.core.store import write_json
from workbench.report import page, print_table
from workbench.report.dots import Dot, chart, legend
from workbench.report.sheet import Section, Sheet, render, said

NAN = math.nan
DOTS = (Dot("gate", "probe", 0.5, 0.25, 1.0), Dot("gate", "random <b>", 0.1, NAN, NAN), Dot("up", "probe", NAN, NAN, NAN))


def sheet():
    first = Section(
        "What was <forgotten>",
        "Text & more.",
        DOTS,
        "rise, nats",
        ("matrix", "change", "weights", "verdict"),
        (("gate", (0.5, 0.25, 1.0), 1234.0, "beats random"), ("<script>alert(1)</script>", (NAN, NAN, NAN), NAN, "\x1b[31mred")),
        "A remark.",
    )
    folded = Section("All", columns=("a", "b"), rows=(("x", 1.5),), folded=True)
    return Sheet("Title <i>", "It came out.", (first, folded), ("Take care.",), {"strength": 0.5})


@pytest.fixture
def folder(tmp_path):
    sheet().save(tmp_path)
    (tmp_path / "config.yaml").write_text("name: x\n")
    write_json(tmp_path / "env.json", {"torch": "2"})
    return tmp_path


def test_a_file_keeps_everything(folder):
    back = Sheet.load(folder)
    assert repr(back) == repr(sheet())  # NaN is not equal to itself, but prints alike


def test_what_is_not_finite_is_null(tmp_path):
    section = Section("x", "", (Dot("a", "b", math.inf, NAN, NAN),), columns=("a", "b"), rows=(("x", (1.0, -math.inf, math.inf)),))
    Sheet("t", "r", (section,), settings={"factor": math.inf}).save(tmp_path)
    back = Sheet.load(tmp_path)
    assert back.settings == {"factor": None}
    assert said(back.sections[0].rows[0][1]) == ("1.000", "")
    assert math.isnan(back.sections[0].dots[0].value)
    assert "not measured" in page(tmp_path).read_text()


def test_cells():
    assert said((0.5, 0.25, 1.0)) == ("0.500", "[0.250, 1.000]")
    assert said((0.5, NAN, NAN)) == ("0.500", "")
    assert said(NAN) == said(math.inf) == said((-math.inf, 0.0, 1.0)) == ("–", "")
    assert said((0.5, 0.25, math.inf)) == ("0.500", "")
    assert said("words") == ("words", "")


def test_the_page_is_static_and_escaped(folder):
    html = page(folder).read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "What was &lt;forgotten&gt;" in html
    assert not re.search(r"https?://", html)
    assert "\x1b" not in html
    for text in (
        "0.500",
        "[0.250, 1.000]",
        "1,234",
        "Take care.",
        "It came out.",
        "All 1 rows",
        "strength",
        "name: x",
        "A remark.",
    ):
        assert text in html
    assert page(folder).read_text() == html


def test_the_chart():
    drawn = str(chart(DOTS, axis="rise, nats"))
    assert drawn.count("<circle") == 2
    assert drawn.count("<title>gate, probe: 0.500 [0.250, 1.000]</title>") == 2
    assert "not measured" in drawn
    assert "random &lt;b&gt;: 0.100<" in drawn
    # the dot lies in its interval, a third of the way from 0.25 to 1
    low, high = (float(v) for v in re.search(r'd="M([\d.]+) [\d.]+H([\d.]+)" stroke="#', drawn).groups())
    at = float(re.search(r'<circle cx="([\d.]+)"', drawn)[1])
    assert (at - low) / (high - low) == pytest.approx(1 / 3, abs=0.01)  # pixels have one decimal
    assert "random &lt;b&gt;" in legend(DOTS)
    assert legend(DOTS[:1]) == ""
    assert chart((), axis="x") == ""


def test_the_terminal(folder):
    console = Console(record=True, width=100)
    print_table(folder, console=console)
    text = console.export_text()
    for part in ("What was <forgotten>", "beats random", "[0.250, 1.000]", "It came out."):
        assert part in text
    assert "All" not in text.split()  # the folded table
    assert "\x1b" not in text


def test_refusals(folder):
    with pytest.raises(InputError, match="a row has 1 cells, but there are 2 columns"):
        Section("x", columns=("a", "b"), rows=(("only",),))
    (folder / "sheet.json").write_text('{"title": "x"}')
    with pytest.raises(InputError, match="not a sheet"):
        Sheet.load(folder)


def test_columns_of_sentences_are_set_as_text(tmp_path):
    long = "a sentence that is longer than the name of a thing"
    section = Section(
        "Rows", columns=("row", "answer", "value", "kind"), rows=(("a", long, 1.0, "short"), ("b", "no", 2.0, "short"))
    )
    assert section.texts == (False, True, False, False)
    Sheet("t", "r", (section,)).save(tmp_path)
    page = render(tmp_path)
    assert page.count('<th class="text">') == 1
    assert page.count('<td class="text">') == 2
