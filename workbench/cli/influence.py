"""Which training rows: influence of rows on queries, and rows that an edit moves."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.common import Device, Dtype, ModelArg, Opt, Out, Root, app, check_new, options_of

Rows = Annotated[str, typer.Option(help="Rows: a .jsonl or .parquet file, or tofu:SPLIT.")]


@app.command()
def influence(
    method: Annotated[str, typer.Argument(help="gradient_similarity, ekfac, text_match, ...; `workbench methods` lists them.")],
    model: ModelArg,
    query: Annotated[str, typer.Option(help="Rows whose loss is asked about: a .jsonl or .parquet file, or tofu:SPLIT.")],
    train: Annotated[str, typer.Option(help="Training rows: a .jsonl or .parquet file, or tofu:SPLIT.")],
    out: Out,
    root: Root = None,
    top: Annotated[int, typer.Option(min=1, help="Rows to print at each end of a query's ranking.")] = 5,
    queries: Annotated[int, typer.Option(min=1, help="Queries to print.")] = 3,
    option: Opt = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Influence of every training row on every query, higher = training on the row lowers the query's loss; written to OUT."""
    from workbench.core.registry import influence as methods
    from workbench.core.svg import shorten
    from workbench.load.datasets import examples
    from workbench.load.models import load

    member = methods[method]
    options = member.check_options(options_of(option))
    check_new(out)
    asked, rows = examples(query, root=root), examples(train, root=root)
    found = member.function(load(model, device=device, dtype=dtype), asked, rows, **options)
    found.save(out)
    text = {row.id: f"{row.prompt} {row.response}" for row in rows}
    frame = found.frame(top)
    for row in asked[:queries]:
        typer.echo(shorten(f"query {row.id}: {row.prompt} {row.response}", 110))
        for line in frame[frame["query"] == row.id].itertuples():
            typer.echo(f"{line.rank:>4}  {line.value:>+10.3g}  {shorten(f'{line.train}: {text[str(line.train)]}', 92)}")
    for key, value in found.provenance.notes.items():
        typer.echo(f"{key}: {value}")
    typer.echo(f"{found!r}: {out}")


@app.command("edit-to-data")
def edit_to_data(
    model: ModelArg,
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="A Delta, as `workbench unlearn` and `workbench edit` write it.")],
    rows: Rows,
    out: Annotated[Path, typer.Option(help="Where the table is written (.parquet).")],
    root: Root = None,
    top: Annotated[int, typer.Option(min=1, help="Rows to print at each end.")] = 10,
    option: Opt = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Which rows an edit moves: the change of each row's loss to first order. -o takes options of `edit_to_data`."""
    from workbench.attribute.data.edits import edit_to_data as measure
    from workbench.core.delta import Delta
    from workbench.core.registry import Member
    from workbench.load.datasets import examples
    from workbench.load.models import load

    options = Member("edit-to-data", measure).check_options(options_of(option))
    check_new(out)
    found = measure(load(model, device=device, dtype=dtype), Delta.load(delta), examples(rows, root=root), **options)
    found.save(out)
    order = found.ranked()
    shown = order if len(order) <= 2 * top else order[:top] + order[-top:]
    typer.echo(found.frame().iloc[shown].to_string(float_format="%.4f"))
    typer.echo(f"{found.name}, {found.unit}; higher: {found.higher} ({found.provenance.options['method']}): {out}")
