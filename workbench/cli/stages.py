"""One stage at a time: attribute, unlearn, prefer."""

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import (
    Device,
    Dtype,
    Forget,
    ModelArg,
    Opt,
    Out,
    Retain,
    Root,
    app,
    check_new,
    finish,
    options_of,
    sets_of,
)


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
    options = member.check_options(options_of(option))
    sets = sets_of(forget, retain, root)
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
    from workbench.core.mask import Mask
    from workbench.core.registry import objective as objectives
    from workbench.load.models import load
    from workbench.unlearn.run import run as run_unlearn

    member = objectives[objective]
    own, given = _options_of_both(member, "unlearn", run_unlearn, option)
    check_new(out, export)
    frozen = None if mask is None else Mask.load(mask)
    sets = sets_of(forget, retain, root)
    loaded = load(model, device=device, dtype=dtype)
    found = run_unlearn(loaded, *sets, objective=member.name, options=own, mask=frozen, show=True, **given)
    _finish_training(loaded, found, out, export)


@app.command()
def prefer(
    objective: Annotated[str, typer.Argument(help="dpo, ipo, dpo_sft; `workbench methods` lists them.")],
    model: ModelArg,
    pairs: Annotated[Path, typer.Option(help="Preference pairs: a .jsonl or .parquet file of prompt, chosen, rejected.")],
    out: Out,
    mask: Annotated[Path | None, typer.Option(help="Only these weights may move (a mask.safetensors).")] = None,
    option: Opt = None,
    export: Annotated[Path | None, typer.Option(help="Also write the tuned model as a Hugging Face folder.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Tune to preference pairs; writes the change as a Delta to OUT. -o takes options of `unlearn.prefer` and of the objective."""
    from workbench.core.mask import Mask
    from workbench.core.registry import preference
    from workbench.load.datasets import pairs as read_pairs
    from workbench.load.models import load
    from workbench.unlearn.prefer import prefer as run_prefer

    member = preference[objective]
    own, given = _options_of_both(member, "prefer", run_prefer, option)
    check_new(out, export)
    frozen = None if mask is None else Mask.load(mask)
    rows = read_pairs(pairs)
    loaded = load(model, device=device, dtype=dtype)
    found = run_prefer(loaded, rows, objective=member.name, options=own, mask=frozen, show=True, **given)
    _finish_training(loaded, found, out, export)


def _options_of_both(member: Any, command: str, function: Any, option: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of an objective, and those of the function that trains with it."""
    from workbench.core.errors import InputError
    from workbench.core.registry import Member

    given = options_of(option)
    own = member.check_options({key: given.pop(key) for key in list(given) if key in member.options})
    for key in ("objective", "options", "mask", "show"):
        if key in given:
            raise InputError(f"option {key!r} is not given with -o; see workbench {command} --help.")
    return own, Member(command, function).check_options(given)


def _finish_training(model: Any, found: Any, out: Path, export: Path | None) -> None:
    """Write the Delta of a training, and say what moved."""
    finish(model, found.delta, out, export)
    typer.echo(f"moved {found.moved:.2%} of the weights in {found.audit.steps} steps, {found.audit.tokens:,} tokens")
    if found.audit.stopped:
        typer.echo(found.audit.stopped)
