"""Whole studies: run, judge, report, compare."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.common import app


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
    from workbench.study.head import below
    from workbench.study.localization import run as judge_study

    folder = judge_study(study, out=out, overrides=below("judge", option or []), only=scores or [])
    print_table(folder)
    typer.echo(f"report: {folder / 'report.html'}")


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
