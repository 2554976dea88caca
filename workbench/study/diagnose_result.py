"""What a diagnosis found: frames, a page, a notebook's card, files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from workbench.core.picture import table
from workbench.core.runtime import environment
from workbench.core.store import check_vacant, new_folder, write_json
from workbench.core.svg import number, shorten, tag
from workbench.report.sheet import Sheet, page
from workbench.study.diagnose_counter import Replay
from workbench.study.diagnose_data import Agreement
from workbench.study.diagnose_reading import reading, records, share_text
from workbench.study.diagnose_sheet import sheet

if TYPE_CHECKING:
    import pandas as pd

MOST = 5  # rows and modules on a notebook's card


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `diagnose` found; NLLs in nats per answer token, changes are after minus before, shares are of 1.

    rows: one line a row, see `diagnose_rows.discovered`.   control: before, after, change of the control rows, None without them.
    modules: see `diagnose_weights.effects`; None where no weight changed.   blame: see `diagnose_data.blame`; None without training
    rows.   counterfactual: one line a counterfactual, see `diagnose_counter.Counterfactual`.
    answers: what the most forgotten rows are answered before and after.   judged: ids of the rows that modules, blame and
    counterfactuals are about.   others: how many rows their cost was measured on, and which rows those are.
    replay: None without a recipe.   agreement: of blame with shared words, None without training rows.
    settings: what decided it.
    """

    rows: "pd.DataFrame"
    control: "pd.DataFrame | None"
    modules: "pd.DataFrame | None"
    blame: "pd.DataFrame | None"
    counterfactual: "pd.DataFrame"
    answers: "pd.DataFrame"
    judged: tuple[str, ...]
    others: tuple[int, str]
    replay: Replay | None
    agreement: Agreement | None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def forgotten(self) -> list[str]:
        """Ids of the rows that were found to be forgotten, the most first."""
        found = [row for row in records(self.rows) if row["forgotten"]]
        return [row["id"] for row in sorted(found, key=lambda row: -row["change"])]

    def sheet(self) -> Sheet:
        """The diagnosis as sentences, pictures and tables."""
        return sheet(self)

    def save(self, folder: str | Path) -> None:
        """Write the frames as parquet, config.yaml, env.json, sheet.json and report.html into a new folder.

        Raises: InputError if the folder is there already and holds something.
        """
        folder = Path(folder)
        check_vacant(folder)
        with new_folder(folder) as aside:
            for name in ("rows", "control", "modules", "blame", "counterfactual"):
                frame: pd.DataFrame | None = getattr(self, name)
                if frame is not None:
                    frame.to_parquet(aside / f"{name}.parquet")
            (aside / "config.yaml").write_text(yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
            write_json(aside / "env.json", environment())
            self.sheet().save(aside)
        page(folder)

    def __repr__(self) -> str:
        blamed = "" if self.blame is None else f", {len(self.blame)} training rows"
        return f"Diagnosis({len(self.forgotten)} of {len(self.rows)} rows forgotten{blamed})"

    def _repr_html_(self) -> str:
        parts = [tag("p", reading(self))]
        rows = {row["id"]: row for row in records(self.rows)}
        worst = [(shorten(one, 40), number(rows[one]["change"]), number(rows[one]["q"])) for one in self.forgotten[:MOST]]
        parts += [table(["most forgotten", "rise, nats per token", "adjusted p"], worst)] if worst else []
        top = sorted(records(self.modules), key=lambda line: -line["undone"])[:MOST]
        lines = [(line["module"], number(line["ratio"]), share_text(line["undone_share"])) for line in top]
        parts += [table(["module", "||Delta||/||W||", "of the forgetting goes with it"], lines)] if lines else []
        rest = [(shorten(line["id"], 40), line["source"], number(line["blame"])) for line in records(self.blame)[:MOST]]
        parts += [table(["most blamed", "was", "blame"], rest)] if rest else []
        return str(tag("div", tag("h3", repr(self)), *parts))
