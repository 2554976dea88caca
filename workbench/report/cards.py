"""A run in a notebook: the plane and the short table as static HTML, which survives nbconvert and lost trust."""

from pathlib import Path

from markupsafe import Markup

from workbench.core.svg import tag
from workbench.report.figure import figure
from workbench.report.folder import Run, read_run
from workbench.report.table import cell, heading, key_metrics, moved, summary


class Card:
    """What `card` returns; a notebook shows it, `run` holds everything that was read."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __repr__(self) -> str:
        return f"{self.run.name}: {len(self.run.arms)} arms\n{summary(self.run).to_string(float_format='%.4g')}"

    def _repr_html_(self) -> str:
        drawn = figure(self.run)
        said = [tag("p", text) for text in drawn.remarks]
        plot = [tag("div", drawn.wide, style="max-width:760px"), tag("p", drawn.legend)] if drawn.wide else []
        return str(tag("div", tag("h3", self.run.name), *plot, *said, self._table()))

    def _table(self) -> Markup:
        keys = key_metrics(self.run)
        heads = ["arm", *(heading(self.run.metrics[key]) for key in keys), "moved"]
        rows = [[(arm.title, ""), *(cell(arm, key) for key in keys), (moved(arm), "")] for arm in self.run.arms]
        head = tag("tr", *(_cell("th", *text.split("\n"), first=i == 0) for i, text in enumerate(heads)))
        body = (tag("tr", *(_cell("td", *texts, first=i == 0) for i, texts in enumerate(row))) for row in rows)
        table = tag("table", tag("thead", head), tag("tbody", *body), style="border-collapse:collapse;font-size:13px")
        return tag("div", table, style="overflow-x:auto")


def _cell(name: str, text: str, below: str = "", *, first: bool) -> Markup:
    """A cell with a smaller second line. Styles stand inline: untrusted notebooks drop style sheets."""
    style = f"text-align:{'left' if first else 'right'};vertical-align:top;padding:4px 10px;white-space:nowrap"
    return tag(name, text, tag("div", below, style="font-size:11px;font-weight:400;opacity:.7"), style=style)


def card(run: str | Path) -> Card:
    """The run as a notebook shows it: the forget-utility plane and the result table.

    Raises: InputError naming what the folder lacks.
    """
    return Card(read_run(run))
