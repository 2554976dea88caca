"""A model before and after: what was forgotten, where it sits, which training rows explain it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import Device, Dtype, Opt, Root, app, options_of

OWN = ("modules", "top", "most_rows", "seeds")  # options of the diagnosis itself; all others are the method's


@app.command()
def diagnose(
    before: Annotated[str, typer.Argument(help="The model as it was: a folder or a hub id.")],
    after: Annotated[str, typer.Argument(help="The model later: a folder or a hub id, or a Delta of BEFORE (.safetensors).")],
    rows: Annotated[str, typer.Argument(help="What may have been forgotten: a .jsonl or .parquet file, or tofu:SPLIT.")],
    train: Annotated[str | None, typer.Option(help="Rows that were learned between the two.")] = None,
    unlearned: Annotated[str | None, typer.Option(help="Rows that were unlearned, by ascent.")] = None,
    control: Annotated[str | None, typer.Option(help="Rows that nothing should have happened to.")] = None,
    root: Root = None,
    method: Annotated[str, typer.Option(help="A registered influence; `workbench methods` lists them.")] = "gradient_similarity",
    level: Annotated[float, typer.Option(help="Largest expected share of rows called forgotten that are not.")] = 0.05,
    option: Opt = None,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("runs/diagnose"),
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Find what a change made a model forget, in which modules, through which training rows, and test it.

    -o takes options of the method; modules, top, most_rows and seeds of the diagnosis; and recipe.KEY, an option of the fine-tuning
    of BEFORE on --train, which is then repeated without the blamed rows.
    """
    from workbench.core.delta import Delta
    from workbench.core.registry import Member
    from workbench.core.store import check_vacant
    from workbench.load.datasets import examples
    from workbench.load.models import load
    from workbench.report.sheet import print_table
    from workbench.study.diagnose import diagnose as run

    check_vacant(out)
    own, recipe, rest = _split(options_of(option))
    Member("diagnose", run).check_options(own)
    asked = examples(rows, root=root)
    sources = {"train": train, "unlearned": unlearned, "control": control}
    sets = {name: None if source is None else examples(source, root=root) for name, source in sources.items()}
    model = load(before, device=device, dtype=dtype)
    later = Delta.load(after) if after.endswith(".safetensors") else load(after, device=device, dtype=dtype)
    found = run(model, later, asked, **sets, method=method, options=rest, recipe=recipe or None, level=level, show=True, **own)
    found.save(out)
    print_table(out)
    typer.echo(f"report: {out / 'report.html'}")


def _split(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Options of the diagnosis, of the recipe, of the method."""
    own = {key: value for key, value in given.items() if key in OWN}
    recipe = {key.removeprefix("recipe."): value for key, value in given.items() if key.startswith("recipe.")}
    rest = {key: value for key, value in given.items() if key not in OWN and not key.startswith("recipe.")}
    return own, recipe, rest
