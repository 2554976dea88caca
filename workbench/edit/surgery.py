"""Model Surgery: move the few rows of a matrix that are most opposed to a behavior's direction along that direction."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.delta import Delta
from workbench.core.direction import Direction
from workbench.core.errors import InputError, NumericsError, unknown
from workbench.core.numerics import generator
from workbench.core.registry import edit
from workbench.edit.finish import finish, named
from workbench.edit.lines import Lines, Measured, lines_of, measure
from workbench.edit.places import check_control, elsewhere, layers_of, spread, stream, tensor_of
from workbench.load.models import Model

CHOICES = ("bottom", "top", "random", "all")
READS = {**dict.fromkeys(("gate", "up", "in"), "mlp_in"), **dict.fromkeys(("q", "k", "v"), "ln1")}  # the site the rows read
WRITES = {  # the site the columns write to, and those it is then part of
    **dict.fromkeys(("down", "out"), ("mlp_out", "resid_post")),
    "o": ("attn_out", "resid_mid", "resid_post"),
}


def site_of(matrix: str) -> str:
    """Where a direction for the lines of this matrix is at home: what its rows read, or its columns write to.

    Raises: UnknownNameError for a matrix surgery does not know.
    """
    homes = READS | {name: sites[0] for name, sites in WRITES.items()}
    if matrix not in homes:
        raise unknown("matrix", matrix, homes)
    return homes[matrix]


class Rule(NamedTuple):
    """How lines are chosen. count: how many of all layers together; None for all of them."""

    choose: str
    scope: str
    count: int | None
    seed: int


@edit(where="direction")
@torch.no_grad()
def surgery(
    model: Model,
    direction: Direction | Sequence[Direction],
    *,
    matrix: str = "gate",
    rows: int | None = None,
    fraction: float | None = None,
    choose: str = "bottom",
    scope: str = "global",
    layers: Sequence[int] | None = None,
    strength: float = 0.5,
    scale: str = "row",
    paper_norm: float | None = None,
    control: str = "",
    seed: int = 0,
) -> Delta:
    """Add a direction to the rows of a matrix, in all layers, that point most against it.

    For each row w of the matrix and the direction u of norm 1:

        cos(w) = w . u / ||w||
        chosen = the `rows` rows of smallest cosine over all layers
        w <- w + strength ||w|| u        scale "row"
        w <- w + strength paper_norm u   scale "paper"

    Adding u to a gate row that opposes it opens this gate where the behavior is present, and so writes what stands against the
    behavior: the sign is plus, on the most opposed rows. An edited row's pre-activation moves by exactly
    strength ||w|| u . x. Columns of W_out and W_O count as rows here: they are vectors of the residual stream too.

    Args:
        direction: one for every layer, as published, or one for each edited layer. The rows of gate, up and in read the site
            mlp_in, those of q, k and v the output of the norm before attention (ln1); columns of down and o write to mlp_out and
            attn_out. A direction found elsewhere lies in another basis, which provenance.notes["site"] says; the published one is
            of the final normed stream, for all layers.
        matrix: gate, up, in (an MLP without gate), q, k, v: rows; down (or out), o: columns.
        rows, fraction: how many rows of all edited layers together, or their share; give one, or neither with choose="all".
        choose: "bottom" the smallest cosine, "top" the largest, "random" as many by chance, "all".
        scope: "global", all layers compete; "layer", each gives an equal share, the first ones one more where it does not divide.
        layers: those to edit; all without.
        strength: in row norms for scale "row"; 0 changes nothing, negative subtracts.
        paper_norm: for scale "paper", the norm of the un-normalized probe row that the published code adds.
        control: "place", the same done to as many other rows of every layer by chance; "change", to the chosen rows, along a random
            direction (one for each direction given), so that every row moves as far.
        seed: of choose="random" and of the controls.
    Returns: whole rows or columns; low rank where every row of a tensor is moved. provenance.notes has the chosen rows' cosines and
        their number by layer. Rows that are zero have no cosine and are never chosen.
    Raises: InputError for more rows than exist or a bad option; ShapeError for a direction of another width; ModelError for a
        matrix the model lacks; NumericsError for NaN weights.
    Reference: Wang et al. 2025, "Model Surgery", arXiv:2407.08770. Their code adds row 1 of a two-row softmax head, not normalized
        and not its difference from row 0, so that part of it is the untrained initialization; K is 16,384 gate rows, alpha 1.
    """
    check_control(control)
    _check(choose, scope, scale, strength, paper_norm)
    edited = layers_of(layers, model.n_layers)
    along = _by_layer(direction, edited)
    table = [lines_of(model, matrix, layer) for layer in edited]
    found = [measure(model, lines, one.vector) for lines, one in zip(table, along, strict=True)]
    rule = Rule(choose, scope, _count(rows, fraction, choose, sum(map(len, table))), seed)
    chosen = select(found, rule)
    if control == "place":
        taken, pools = dict(enumerate(c.tolist() for c in chosen)), dict(enumerate(_usable(one).tolist() for one in found))
        chosen = [tensor_of(indices) for indices in elsewhere(taken, pools, seed=seed).values()]
    added = [one.vector for one in along] if control != "change" else _random_like(direction, along, seed)
    changes = {}
    for lines, measured, picked, vector in zip(table, found, chosen, added, strict=True):
        lengths = measured.norm[picked] if scale == "row" else torch.full((len(picked),), float(paper_norm or 0.0))
        if len(picked) and strength:
            changes[lines.parameter] = lines.outer(picked, strength * lengths, vector)
    options = {"matrix": matrix, "rows": rows, "fraction": fraction, "choose": choose, "scope": scope, "layers": edited}
    options |= {"strength": strength, "scale": scale, "paper_norm": paper_norm, "control": control}
    given = [direction] if isinstance(direction, Direction) else along
    return finish(
        model,
        "surgery",
        changes,
        options=options | {"direction": [named(one) for one in given]},
        why=f"{'rows' if matrix in READS else 'columns'} of W_{matrix}",
        seed=seed,
        notes=_notes(matrix, edited, table, found, chosen, given),
    )


def select(found: Sequence[Measured], rule: Rule) -> list[Int[Tensor, "chosen"]]:
    """The chosen lines of each layer, sorted: one stable order over all layers, so that ties go to the lower layer and line.

    Raises: InputError if more are asked for than there are lines with a cosine; NumericsError for NaN weights.
    """
    usable = [_usable(one) for one in found]
    if rule.choose == "all":
        return usable
    source = generator(rule.seed)
    keys = [torch.full(one.norm.shape, torch.inf, dtype=one.norm.dtype) for one in found]
    for key, lines, one in zip(keys, usable, found, strict=True):
        cosine = one.cosine[lines]
        ranked = {"bottom": cosine, "top": -cosine}
        key[lines] = ranked[rule.choose] if rule.choose in ranked else torch.rand(len(lines), generator=source, dtype=key.dtype)
    groups = [keys] if rule.scope == "global" else [[key] for key in keys]
    rooms = [usable] if rule.scope == "global" else [[lines] for lines in usable]
    picked: list[Tensor] = []
    for group, room, count in zip(groups, rooms, spread(rule.count or 0, len(groups)), strict=True):
        have = sum(map(len, room))
        if count > have:
            where = "there are" if rule.scope == "global" else f"with scope='layer' layer number {len(picked)} of the edited has"
            raise InputError(f"surgery: {rule.count:,} rows are asked for, but {where} {have:,} that are not zero.")
        order = torch.cat(group).sort(stable=True).indices[:count]
        start = 0
        for key in group:
            picked.append((order[(order >= start) & (order < start + len(key))] - start).sort().values)
            start += len(key)
    return picked


def _usable(one: Measured) -> Int[Tensor, "line"]:
    """The lines that have a direction."""
    return (one.norm > 0).nonzero().squeeze(-1)


def _check(choose: str, scope: str, scale: str, strength: float, paper_norm: float | None) -> None:
    for name, value, known in (
        ("choice of rows", choose, CHOICES),
        ("scope", scope, ("global", "layer")),
        ("scale", scale, ("row", "paper")),
    ):
        if value not in known:
            raise unknown(name, value, known)
    if not torch.isfinite(torch.tensor(strength)):
        raise NumericsError(f"surgery: strength is {strength}, expected a finite number.")
    if (scale == "paper") != (paper_norm is not None):
        raise InputError(
            f"surgery: scale is {scale!r} and paper_norm {paper_norm}. paper_norm, the norm of the un-normalized probe row, goes "
            "with scale='paper' and only with it."
        )


def _count(rows: int | None, fraction: float | None, choose: str, total: int) -> int | None:
    """How many rows of all layers together."""
    if choose == "all":
        if rows is not None or fraction is not None:
            raise InputError("surgery: choose='all' takes every row; leave rows and fraction out.")
        return None
    if (rows is None) == (fraction is None):
        raise InputError("surgery: give rows or fraction, one of them (or choose='all').")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise InputError(f"surgery: fraction is {fraction:g}, expected 0 < fraction <= 1.")
        return max(1, round(fraction * total))
    if type(rows) is not int or not 1 <= rows <= total:
        raise InputError(f"surgery: rows is {rows!r}, expected 1 to {total:,}; the edited layers have that many.")
    return rows


def _by_layer(direction: Direction | Sequence[Direction], layers: Sequence[int]) -> list[Direction]:
    """The direction of every edited layer.

    Raises: InputError if one direction a layer is given and an edited layer has none, or two.
    """
    if isinstance(direction, Direction):
        return [direction] * len(layers)
    by_layer = {one.layer: one for one in direction}
    missing = [layer for layer in layers if layer not in by_layer]
    if len(by_layer) < len(direction) or missing:
        raise InputError(
            f"surgery: directions are given for layers {[one.layer for one in direction]}, expected one for each edited layer, "
            f"{list(layers)}. Pass one Direction for all of them, or name the layers."
        )
    return [by_layer[layer] for layer in layers]


def _random_like(
    direction: Direction | Sequence[Direction], along: Sequence[Direction], seed: int
) -> list[Float[Tensor, "d_model"]]:
    """A random direction in place of each given one."""
    if isinstance(direction, Direction):
        return [direction.random(seed=stream(seed, "random direction")).vector] * len(along)
    drawn = torch.randn(len(along), len(along[0].vector), generator=generator(stream(seed, "random direction")))
    return [Direction(vector, one.site, one.layer).vector for vector, one in zip(drawn, along, strict=True)]


def _notes(
    matrix: str,
    layers: Sequence[int],
    table: Sequence[Lines],
    found: Sequence[Measured],
    chosen: Sequence[Tensor],
    given: Sequence[Direction],
) -> dict[str, object]:
    cosine = torch.cat([one.cosine[picked].double() for one, picked in zip(found, chosen, strict=True)])
    notes: dict[str, object] = {
        "rows": len(cosine),
        "rows_of": sum(map(len, table)),
        "zero_rows": sum(int((one.norm == 0).sum()) for one in found),
        "rows_by_layer": {str(layer): len(picked) for layer, picked in zip(layers, chosen, strict=True)},
        "cosine": {"mean": float(cosine.mean()), "min": float(cosine.min()), "max": float(cosine.max())},
    }
    home, sites = (READS[matrix],) if matrix in READS else WRITES[matrix], {one.site for one in given}
    said = ["one direction for all layers"] if len(given) < len(layers) else []
    if not sites <= set(home):
        verb = "read" if matrix in READS else "write to"
        said.append(f"found at {', '.join(sorted(sites))}, while the lines of {matrix} {verb} {home[0]}: another basis")
    return notes | ({"site": "; ".join(said)} if said else {})
