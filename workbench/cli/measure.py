"""Measure a model, or published logs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import Device, Dtype, Opt, app


@app.command()
def evaluate(
    suite: Annotated[str, typer.Argument(help="tofu, muse, multiple_choice, conceptvectors or lm_eval.")],
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A model, or a .yaml file that names model, data and more; or give --logs."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with what tofu or muse asks.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Multiple-choice questions; of muse the folder with TOFU's questions.")
    ] = None,
    delta: Annotated[Path | None, typer.Option(help="Evaluate the model with this Delta applied.")] = None,
    reference: Annotated[str | None, typer.Option(help="A model that never saw the forget rows.")] = None,
    logs: Annotated[Path | None, typer.Option(help="Re-score TOFU's eval_log_aggregated.json, without a model.")] = None,
    reference_logs: Annotated[Path | None, typer.Option(help="The same of the reference model.")] = None,
    retain_rows: Annotated[int | None, typer.Option(help="How many retain rows tofu measures; 400 without.")] = None,
    option: Opt = None,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this parquet file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Measure a model, or published logs: every number with its interval.

    A file has three lines, `model: PATH`, `data: FOLDER`, `reference: PATH`, or more; -o takes what else it can hold, such as
    generate=64 or form=letters.
    """
    from workbench.cli.common import check_new
    from workbench.core.errors import InputError
    from workbench.evaluate import rescore

    if (model is None) == (logs is None):
        raise InputError("evaluate: give a MODEL with --data, or --logs, one of them.")
    if out is not None:
        check_new(out)
    flags = {"data": data, "questions": questions, "delta": delta, "reference": reference, "retain_rows": retain_rows}
    given = {key: value if isinstance(value, int) else str(value) for key, value in flags.items() if value is not None}
    if logs is not None:
        if suite != "tofu" or given or option:
            raise InputError("evaluate: --logs are TOFU's, scored without a model; no other suite, data or option goes with them.")
        if device != "auto" or dtype != "auto":
            raise InputError("evaluate: --logs are scored without a model, so no --device and no --dtype goes with them.")
        measured = rescore(logs, reference_logs)
    else:
        if reference_logs is not None:
            raise InputError("evaluate: --reference-logs go with --logs; beside a MODEL give --reference, a model.")
        if device != "auto" or dtype != "auto":
            given |= {"device": device, "dtype": dtype}
        measured = _evaluate_model(suite, str(model), given, option or [])
    if out is not None:
        measured.save(out)
    if as_json:
        typer.echo(json.dumps(measured.as_dicts(), indent=2))
    else:
        typer.echo(measured.frame().drop(columns=["better", "note"]).to_string(index=False, float_format="%.4g"))


def _evaluate_model(suite: str, name: str, given: dict[str, Any], options: list[str]) -> Any:
    """What a file says, if `name` is one, overridden by `given` and `options`."""
    from workbench.core.errors import InputError
    from workbench.study.evaluate_file import ASKED, evaluate, plan, read_keys
    from workbench.study.file import parse_options

    keys = read_keys(name) if name.endswith((".yaml", ".yml")) else {"model": name}
    keys |= given | parse_options(options)
    absent = [key for key in ASKED.get(suite, {}) if key not in keys]
    if absent and "model" in keys and not name.endswith((".yaml", ".yml")):
        flag = f"--{absent[0]}" if absent[0] in ("data", "questions") else f"-o {absent[0]}=..."
        raise InputError(f"evaluate: a model needs {flag}, {ASKED[suite][absent[0]]}; or give a .yaml file that names both.")
    return evaluate(plan(suite, keys, where=name))
