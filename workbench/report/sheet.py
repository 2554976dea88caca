"""A sheet: the result of an experiment as sections of tables and pictures, with its page and its table in the terminal.

A study writes what it found as `sheet.json` into the run folder; everything here only shows it. So a new kind of study needs no
page of its own.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from workbench.core.errors import InputError
from workbench.core.store import existing, new_file, read_json, write_json
from workbench.core.svg import clean, number
from workbench.report.dots import Dot, chart, legend
from workbench.report.engine import engine

if TYPE_CHECKING:
    from rich.console import Console

Cell = str | float | tuple[float, float, float]
"""Words; a number; or a number with the bounds of its interval, NaN where there is none."""

TEXT = 28  # characters from which a cell is a sentence


@dataclass(frozen=True)
class Section:
    """One part of a sheet: text, a picture of values with intervals, a table.

    dots: drawn in their order, one line a `row`, one color a `group`; axis says what they are, and their unit.
    columns: headings of the table; rows: as many cells each, the first is the row's name.   folded: the table is closed at first.
    """

    heading: str
    text: str = ""
    dots: tuple[Dot, ...] = ()
    axis: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    remark: str = ""
    folded: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise InputError(
                    f"Section {self.heading!r}: a row has {len(row)} cells, but there are {len(self.columns)} columns."
                )

    @property
    def texts(self) -> tuple[bool, ...]:
        """Which columns hold sentences, which are set to the left and broken into lines."""
        return tuple(any(isinstance(cell, str) and len(cell) > TEXT for cell in column) for column in zip(*self.rows, strict=True))


@dataclass(frozen=True)
class Sheet:
    """A whole result. reading: what was done and came out, in sentences; cautions: what to know before quoting a number."""

    title: str
    reading: str
    sections: tuple[Section, ...]
    cautions: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write sheet.json into a run folder; a number that is not finite becomes null."""
        write_json(Path(folder) / "sheet.json", _plain(asdict(self)))

    @classmethod
    def load(cls, folder: str | Path) -> "Sheet":
        """Read what `save` wrote.

        Raises: InputError if there is none, or it is broken.
        """
        raw = read_json(existing(folder) / "sheet.json")
        try:
            sections = tuple(_section(one) for one in raw.pop("sections"))
            return cls(**{**raw, "cautions": tuple(raw["cautions"])}, sections=sections)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder}/sheet.json: not a sheet ({error!r}). Run the study again to write it anew.") from error


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity, and `asdict` no JSON."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _section(raw: dict[str, Any]) -> Section:
    dots = tuple(Dot(row, group, *(_number(v) for v in rest)) for row, group, *rest in raw["dots"])
    rows = tuple(tuple(_cell(cell) for cell in row) for row in raw["rows"])
    return Section(**{**raw, "dots": dots, "columns": tuple(raw["columns"]), "rows": rows})


def _cell(raw: Any) -> Cell:
    if isinstance(raw, list):
        value, low, high = (_number(v) for v in raw)
        return value, low, high
    return raw if isinstance(raw, str) else _number(raw)


def _number(raw: Any) -> float:
    return float("nan") if raw is None else float(raw)


def is_sheet(run: str | Path) -> bool:
    """Whether a run folder holds a sheet."""
    return (Path(run) / "sheet.json").is_file()


def said(cell: Cell) -> tuple[str, str]:
    """A cell's text, and its interval where it has one; a dash for a number that is not finite."""
    if isinstance(cell, str):
        return cell, ""
    value, low, high = cell if isinstance(cell, tuple) else (cell, float("nan"), float("nan"))
    if not math.isfinite(value):
        return "–", ""
    return number(value), f"[{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else ""


def page(run: str | Path, *, out: str | Path | None = None) -> Path:
    """Write the report of a run folder with a sheet and return where it is; the same run gives the same bytes."""
    folder = existing(run)
    out = folder / "report.html" if out is None else Path(out)
    with new_file(out) as aside:
        aside.write_text(render(folder), encoding="utf-8")
    return out


def render(folder: Path) -> str:
    """The page as a string."""
    sheet, templates = Sheet.load(folder), engine()
    text = {name: (folder / name).read_text(encoding="utf-8") for name in ("config.yaml", "env.json") if (folder / name).exists()}
    return templates.get_template("sheet.html.j2").render(
        style=Markup(templates.get_template("page.css").render()),
        name=folder.name,
        sheet=sheet,
        said=said,
        charts=[(chart(section.dots, axis=section.axis), legend(section.dots)) for section in sheet.sections],
        config=text.get("config.yaml", ""),
        env=json.loads(text.get("env.json", "{}")),
    )


def print_table(run: str | Path, *, console: "Console | None" = None) -> None:
    """Print the reading and every table that is not folded in the terminal; text is cleaned, and no markup is read."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, sheet = console or Console(), Sheet.load(run)
    for section in sheet.sections:
        if not section.rows or section.folded:
            continue
        console.print(Text(clean(section.heading), style="bold"))
        table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 2, 0, 0))
        for i, name in enumerate(section.columns):
            table.add_column(Text(clean(name)), justify="right" if i else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*(Text(clean("\n".join(filter(None, said(cell))))) for cell in row))
        console.print(table)
        console.print()
    console.print(Text(clean(sheet.reading)))
