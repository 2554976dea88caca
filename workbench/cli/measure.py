"""Measure a model, or published logs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import Device, Dtype, app


@app.command()
def evaluate(
    suite: Annotated[str, typer.Argument(help="tofu")],
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A model; or give --logs.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with forget, retain, real_authors and world_facts.")] = None,
    delta: Annotated[Path | None, typer.Option(help="Evaluate the model with this Delta applied.")] = None,
    reference: Annotated[str | None, typer.Option(help="A model that never saw the forget rows.")] = None,
    logs: Annotated[Path | None, typer.Option(help="Re-score TOFU's eval_log_aggregated.json, without a model.")] = None,
    reference_logs: Annotated[Path | None, typer.Option(help="The same of the reference model.")] = None,
    retain_rows: Annotated[int, typer.Option(help="How many retain rows to measure.")] = 400,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Measure a model, or published logs: every number with its interval."""
    from workbench.core.errors import InputError
    from workbench.evaluate import rescore

    if (model is None) == (logs is None):
        raise InputError("evaluate: give a MODEL with --data, or --logs, one of them.")
    if logs is not None:
        measured = rescore(logs, reference_logs)
    else:
        measured = _evaluate_model(suite, str(model), data, delta, reference, retain_rows, device, dtype)
    if as_json:
        typer.echo(json.dumps(measured.as_dicts(), indent=2))
    else:
        typer.echo(measured.frame().drop(columns=["better", "note"]).to_string(index=False, float_format="%.4g"))


def _evaluate_model(
    suite: str,
    name: str,
    folder: Path | None,
    change: Path | None,
    reference: str | None,
    retain_rows: int,
    device: str,
    dtype: str,
) -> Any:
    from contextlib import nullcontext

    from workbench.core.delta import Delta, applied
    from workbench.core.errors import InputError
    from workbench.evaluate import suite as measure
    from workbench.load.datasets import examples
    from workbench.load.models import load
    from workbench.study.config import SPLITS

    if folder is None:
        raise InputError("evaluate: a model needs --data, the folder with forget, retain, real_authors and world_facts.")
    rows = {split: examples(f"tofu:{split}", root=folder) for split in SPLITS}
    rows["retain"] = rows["retain"][:retain_rows]
    loaded = load(name, device=device, dtype=dtype)
    gold = None if reference is None else load(reference, device=device, dtype=dtype)
    with nullcontext() if change is None else applied(loaded, Delta.load(change)):
        return measure(suite, loaded, data=rows, reference=gold)
