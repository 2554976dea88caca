"""Does what was unlearned come back? Methods at one budget, each attacked in every way, beside models that never knew the rows.

name: attacks                        # the run folder is OUT/attacks
model: ../data/organism/full         # paths are relative to the study file
data: {root: ../data/tofu-mini, forget: "tofu:forget", retain: "tofu:retain", unrelated: "tofu:world_facts"}   # or a .txt file
attacks:
  retrained: ../data/organism/retain       # never saw the forget rows: what an attack finds where nothing is left
  retrained_b: ../data/organism/retain-b   # and another one: how far two such models are apart
  unlearn: {npo: {}, rmu: {layer: 2}}      # objectives and options of `unlearn.run`; see `methods.read_methods`
  edits: {dampen: {alpha: 5}}
  rate: 5e-4                               # of all objectives but those in `rates`
  rates: {rmu: 1e-3}
  budget: 0.05                             # rise of the mean NLL on retain rows that each method may cost
  attacks: [extraction, prompts, relearning, quantization, probe]

Everything else has a default, see `attacks_plan.Settings`. Every attack is measured before and after on the same forget rows;
`attacks_grid` says how, `attacks_result` what is compared.

    runs/NAME/deltas/KEY.safetensors   a method    runs/NAME/points/KEY.json   one attack on one model, row by row
    runs/NAME/measurements.parquet, sheet.json, report.html
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.core.errors import StudyError
from workbench.core.records import Examples
from workbench.core.runtime import progress
from workbench.core.store import new_file, read_text
from workbench.evaluate.attacks.relearning import text_rows
from workbench.evaluate.entity_spans import entities
from workbench.load.datasets import json_rows, text_of
from workbench.report import page
from workbench.study.attacks_arms import Arm, Bench, unlearned
from workbench.study.attacks_grid import attacked, check
from workbench.study.attacks_plan import RETRAINED, RETRAINED_B, SPLITS, UNTOUCHED, Settings, read
from workbench.study.attacks_result import Result
from workbench.study.attacks_sheet import sheet
from workbench.study.folder import begin
from workbench.study.head import Head
from workbench.study.judge import split_retain

RESULTS = ("measurements.parquet", "sheet.json", "report.html")


def run(study: str | Path, *, out: str | Path = "runs", overrides: Iterable[str] = (), show: bool = True) -> Path:
    """Run a study of attacks, or go on with it; returns the run's folder.

    Raises: any InputError before the first file is written.
    """
    head, settings = read(study, overrides)
    folder = Path(out) / head.name
    on = bench(head, settings, folder)
    check(on)
    begin(folder, head.config(folder, "attacks", settings.body(folder)), RESULTS)
    arms = [Arm(UNTOUCHED, on.model)]
    arms += [unlearned(on, method) for method in progress(settings.methods, label="unlearning", show=show)]
    arms += [Arm(name, model) for name, model in on.retrained.items()]
    asked = [(attack, arm) for arm in arms for attack in settings.attacks]
    found: dict[str, dict[str, dict[str, Any]]] = {attack: {} for attack in settings.attacks}
    for attack, arm in progress(asked, label="attacks", show=show):
        found[attack][arm.name] = attacked(on, arm, attack)
    result = Result(settings, tuple(arms), found, on.forget, on.parts.report, on.model.d_vocab)
    with new_file(folder / "measurements.parquet") as aside:
        result.frame(folder.name).to_parquet(aside, index=False)
    sheet(head.title or head.name, result).save(folder)
    page(folder)
    return folder


def bench(head: Head, settings: Settings, folder: Path) -> Bench:
    """Models and rows, loaded and checked.

    Raises: StudyError for a retrained model with another tokenizer, or forget rows without another question where a file of them is
        named; as `split_retain`.
    """
    rows = {split: _rows(head, split) for split in SPLITS}
    parts = split_retain(rows["forget"], rows["retain"], budget_rows=settings.budget_rows, report_rows=settings.report_rows)
    asked = None if settings.questions is None else questions(settings.questions, rows["forget"])
    marked = None if settings.entities is None else entities(settings.entities)
    model = head.load()
    retrained = {RETRAINED: head.load(settings.retrained), RETRAINED_B: head.load(settings.retrained_b)}
    for name, other in retrained.items():
        if model.text_key() != other.text_key():
            raise StudyError(
                f"attacks: the {name} model has another tokenizer than {model.name!r}, so their tokens do not compare."
            )
    return Bench(folder, settings, model, retrained, rows["forget"], parts, rows["unrelated"], marked, asked)


def _rows(head: Head, split: str) -> Examples:
    """The rows of a split; a .txt file, such as unrelated text, has one a line."""
    source = Path(head.data[split])
    if source.suffix != ".txt":
        return head.rows(split)
    return text_rows([line for line in read_text(source).splitlines() if line.strip()], source.stem)


def questions(path: str, forget: Examples) -> dict[str, str]:
    """Other questions by id, from JSON lines of {"id": of the forget row, "question": ...}.

    Raises: DataError naming file and line for a row without either; StudyError for forget rows without another question.
    """
    lines = [(text_of(row, ("id",), where), text_of(row, ("question",), where)) for row, where in json_rows(Path(path))]
    found = dict(lines)
    absent = [row.id for row in forget if row.id not in found]
    if absent:
        raise StudyError(f"{path}: no question for {len(absent)} of {len(forget)} forget rows, first {absent[0]!r}.")
    return {row.id: found[row.id] for row in forget}
