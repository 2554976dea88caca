"""What the commands share: the app, how its arguments are written, options in YAML, and the ways out."""

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


def options_of(given: list[str] | None) -> dict[str, Any]:
    """["lr=1e-3"] as {"lr": 0.001}."""
    from workbench.study.file import parse_options

    return parse_options(given or [])


def sets_of(forget: str, retain: str, root: str | None) -> tuple[Any, Any]:
    """The rows of both sources."""
    from workbench.load.datasets import examples

    return examples(forget, root=root), examples(retain, root=root)


def check_new(out: Path, export: Path | None = None) -> None:
    """InputError, before the work, if the file to write is there already or a folder, or the export's folder is not vacant."""
    from workbench.core.errors import InputError
    from workbench.core.store import check_vacant

    if out.exists():
        raise InputError(f"{out}: exists already{', as a folder' if out.is_dir() else ''}; give another file, or remove it first.")
    if export is not None:
        check_vacant(export)


def finish(model: Any, delta: Any, out: Path, export: Path | None) -> None:
    """Write the Delta, and the edited model where that is asked for; say where and how large."""
    delta.save(out)
    typer.echo(f"{delta!r}: {out}, {out.stat().st_size / 1e6:.2f} MB")
    if export is not None:
        delta.export(model, export)
        typer.echo(f"model: {export}")


def main() -> None:
    """Entry point: one line and exit status 2 for what the user got wrong, and for a file that cannot be read or written."""
    try:
        app()
    except Exception as error:
        from workbench.core.errors import WorkbenchError

        if not isinstance(error, WorkbenchError | OSError):
            raise
        print(f"error: {' '.join(str(error).split()) if isinstance(error, OSError) else error}", file=sys.stderr)
        sys.exit(2)
