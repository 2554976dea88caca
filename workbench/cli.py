"""The command line: one subcommand a stage, plus run, judge, report, compare, doctor, methods and organism.

Nothing heavy is imported before a subcommand runs, so `workbench --help` is quick. Method names and their options come from the
registries and are checked there. What the user got wrong is said in one line, with exit status 2.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

ModelArg = Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a Hugging Face model, or a hub id.")]
Forget = Annotated[str, typer.Option(help="Rows to forget: a .jsonl or .parquet file, or tofu:SPLIT.")]
Retain = Annotated[str, typer.Option(help="Rows to keep: a .jsonl or .parquet file, or tofu:SPLIT.")]
Root = Annotated[str | None, typer.Option(help="Folder with TOFU's files; without it tofu:SPLIT comes from the hub.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16; auto is float32 on the CPU.")]
Opt = Annotated[list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the method; repeat it.")]
Out = Annotated[Path, typer.Option(help="Where the result is written.")]


@app.callback()
def workbench() -> None:
    """Find the weights and the data that carry a behavior, change exactly those, prove what the change did."""


def _options(given: list[str] | None) -> dict[str, Any]:
    from workbench.study.file import parse_options

    return parse_options(given or [])


def _sets(forget: str, retain: str, root: str | None) -> tuple[Any, Any]:
    from workbench.load.datasets import examples

    return examples(forget, root=root), examples(retain, root=root)


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="A study file, such as studies/quickstart.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="arms.npo.unlearn.lr=1e-3")] = None,
    out: Annotated[Path, typer.Option(help="The folder that holds runs.")] = Path("runs"),
) -> None:
    """Run a study file, or go on with it where it was stopped."""
    from workbench.report import print_table
    from workbench.study.run import run as run_study

    folder = run_study(study, out=out, overrides=overrides or [])
    print_table(folder)
    typer.echo(f"report: {folder / 'report.html'}")


@app.command()
def judge(
    scores: Annotated[
        list[str] | None, typer.Argument(help="Scores in the study, or registered methods; all of the study's without.")
    ] = None,
    study: Annotated[Path, typer.Option(help="A study file with a mapping 'judge'.")] = Path("studies/localization.yaml"),
    out: Annotated[Path, typer.Option(help="The folder that holds runs.")] = Path("runs"),
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the judge, such as seeds='[0, 1, 2]'."),
    ] = None,
) -> None:
    """Judge located weights by intervention: inside them, in a matched random set, outside them, at one budget."""
    from workbench.report import print_table
    from workbench.study.localization import KEYS
    from workbench.study.localization import run as judge_study

    overrides = [one if one.split("=")[0].split(".")[0].strip() in KEYS else f"judge.{one}" for one in option or []]
    folder = judge_study(study, out=out, overrides=overrides, only=scores or [])
    print_table(folder)
    typer.echo(f"report: {folder / 'report.html'}")


@app.command()
def attribute(
    method: Annotated[str, typer.Argument(help="wagle, saliency, ...; `workbench methods` lists them.")],
    model: ModelArg,
    forget: Forget,
    retain: Retain,
    out: Out,
    root: Root = None,
    fraction: Annotated[float | None, typer.Option(help="Also cut a mask with this share of the weights.")] = None,
    scope: Annotated[str, typer.Option(help="global, layer, tensor, row; or N:M, such as 2:4, without --fraction.")] = "global",
    option: Opt = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Score every weight; writes OUT/scores.safetensors, and OUT/mask.safetensors with --fraction."""
    from workbench.core.registry import attribution
    from workbench.core.store import check_vacant, new_folder
    from workbench.load.models import load

    check_vacant(out)
    member = attribution[method]
    options = member.check_options(_options(option))
    sets = _sets(forget, retain, root)
    scores = member.function(load(model, device=device, dtype=dtype), *sets, **options)
    mask = None if fraction is None and ":" not in scope else scores.mask(fraction, scope=scope)
    with new_folder(out) as aside:
        scores.save(aside / "scores.safetensors")
        if mask is not None:
            mask.save(aside / "mask.safetensors")
    typer.echo(scores.by_module().nlargest(10, "mean").to_string(index=False))
    if mask is not None:
        typer.echo(mask.by_module().nlargest(10, "chosen").to_string(index=False))
    for key, value in scores.provenance.notes.items():
        typer.echo(f"{key}: {value}")
    typer.echo(f"{scores!r}{'' if mask is None else f', {mask!r}'}: {out}")


@app.command()
def unlearn(
    objective: Annotated[str, typer.Argument(help="npo, simnpo, gradient_difference, ...; `workbench methods` lists them.")],
    model: ModelArg,
    forget: Forget,
    retain: Retain,
    out: Out,
    root: Root = None,
    mask: Annotated[Path | None, typer.Option(help="Only these weights may move (a mask.safetensors).")] = None,
    option: Opt = None,
    export: Annotated[Path | None, typer.Option(help="Also write the edited model as a Hugging Face folder.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Unlearn the forget rows; writes the change as a Delta to OUT. -o takes options of `unlearn.run` and of the objective."""
    from workbench.core.errors import InputError
    from workbench.core.mask import Mask
    from workbench.core.registry import Member
    from workbench.core.registry import objective as objectives
    from workbench.core.store import check_vacant
    from workbench.load.models import load
    from workbench.unlearn.run import run as run_unlearn

    member, given = objectives[objective], _options(option)
    own = member.check_options({key: given.pop(key) for key in list(given) if key in member.options})
    for key in ("objective", "options", "mask", "show"):
        if key in given:
            raise InputError(f"option {key!r} is not given with -o; see workbench unlearn --help.")
    Member("unlearn", run_unlearn).check_options(given)
    if export is not None:
        check_vacant(export)
    frozen = None if mask is None else Mask.load(mask)
    sets = _sets(forget, retain, root)
    loaded = load(model, device=device, dtype=dtype)
    found = run_unlearn(loaded, *sets, objective=member.name, options=own, mask=frozen, show=True, **given)
    _finish(loaded, found.delta, out, export)
    typer.echo(f"moved {found.moved:.2%} of the weights in {found.audit.steps} steps, {found.audit.tokens:,} tokens")
    if found.audit.stopped:
        typer.echo(found.audit.stopped)


@app.command()
def edit(
    method: Annotated[str, typer.Argument(help="dampen, ...; `workbench methods` lists them.")],
    model: ModelArg,
    forget: Forget,
    retain: Retain,
    out: Out,
    root: Root = None,
    option: Opt = None,
    export: Annotated[Path | None, typer.Option(help="Also write the edited model as a Hugging Face folder.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Compute an edit without training; writes the change as a Delta to OUT."""
    from workbench.core.registry import edit as edits
    from workbench.load.models import load

    member = edits[method]
    options = member.check_options(_options(option))
    sets = _sets(forget, retain, root)
    loaded = load(model, device=device, dtype=dtype)
    delta = member.function(loaded, *sets, **options)
    _finish(loaded, delta, out, export)
    typer.echo(f"moved {delta.moved(loaded):.2%} of the weights")


def _finish(model: Any, delta: Any, out: Path, export: Path | None) -> None:
    delta.save(out)
    typer.echo(f"{delta!r}: {out}, {out.stat().st_size / 1e6:.2f} MB")
    if export is not None:
        delta.export(model, export)
        typer.echo(f"model: {export}")


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


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write RUN/report.html again and print the table."""
    from workbench.report import page, print_table

    print_table(folder)
    typer.echo(f"report: {page(folder)}")


@app.command()
def compare(folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")]) -> None:
    """The tables of several runs under each other."""
    from workbench.report import compare as compare_runs

    typer.echo(compare_runs(folders).to_string())


@app.command()
def methods() -> None:
    """Every registered method, by kind, with its options and what it does."""
    from workbench.core import registry

    for kind in (registry.attribution, registry.edit, registry.objective, registry.metric):
        typer.echo(f"\n{kind.kind}")
        for member in kind:
            given = {key: value for key, value in member.options.items() if key not in ("gathered", "show")}
            options = ", ".join(f"{key}={_shown(value)}" for key, value in given.items())
            typer.echo(f"  {member.name:<30}{member.summary}" + (f"\n{'':<32}{options}" if options else ""))


def _shown(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)


@app.command()
def organism(
    out: Out = Path("data/organism"),
    data: Annotated[Path, typer.Option(help="Folder with the four splits of rows.")] = Path("data/tofu-mini"),
    tofu: Annotated[Path | None, typer.Option(help="Cut the rows out of TOFU's own files in this folder first.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="full, retain or retain-b; repeat it. All three without it.")] = None,
    epochs: Annotated[int, typer.Option(help="Times through all rows.")] = 40,
    check: Annotated[bool, typer.Option("--measure", help="Train nothing; measure the models in OUT.")] = False,
) -> None:
    """Train the bundled models from scratch (about ten minutes each on two cores), or --measure those that are there."""
    from workbench.study.organism import SEEDS, build, measure, rows

    if tofu is not None:
        rows(tofu, data)
    if not check:
        build(data, out, only=only or list(SEEDS), epochs=epochs)
    typer.echo(measure(out, data).round(4).to_string(index=False))


@app.command()
def doctor() -> None:
    """What this machine has: versions, device, memory, optional packages."""
    import importlib.util

    from workbench.core.runtime import environment, free_bytes, pick_device

    for key, value in environment().items():
        typer.echo(f"{key:<18}{value}")
    device = pick_device()
    typer.echo(f"{'device':<18}{device}, {free_bytes(device) / 2**30:.1f} GiB free")
    for package, extra in (("kronfluence", "influence"), ("lm_eval", "lm-eval"), ("peft", "peft"), ("jupyterlab", "notebook")):
        there = "installed" if importlib.util.find_spec(package) else f"not installed (extra: {extra})"
        typer.echo(f"{package:<18}{there}")


def main() -> None:
    """Entry point: one line and exit status 2 for what the user got wrong."""
    try:
        app()
    except Exception as error:
        from workbench.core.errors import WorkbenchError

        if not isinstance(error, WorkbenchError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
