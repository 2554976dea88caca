"""Behavior probes: fit one that ships or one's own, and list them."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.common import Device, Dtype, ModelArg, Opt, app, options_of

probe = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Behavior probes: what is represented, and at which layer.")
app.add_typer(probe, name="probe")

Folder = Annotated[Path, typer.Option(help="The folder of behaviors.")]


@probe.command()
def fit(
    behavior: Annotated[str, typer.Argument(help="A behavior's name, or the path of its .yaml; `workbench probe list`.")],
    model: ModelArg,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; runs/probe-BEHAVIOR by default.")] = None,
    root: Folder = Path("probes"),
    option: Opt = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Fit a probe at every layer; writes OUT/probe.safetensors and OUT/directions.safetensors. -o takes options of `probe.fit`."""
    from workbench.core.direction import save_directions
    from workbench.core.registry import Member
    from workbench.core.store import check_vacant, new_folder
    from workbench.load.behaviors import behavior as load_behavior
    from workbench.load.models import load
    from workbench.probe.behavior import fit as fit_probe

    found = load_behavior(behavior, root=root)
    out = Path("runs") / f"probe-{found.name}" if out is None else out
    check_vacant(out)
    asked = Member("probe fit", fit_probe).check_options(options_of(option))
    options = {"chat": found.chat, "pool": found.pool, "groups": found.rows.groups, **asked}
    sweep = fit_probe(load(model, device=device, dtype=dtype), found.rows.texts, found.rows.labels, show=True, **options)
    with new_folder(out) as aside:
        sweep.save(aside / "probe.safetensors")
        sites = dict.fromkeys(place.site for place in sweep.places)
        save_directions([one for site in sites for one in sweep.directions(site=site)], aside / "directions.safetensors")
    frame = sweep.frame()
    shown = ["site", "layer", "metric", "value", "low", "high", "chance", "shuffled", "words", "gain", "gain_low", "gain_high"]
    typer.echo(frame[[name for name in shown if name in frame]].to_string(index=False, float_format="%.3f", na_rep="–"))
    typer.echo(f"{sweep!r}: {out}")


@probe.command("list")
def list_behaviors(root: Folder = Path("probes")) -> None:
    """The behaviors in a folder: name, rows, question."""
    from workbench.load.behaviors import behavior, behaviors

    for name in behaviors(root):
        found = behavior(name, root=root)
        typer.echo(f"{found.name:<24}{len(found):>6}  {found.question}")
