"""Compute an edit: from two sets of rows, along a direction, or at places in the model."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import Device, Dtype, ModelArg, Opt, Out, Root, app, check_new, finish, options_of, sets_of


@app.command()
def edit(
    method: Annotated[str, typer.Argument(help="dampen, surgery, ablate_heads, ...; `workbench methods` lists them.")],
    model: ModelArg,
    out: Out,
    forget: Annotated[str | None, typer.Option(help="Rows to forget, for an edit that looks at two sets.")] = None,
    retain: Annotated[str | None, typer.Option(help="Rows to keep, for the same.")] = None,
    direction: Annotated[
        Path | None, typer.Option(help="A direction, or one for every layer, as `workbench probe fit` writes them.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Take the direction of this layer out of several.")] = None,
    place: Annotated[
        list[str] | None, typer.Option(help="LAYER.INDEX of a neuron, head or value vector, LAYER of a layer; repeat it.")
    ] = None,
    texts: Annotated[str | None, typer.Option(help="Rows over which means are taken, for an edit that needs them.")] = None,
    root: Root = None,
    controls: Annotated[bool, typer.Option(help="Also compute the same edit elsewhere, and a random one of its size.")] = True,
    option: Opt = None,
    export: Annotated[Path | None, typer.Option(help="Also write the edited model as a Hugging Face folder.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Compute an edit without training; writes the change as a Delta to OUT, and its controls beside it."""
    from workbench.core.registry import edit as edits
    from workbench.edit import size, with_controls
    from workbench.load.models import load

    member = edits[method]
    options = member.check_options(options_of(option) | _texts(member, texts, root))
    where = _where(member, forget, retain, root, direction, layer, place)
    alone = not controls or "control" not in member.options or bool(options.get("control"))
    check_new(out, export)
    beside = {
        name: (said, out.with_name(f"{out.stem}-{said}{out.suffix}"))
        for name, said in (("place", "elsewhere"), ("change", "random"))
        if not alone
    }
    for _, path in beside.values():
        check_new(path)
    loaded = load(model, device=device, dtype=dtype)
    if alone:
        delta = member.function(loaded, *where, **options)
        finish(loaded, delta, out, export)
        typer.echo(f"edit: {size(loaded, delta)}")
        return
    seed = options.pop("seed", 0)
    found = with_controls(method, loaded, *where, seed=seed, options={k: v for k, v in options.items() if k != "control"})
    finish(loaded, found.delta, out, export)
    typer.echo(f"edit: {found.sizes['edit']}")
    for name, (said, path) in beside.items():
        if name in found.missing:
            typer.echo(f"control, {said}: none; {found.missing[name]}")
            continue
        found.arms[name].save(path)
        typer.echo(f"control, {said}: {found.sizes[name]}: {path}")


def _where(
    member: Any,
    forget: str | None,
    retain: str | None,
    root: str | None,
    direction: Path | None,
    layer: int | None,
    place: list[str] | None,
) -> tuple[Any, ...]:
    """What this edit wants to be told: two sets of rows, a direction, or places; InputError for any of the others."""
    from workbench.core.errors import InputError

    given = {"--forget": forget, "--retain": retain, "--direction": direction, "--layer": layer, "--place": place}
    uses = {"sets": ("--forget", "--retain"), "direction": ("--direction", "--layer")}.get(member.about["where"], ("--place",))
    unused = [name for name, value in given.items() if name not in uses and value not in (None, [])]
    if unused:
        raise InputError(
            f"edit {member.name}: does not use {', '.join(unused)}; it takes {' and '.join(uses)}. Leave the others out."
        )
    needs = {"sets": ("--forget and --retain", forget and retain), "direction": ("--direction", direction)}
    said, there = needs.get(member.about["where"], ("--place", place))
    if not there:
        raise InputError(f"edit {member.name}: give {said}; without, there is nothing that says what to change.")
    if member.about["where"] == "sets":
        return sets_of(str(forget), str(retain), root)
    if member.about["where"] == "direction":
        return (_directions(member, Path(str(direction)), layer),)
    return (parse_places(place or []),)


def _directions(member: Any, path: Path, layer: int | None) -> Any:
    """One direction, or one for every layer where the edit takes several."""
    from workbench.core.direction import Direction, load_directions
    from workbench.core.errors import InputError

    found = load_directions(path)
    if layer is not None:
        found = [one for one in found if one.layer == layer]
        if len(found) != 1:
            raise InputError(f"{path}: has {len(found)} directions of layer {layer}, expected one.")
    if len(found) == 1:
        return found[0]
    if inspect.signature(member.function).parameters["direction"].annotation is Direction:
        layers = ", ".join(str(one.layer) for one in found)
        raise InputError(
            f"edit {member.name}: {path} holds {len(found)} directions, and it takes one; give --layer, one of {layers}."
        )
    return found


def parse_places(given: list[str]) -> list[Any]:
    """["3.120", "2.7"] as places, ["3"] as layers.

    Raises: InputError for anything else.
    """
    from workbench.core.components import Place
    from workbench.core.errors import InputError

    numbers = [text.split(".") for text in given]
    if (
        any(not all(part.isascii() and part.isdigit() for part in parts) for parts in numbers)
        or len({len(parts) for parts in numbers}) != 1
    ):
        raise InputError(f"places {', '.join(given)}: expected LAYER.INDEX, such as 3.120, or LAYER alone, all of one kind.")
    if len(numbers[0]) == 1:
        return [int(parts[0]) for parts in numbers]
    if len(numbers[0]) != 2:
        raise InputError(f"place {given[0]}: expected LAYER.INDEX, such as 3.120.")
    return [Place(int(layer), int(index)) for layer, index in numbers]


def _texts(member: Any, source: str | None, root: str | None) -> dict[str, Any]:
    """The declared set of an edit that takes means over one."""
    from workbench.core.errors import InputError
    from workbench.load.datasets import examples

    if source is None:
        return {}
    if "texts" not in member.options:
        raise InputError(f"edit {member.name}: takes no texts; leave --texts out.")
    return {"texts": examples(source, root=root)}
