"""Score the rows or the preference pairs of a file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import Device, Dtype, ModelArg, Opt, Root, app, options_of

_EITHER_END = 5  # rows printed from each end of the ranking
_TEXT = 48  # characters of a prompt that are printed


@app.command()
def score(
    method: Annotated[str, typer.Argument(help="ches, loss, el2n, ...; `workbench methods` lists them.")],
    model: ModelArg,
    rows: Annotated[str, typer.Argument(metavar="ROWS", help="A .jsonl or .parquet file of rows or pairs, or tofu:SPLIT.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the result; runs/score-METHOD by default.")] = None,
    keep: Annotated[float | None, typer.Option(help="Also write the pairs with the lowest scores, this share of them.")] = None,
    root: Root = None,
    option: Opt = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Score every row or pair; writes OUT/scores.parquet, and OUT/filtered.jsonl with --keep.

    How the scores were made, and which share of the pairs was kept, stands in the metadata of scores.parquet, which RowScores.load
    reads.
    """
    from dataclasses import replace

    from workbench.core.errors import InputError
    from workbench.core.registry import example_score
    from workbench.core.store import check_vacant, new_folder
    from workbench.load.datasets import examples, pairs
    from workbench.load.models import load
    from workbench.score.pair_scores import check_keep

    member = example_score[method]
    of_pairs = member.about["rows"] == "pairs"
    if keep is not None:
        check_keep(keep)
        if not of_pairs:
            raise InputError(
                f"score {member.name}: --keep filters preference pairs, and this is a score of single rows; leave it out."
            )
    if of_pairs and rows.startswith("tofu:"):
        raise InputError(
            f"score {member.name}: it scores preference pairs, and {rows!r} has one answer a question; give a .jsonl or .parquet "
            "file of prompt, chosen and rejected."
        )
    out = Path("runs") / f"score-{member.name}" if out is None else out
    check_vacant(out)
    options = member.check_options(options_of(option))
    shown = {"show": True} if "show" in member.options else {}
    read = pairs(rows) if of_pairs else examples(rows, root=root)
    found = member.function(load(model, device=device, dtype=dtype), read, **(shown | options))
    kept = "" if keep is None else f", {len(found.cut(keep))} pairs kept"
    noted = (
        {}
        if keep is None
        else {"filtered.jsonl": f"the {len(found.cut(keep))} of {len(found)} pairs with the lowest scores, keep {keep:g}"}
    )
    saved = replace(found, provenance=replace(found.provenance, notes={**found.provenance.notes, **noted}))
    with new_folder(out) as aside:
        saved.save(aside / "scores.parquet")
        if keep is not None:
            found.filter(keep, out=aside / "filtered.jsonl")
    typer.echo(_ranking(found, read))
    for line in found.said():
        typer.echo(line)
    typer.echo(f"{found.name} of {len(found)} rows{kept}; higher: {found.higher}: {out}")


def _ranking(found: Any, read: Any) -> str:
    """The highest and the lowest rows, with the beginning of their prompts."""
    from workbench.core.svg import number, shorten

    order = found.ranked()
    shown = order if len(order) <= 2 * _EITHER_END else order[:_EITHER_END] + order[-_EITHER_END:]
    place = {i: rank for rank, i in enumerate(order, 1)}
    wide = max(len(found.ids[i]) for i in shown)
    lines = [f"{'rank':>5}  {found.name:>12}  {'id':<{wide}}  prompt"]
    for i in shown:
        value = number(float(found.values[i]))
        lines.append(f"{place[i]:>5}  {value:>12}  {found.ids[i]:<{wide}}  {shorten(read[i].prompt, _TEXT)}")
    return "\n".join(lines)
