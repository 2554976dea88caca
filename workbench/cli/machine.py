"""What there is: methods, the organism, this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import Device, app


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
    out: Annotated[Path | None, typer.Option(help="Where the models are; data/organism, or data/organism-medium.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the four splits; data/tofu-mini, or data/tofu-medium.")] = None,
    tofu: Annotated[Path | None, typer.Option(help="Cut the rows out of TOFU's own files in this folder first.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="full, retain or retain-b; repeat it. All three without it.")] = None,
    size: Annotated[str, typer.Option(help="small, or medium: 25 million weights, all of TOFU's rows, for a GPU.")] = "small",
    epochs: Annotated[int, typer.Option(help="Times through all rows.")] = 40,
    device: Device = "cpu",
    check: Annotated[bool, typer.Option("--measure", help="Train nothing; measure the models in OUT.")] = False,
) -> None:
    """Train the bundled models from scratch (about ten minutes each on two cores), or --measure those that are there."""
    from workbench.study.organism import SEEDS, build, measure, rows, size_of

    size_of(size)
    small = size == "small"
    out = out or Path("data/organism" if small else f"data/organism-{size}")
    data = data or Path("data/tofu-mini" if small else f"data/tofu-{size}")
    if tofu is not None:
        rows(tofu, data, size=size)
    if not check:
        build(data, out, size=size, only=only or list(SEEDS), epochs=epochs, device=device)
    typer.echo(measure(out, data, size=size).round(4).to_string(index=False))


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
