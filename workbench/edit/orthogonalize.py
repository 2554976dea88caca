"""Directional ablation: nothing can write a direction to the residual stream any more."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.core.change import Change, Dense, LowRank
from workbench.core.delta import Delta
from workbench.core.direction import Direction
from workbench.core.errors import InputError, ModelError, ShapeError, UnknownNameError, unknown
from workbench.core.registry import edit
from workbench.edit.compare import logit_gap, rounding
from workbench.edit.finish import finish, named, noted
from workbench.edit.hold import bias_of, weight_of
from workbench.edit.lines import products
from workbench.edit.places import check_control, elsewhere, layers_of, stream
from workbench.load.models import Model
from workbench.load.weights import row_slice
from workbench.trace.changes import activation_change

_LAST = {"attn_out": "attn.o", "mlp_out": "mlp.out"}


class Asked(NamedTuple):
    """What is removed (a vector of norm 1), how much of it, and where; `embed`: from the embeddings too."""

    vector: Tensor
    strength: float
    layers: list[int]
    embed: bool


@edit(where="direction")
@torch.no_grad()
def orthogonalize(
    model: Model,
    direction: Direction,
    *,
    strength: float = 1.0,
    how: str = "weights",
    layers: Sequence[int] | None = None,
    control: str = "",
    seed: int = 0,
) -> Delta:
    """Remove a direction from everything that writes to the residual stream.

    With r the direction, of norm 1, W and b any matrix and bias that write to the stream (embeddings, learned positions, every
    out-projection of attention and MLP):

        W <- W - strength r r' W,   b <- b - strength r r' b                     how "weights"
        x <- x - strength r r' x    for x = resid_pre of layer 0, every attn_out and every mlp_out      how "hooks"

    The two agree in logits where the stream is a plain sum of these (Llama, GPT-2, NeoX). They do not where a norm follows
    the out-projection (Gemma-2, OLMo-2), and where the unembedding is tied to the embedding, which "weights" then changes too.
    That is measured: the two are compared on a few tokens, provenance.notes["gap"] holds the largest difference of a logit in
    standard deviations of the logits, and a gap beyond rounding warns with its cause. "hooks" is exact everywhere.

    Args:
        direction: its site and layer do not matter here: it is removed from the whole stream.
        strength: 1 removes it, 0 changes nothing, between them a share of it.
        layers: remove it from what these layers write, embeddings not; None for all layers and the embeddings.
        control: "place", as many other layers by chance (needs `layers`); "change", a random direction in place of this one.
        seed: of the controls.
    Returns: changes of rank one, and dense ones of the biases; or hooks.
    Raises: ShapeError for a direction of another width; InputError for a bad option; ModelError where the weights cannot do it
        (mixture of experts, embeddings of another width): use how="hooks".
    Reference: Arditi et al. 2024, arXiv:2406.11717. Their weight version leaves biases and learned positions as they are.
    """
    check_control(control)
    if how not in ("weights", "hooks"):
        raise unknown("way to orthogonalize", how, ("weights", "hooks"))
    if not 0 <= strength <= 1:
        raise InputError(f"orthogonalize: strength is {strength}, expected 0 (nothing) to 1 (all of the direction).")
    if len(direction.vector) != model.d_model:
        raise ShapeError(
            f"orthogonalize: the direction has {len(direction.vector)} features, the residual stream {model.d_model}. "
            "Was it found on another model, or at a site of another width?"
        )
    edited = layers_of(layers, model.n_layers)
    options = {"strength": strength, "how": how, "layers": edited if layers is not None else None, "control": control}
    if control == "place":
        edited = _other_layers(model, edited, layers, seed)
    used = direction.random(seed=stream(seed, "random direction")) if control == "change" else direction
    asked = Asked(used.vector.double(), strength, edited, layers is None)
    options |= {"direction": named(direction), "edited": edited}
    by_hooks = finish(model, "orthogonalize", {}, _hooks(model, asked), options=options, why="hooks, as asked for", seed=seed)
    if how == "hooks" or not strength:
        return by_hooks
    changes = _weights(model, asked)
    made = finish(model, "orthogonalize", changes, options=options, why="weights and biases, as asked for", seed=seed)
    notes: dict[str, Any] = {"gap": logit_gap(model, made, by_hooks)}
    causes = _causes(model, asked)
    if notes["gap"] > (rounding(torch.float32) if causes else rounding(model.dtype)):
        notes["gap_causes"] = causes or [
            f"rounding to {model.dtype}, or something that is not linear behind what writes the stream"
        ]
    if "gap_causes" in notes and not control:
        warnings.warn(
            f"orthogonalize: in {type(model.hf).__name__} removing the direction from the weights is not removing it from the "
            f"activations; logits differ by up to {notes['gap']:.3g} of their standard deviation. Cause: "
            f"{'; '.join(notes['gap_causes'])}. Use how='hooks' where only the stream should change.",
            stacklevel=3,
        )
    return noted(made, notes)


def _hooks(model: Model, asked: Asked) -> list[Any]:
    """A projection at every place where something is written to the stream."""
    # x - (x . v) v with v = sqrt(s) r is x - s (x . r) r
    values = (asked.strength**0.5 * asked.vector).float()
    names = [f"blocks.{layer}.{site}" for layer in asked.layers for site in _LAST]
    return [activation_change(model, name, "project", values) for name in (["blocks.0.resid_pre"] if asked.embed else []) + names]


def _weights(model: Model, asked: Asked) -> dict[str, Change]:
    """The change of every matrix and bias that writes to the stream."""
    changes: dict[str, Change] = {}
    for component in ["embed", *_positions(model)] if asked.embed else []:
        name = weight_of(model, component)
        changes[name] = _rank_one(model, name, 1, asked)  # [token, d_model]
    for component in [f"blocks.{layer}.{last}" for layer in asked.layers for last in _LAST.values()]:
        try:
            where = row_slice(model.hf, model.sites.path(component))
        except UnknownNameError as error:
            raise ModelError(f"orthogonalize: {error} Use how='hooks'.") from error
        changes[where.parameter] = _rank_one(model, where.parameter, where.dim, asked)
        bias = bias_of(model, component)
        if bias:
            values = model.hf.get_parameter(bias).detach().double().cpu()
            changes[bias] = Dense(-asked.strength * (values @ asked.vector) * asked.vector)
    return changes


def _rank_one(model: Model, name: str, out: int, asked: Asked) -> LowRank:
    """-s r r' W, where axis `out` of W runs over the stream's features."""
    weight = model.hf.get_parameter(name).detach()
    if weight.shape[out] != model.d_model:
        raise ModelError(
            f"orthogonalize: {name} is {tuple(weight.shape)} and does not write the stream's {model.d_model} features. "
            "Use how='hooks'."
        )
    written, _ = products(weight, 1 - out, asked.vector)
    vector, shape = -asked.strength * asked.vector, tuple(weight.shape)
    if out == 0:
        return LowRank(vector[:, None], written[None, :], shape)
    return LowRank(written[:, None], vector[None, :], shape)


def _positions(model: Model) -> list[str]:
    """The component of learned positions, if the model has one."""
    try:
        weight_of(model, "pos_embed")
    except (UnknownNameError, ModelError):
        return []
    return ["pos_embed"]


def _causes(model: Model, asked: Asked) -> list[str]:
    """Why weights and activations may differ here."""
    found = []
    tied = model.hf.get_output_embeddings()
    if asked.embed and tied is not None and tied.weight is model.hf.get_parameter(weight_of(model, "embed")):
        written, norms = products(tied.weight.detach(), 0, asked.vector)
        share = float((written.double().square().sum() / norms.double().square().sum()).sqrt())
        found.append(f"the unembedding is the embedding and loses the direction too, {share:.2%} of its norm")
    first = asked.layers[0]
    for site, last in _LAST.items():
        place = activation_change(model, f"blocks.{first}.{site}", "project", asked.vector)
        if place.module != model.sites.path(f"blocks.{first}.{last}"):
            found.append(f"a norm ({place.module.rpartition('.')[2]}) follows the out-projection and turns what it wrote")
    return found


def _other_layers(model: Model, edited: list[int], layers: Sequence[int] | None, seed: int) -> list[int]:
    if layers is None:
        raise InputError("orthogonalize: control 'place' needs layers; all of them were edited, so there is no elsewhere.")
    return elsewhere({0: edited}, {0: range(model.n_layers)}, seed=seed)[0]
