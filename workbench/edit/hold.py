"""Features of an activation held at a constant, in every pass: in the weights where that is exact, else by a hook.

A linear module y = W x + b reads the features; let W_F be its columns for the features F and c the constant.

    zero            W_F <- 0                                exact
    mean, resample  W_F <- 0,  b <- b + W_F c               exact, where the module has a bias
                    x_F <- c before the module              else: a hook, for there is no weight that could hold W_F c
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from workbench.core.activation import ActivationChange
from workbench.core.change import Change, Dense
from workbench.core.delta import Delta
from workbench.core.errors import ModelError, unknown
from workbench.edit.finish import finish
from workbench.edit.lines import readers
from workbench.edit.matched import matched_random
from workbench.edit.means import Texts, declared, mean_activations, one_token, with_values
from workbench.load.models import Model
from workbench.load.weights import parameter_name
from workbench.trace.changes import activation_change

KINDS = ("zero", "mean", "resample")


class Unit(NamedTuple):
    """Features of a site, and the linear component that reads it: "blocks.2.mlp.post", "blocks.2.mlp.out"."""

    site: str
    reader: str
    index: Int[Tensor, "k"]


class How(NamedTuple):
    """What units are held at, and how that is found. texts, bos, batch_tokens: of the declared set.   seed: of the drawn token."""

    kind: str
    texts: Texts | None
    bos: bool
    seed: int
    batch_tokens: int


class Constants(NamedTuple):
    """The places with the values they are to be held at, and what to say about them."""

    places: list[ActivationChange]
    data: dict[str, str]
    notes: dict[str, Any]


def check_kind(kind: str) -> None:
    """UnknownNameError for a kind of ablation there is not."""
    if kind not in KINDS:
        raise unknown("kind of ablation", kind, KINDS)


@torch.no_grad()
def hold(model: Model, method: str, units: Sequence[Unit], how: How, *, options: Mapping[str, Any], control: str) -> Delta:
    """The Delta that holds the units, or for control "change" a random one as large."""
    check_kind(how.kind)
    changes: dict[str, Change] = {}
    if how.kind == "zero":
        for unit in units:
            lines = readers(model, unit.reader)
            changes[lines.parameter] = lines.change(unit.index, -lines.read(model, unit.index))
        why = "weights: the columns that read the units are zero, which is exact"
        found = finish(model, method, changes, options=options, why=why, seed=how.seed)
        return matched_random(found, seed=how.seed) if control == "change" else found
    empty = [activation_change(model, u.site, "set", torch.zeros(len(u.index)), index=u.index) for u in units]
    constants = constants_of(model, method, empty, how)
    hooks = []
    for unit, place in zip(units, constants.places, strict=True):
        bias = bias_of(model, unit.reader)
        if bias is None:
            hooks.append(place)
            continue
        lines = readers(model, unit.reader)
        columns = lines.read(model, unit.index)
        changes[lines.parameter] = lines.change(unit.index, -columns)
        changes[bias] = Dense((place.values.to(columns) @ columns).cpu())
    found = finish(
        model,
        method,
        changes,
        hooks,
        options=options,
        why=reason(len(units) - len(hooks), len(hooks)),
        seed=how.seed,
        data=constants.data,
        notes=constants.notes,
    )
    return matched_random(found, seed=how.seed) if control == "change" else found


def constants_of(model: Model, job: str, places: Sequence[ActivationChange], how: How) -> Constants:
    """The places with their means over the declared set, or with what one drawn token of it has there."""
    said = declared(model, how.texts, job=f"{job}: kind={how.kind!r}", bos=how.bos)
    notes: dict[str, Any] = {"tokens": said.tokens, "texts": len(said.rows), "bos": how.bos}
    if how.kind == "mean":
        values = mean_activations(model, places, said, batch_tokens=how.batch_tokens)
    else:
        values, (row, position) = one_token(model, places, said, seed=how.seed)
        notes["token"] = {"text": row, "position": position}
    held = [with_values(place, value) for place, value in zip(places, values, strict=True)]
    return Constants(held, {"texts": said.fingerprint}, notes)


def reason(by_bias: int, by_hook: int) -> str:
    """Which part is done by weights, which by hooks, and why."""
    said = (
        [f"weights in {by_bias} place(s): columns zero and their constant in the bias, exact up to its rounding"] if by_bias else []
    )
    hooks = f"hooks in {by_hook} place(s): the module that reads or writes them has no bias to hold the constant"
    return "; ".join([*said, *([hooks] if by_hook else [])])


def bias_of(model: Model, component: str) -> str | None:
    """The parameter name of a linear component's bias, None where it has none."""
    module = model.sites.module(component)
    return parameter_name(model.hf, model.sites.path(component), "bias") if _has(module, "bias") else None


def weight_of(model: Model, component: str) -> str:
    """The parameter name of a linear component's weight.

    Raises: ModelError or UnknownNameError where the model has no such single matrix (mixture of experts).
    """
    if not _has(model.sites.module(component), "weight"):
        raise ModelError(f"{component!r} of {type(model.hf).__name__} is no linear module with a weight.")
    return parameter_name(model.hf, model.sites.path(component), "weight")


def _has(module: nn.Module, kind: str) -> bool:
    return isinstance(getattr(module, kind, None), nn.Parameter)
