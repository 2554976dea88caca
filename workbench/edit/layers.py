"""Ablation of whole attention or MLP blocks: what they add to the residual stream becomes zero, or a constant."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.core.activation import ActivationChange
from workbench.core.change import Change, Dense
from workbench.core.delta import Delta
from workbench.core.errors import ModelError, UnknownNameError, unknown
from workbench.core.numerics import wide
from workbench.core.registry import edit
from workbench.edit.finish import finish
from workbench.edit.hold import Constants, How, bias_of, check_kind, constants_of, weight_of
from workbench.edit.matched import matched_random
from workbench.edit.means import Texts
from workbench.edit.places import check_control, elsewhere, layers_of
from workbench.load.models import Model
from workbench.trace.changes import activation_change

PARTS = {"attn": ("attn_out", "attn.o"), "mlp": ("mlp_out", "mlp.out")}  # what it adds, and its last linear component


@edit(where="places", unit="layer")
@torch.no_grad()
def ablate_layers(
    model: Model,
    layers: Sequence[int],
    *,
    part: str = "both",
    kind: str = "zero",
    texts: Texts | None = None,
    bos: bool = False,
    control: str = "",
    seed: int = 0,
    batch_tokens: int = 4096,
) -> Delta:
    """Hold what the attention, the MLP or both of some layers add to the residual stream at a constant.

    With a the output that is added (sites attn_out, mlp_out: behind the norm where one follows, as in Gemma-2):

        zero       a <- 0                 mean   a <- E[a] over the tokens of `texts`
        resample   a <- a(t)              t one token of `texts`, the same for all layers and at every position

    Zero: the out-projection and its bias become zero, which is exact, also behind a norm that maps zero to zero (RMSNorm); behind
    another one, and in a mixture of experts, a hook at the site. A constant: the out-projection is zero, its bias the constant,
    where it has one and no norm follows; else a hook. provenance.notes["by"] says which.

    Args:
        layers: from 0.
        part: "attn", "mlp" or "both".
        texts, bos, seed: as in `ablate_neurons`.
        control: "place", as many other layers by chance; "change", the same layers, a random change as large (not for what a
            hook holds at zero: no other constant has norm zero).
    Returns: whole out-projections (dense), biases, hooks. Zero layers of a large model are large files.
    Raises: InputError for a layer that does not exist, none, the same twice, or missing texts; UnknownNameError for the part.
    """
    check_control(control)
    check_kind(kind)
    if part not in (*PARTS, "both"):
        raise unknown("part of a layer", part, (*PARTS, "both"))
    chosen = layers_of(layers, model.n_layers)
    options = {"layers": chosen, "part": part, "kind": kind, "bos": bos, "control": control}
    if control == "place":
        chosen = elsewhere({0: chosen}, {0: range(model.n_layers)}, seed=seed)[0]
    named = [
        (f"blocks.{n}.{site}", f"blocks.{n}.{last}") for n in chosen for key, (site, last) in PARTS.items() if part in (key, "both")
    ]
    places = [activation_change(model, site, "set", torch.zeros(model.d_model)) for site, _ in named]
    how = How(kind, texts, bos, seed, batch_tokens)
    held = Constants(places, {}, {}) if kind == "zero" else constants_of(model, "ablate_layers", places, how)
    changes: dict[str, Change] = {}
    hooks: list[ActivationChange] = []
    for (_, last), place in zip(named, held.places, strict=True):
        found = _in_weights(model, last, place, kind)
        changes |= found
        hooks += [] if found else [place]
    said = [f"weights in {len(places) - len(hooks)} place(s): the out-projection is zero, any constant its bias"] if changes else []
    if hooks:
        said.append(f"hooks in {len(hooks)} place(s): a norm that follows, no bias, or no single out-projection")
    options |= {"edited": chosen}
    made = finish(
        model, "ablate_layers", changes, hooks, options=options, why="; ".join(said), seed=seed, data=held.data, notes=held.notes
    )
    return matched_random(made, seed=seed) if control == "change" else made


def _in_weights(model: Model, last: str, place: ActivationChange, kind: str) -> dict[str, Change]:
    """The changes that hold `place` at its values, or none where no weights can."""
    try:
        weight, path = weight_of(model, last), model.sites.path(last)
    except (ModelError, UnknownNameError):
        return {}  # a mixture of experts
    bias = bias_of(model, last)
    direct = place.module == path and place.side == "output"
    if kind == "zero" and not (direct or _keeps_zero(model, place)):
        return {}
    if kind != "zero" and not (direct and bias):
        return {}
    changes: dict[str, Change] = {weight: Dense(-_of(model, weight))}
    if bias:
        changes[bias] = Dense(place.values - _of(model, bias) if kind != "zero" else -_of(model, bias))
    return changes


def _of(model: Model, name: str) -> Tensor:
    return wide(model.hf.get_parameter(name).detach()).cpu()


def _keeps_zero(model: Model, place: ActivationChange) -> bool:
    """Whether the norm behind the out-projection maps zero to zero."""
    zero = torch.zeros(1, 1, model.d_model, dtype=model.dtype, device=model.device)
    return place.side == "output" and not bool(model.hf.get_submodule(place.module)(zero).any())
