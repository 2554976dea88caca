"""What there is: methods, the organism, this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import Out, app


@app.command()
def methods() -> None:
    """Every registered method, by kind, with its options and what it does."""
    from workbench.core import registry

    for kind in registry.KINDS:
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
