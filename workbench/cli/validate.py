"""Hold methods of data attribution against retraining."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.common import app


@app.command("validate-data")
def validate_data(
    study: Annotated[Path, typer.Argument(help="A study file with a mapping 'validate_data'.")] = Path(
        "studies/validate-data.yaml"
    ),
    out: Annotated[Path, typer.Option(help="The folder that holds runs.")] = Path("runs"),
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the study, such as subsets=20 or start=MODEL."),
    ] = None,
) -> None:
    """Does an attribution of data tell what retraining would do? Retrain on random subsets, and compare methods and baselines."""
    from workbench.report.sheet import print_table
    from workbench.study.head import below
    from workbench.study.validate_data import run as validate

    folder = validate(study, out=out, overrides=below("validate_data", option or []))
    print_table(folder)
    typer.echo(f"report: {folder / 'report.html'}")
