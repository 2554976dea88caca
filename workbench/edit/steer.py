"""Steering: a direction added to an activation, at every position of every pass."""

import torch
from torch import Tensor

from workbench.core.activation import ActivationChange
from workbench.core.change import Dense
from workbench.core.delta import Delta
from workbench.core.direction import Direction
from workbench.core.errors import InputError, ModelError, ShapeError, UnknownNameError, unknown
from workbench.core.registry import edit
from workbench.edit.compare import logit_gap, rounding
from workbench.edit.finish import finish, named, noted
from workbench.edit.hold import bias_of
from workbench.edit.lines import readers
from workbench.edit.means import Texts, declared, mean_norm
from workbench.edit.places import check_control, elsewhere, stream
from workbench.load.models import Model
from workbench.trace.changes import activation_change

# What is written last before a site, on which the site depends one to one: (component, layers back)
_WRITTEN_BY = {
    "resid_post": ("mlp.out", 0),
    "mlp_out": ("mlp.out", 0),
    "resid_mid": ("attn.o", 0),
    "attn_out": ("attn.o", 0),
    "resid_pre": ("mlp.out", 1),
}


@edit(where="direction")
@torch.no_grad()
def steer(
    model: Model,
    direction: Direction,
    *,
    strength: float = 1.0,
    unit: str = "absolute",
    how: str = "hooks",
    texts: Texts | None = None,
    bos: bool = False,
    control: str = "",
    seed: int = 0,
    batch_tokens: int = 4096,
) -> Delta:
    """Add a direction to the activation it was found in.

    With u the direction, of norm 1, and x the activation at its site and layer:

        x <- x + strength u                       unit "absolute"
        x <- x + strength E||x|| u                unit "residual", E over the tokens of `texts`

    Args:
        strength: in the unit; 0 changes nothing, negative steers the other way.
        unit: "residual" compares over layers and models: 1 adds a vector as long as the stream is there on average.
        how: "hooks", exact at every site; or "bias", baked into the bias of the module that writes last before the site (the
            down-projection for resid_post, that of the layer before for resid_pre, the attention's for resid_mid), which an
            exported checkpoint keeps. Only where there is such a bias and nothing but a sum follows it.
        texts, bos: the declared set of unit "residual", as in `ablate_neurons`.
        control: "place", the same vector at another layer by chance; "change", a random direction of the same length.
        seed: of the controls.
    Returns: one hook, or a dense change of one bias. A hook at resid_mid is placed at attn_out: Hugging Face's blocks keep
        the stream aside before the second norm, so what is changed at its input does not stay in the stream.
    Raises: ShapeError for a direction of another width; UnknownNameError for a site the model lacks; InputError for a bad option
        or missing texts; ModelError for how="bias" where it would not be exact, saying why.
    Reference: Turner et al. 2023, arXiv:2308.10248, who add at the prompt's first positions only; Arditi et al. 2024,
        arXiv:2406.11717, who add at all positions, as here.
    """
    check_control(control)
    for name, value, known in (("unit of strength", unit, ("absolute", "residual")), ("way to steer", how, ("hooks", "bias"))):
        if value not in known:
            raise unknown(name, value, known)
    if not torch.isfinite(torch.tensor(strength)):
        raise InputError(f"steer: strength is {strength}, expected a finite number.")
    place = _place(model, direction, direction.layer)
    options = {"strength": strength, "unit": unit, "how": how, "bos": bos, "control": control, "direction": named(direction)}
    length, data, notes = strength, {}, {}
    if unit == "residual":
        said = declared(model, texts, job="steer: unit='residual'", bos=bos)
        notes = {"mean_norm": mean_norm(model, place, said, batch_tokens=batch_tokens), "tokens": said.tokens}
        length, data = strength * notes["mean_norm"], {"texts": said.fingerprint}
    layer = direction.layer
    if control == "place":
        layer = _other_layer(model, direction, how, seed)
    vector = (
        length * (direction.random(seed=stream(seed, "random direction")) if control == "change" else direction).vector.double()
    )
    hook = _place(model, direction, layer, vector)
    options |= {"edited": f"blocks.{layer}.{direction.site}"}
    why = "one hook, as asked for"
    by_hook = finish(model, "steer", {}, [hook], options=options, why=why, seed=seed, data=data, notes=notes)
    if how == "hooks" or not length:
        return by_hook
    name = _bias(model, direction.site, layer)
    why = f"weights: {name}, the bias written last before {direction.site}"
    baked = finish(model, "steer", {name: Dense(vector)}, options=options, why=why, seed=seed, data=data, notes=notes)
    gap = logit_gap(model, baked, by_hook)
    if gap > rounding(model.dtype):
        raise ModelError(
            f"steer: how='bias' would not be exact in {type(model.hf).__name__}: with the bias, logits differ from those with the "
            f"hook by up to {gap:.3g} of their standard deviation. Use how='hooks'."
        )
    return noted(baked, {"gap": gap})


def _place(model: Model, direction: Direction, layer: int, vector: Tensor | None = None) -> ActivationChange:
    """The addition at the direction's site of a layer; of nothing yet where no vector is given.

    Raises: ShapeError for a direction of another width.
    """
    width = _width(model, direction.site, layer)
    if len(direction.vector) != width:
        raise ShapeError(
            f"steer: the direction has {len(direction.vector)} features, blocks.{layer}.{direction.site} has {width}. "
            "Was it found on another model, or at another site?"
        )
    written = "attn_out" if direction.site == "resid_mid" else direction.site
    reading = vector is None  # the norm of the stream is that of resid_mid itself
    values = torch.zeros(width) if vector is None else vector.float()
    return activation_change(model, f"blocks.{layer}.{direction.site if reading else written}", "add", values)


def _width(model: Model, site: str, layer: int) -> int:
    shape = model.sites.at(site, layer=layer).shape
    if shape.endswith("d_mlp"):
        return len(model.sites.value_vectors(layer).indices())
    if shape.endswith("n_heads*d_head"):
        return len(readers(model, f"blocks.{layer}.attn.o"))
    return model.d_model


def _bias(model: Model, site: str, layer: int) -> str:
    """The parameter name of the bias that is written last before a site.

    Raises: ModelError saying why there is none that does the same.
    """
    where = f"steer: how='bias' at blocks.{layer}.{site}"
    if site not in _WRITTEN_BY:
        raise ModelError(f"{where}: no bias is added there; it works for {', '.join(_WRITTEN_BY)}. Use how='hooks'.")
    last, back = _WRITTEN_BY[site]
    if layer < back:
        raise ModelError(f"{where}: only the embeddings are written before layer 0, and they have no bias. Use how='hooks'.")
    component = f"blocks.{layer - back}.{last}"
    out = activation_change(model, f"blocks.{layer - back}.{'attn_out' if last == 'attn.o' else 'mlp_out'}", "add", torch.zeros(1))
    try:
        path, name = model.sites.path(component), bias_of(model, component)
    except UnknownNameError as error:
        raise ModelError(f"{where}: {error} Use how='hooks'.") from error
    if name is None:
        raise ModelError(f"{where}: {path} of {type(model.hf).__name__} has no bias to hold the vector. Use how='hooks'.")
    if out.module != path:
        raise ModelError(f"{where}: a norm ({out.module}) follows {path} and would change the vector. Use how='hooks'.")
    return name


def _other_layer(model: Model, direction: Direction, how: str, seed: int) -> int:
    first = 1 if how == "bias" and direction.site == "resid_pre" else 0
    return elsewhere({0: [direction.layer]}, {0: range(first, model.n_layers)}, seed=seed)[0][0]
