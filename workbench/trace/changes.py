"""From a site's name to the change of activations that an edit does there."""

from jaxtyping import Float, Int
from torch import Tensor, arange

from workbench.core.activation import ActivationChange, Kind
from workbench.core.errors import ModelError, UnknownNameError
from workbench.load.models import Model
from workbench.load.sites import Site

# A bridge computes attention itself and MLPs with a fused gate too, from their parts: their modules never run there. What they
# return is what their last part returns.
_LAST_PART = {"attn_out": "attn.o", "mlp_out": "mlp.out"}


def activation_change(
    model: Model, site: str, kind: Kind, values: Float[Tensor, "k"], *, index: Int[Tensor, "k"] | None = None
) -> ActivationChange:
    """The change `kind` of features `index` at a site, placed so that the model and its views do it.

    nnsight does it at every site. A TransformerLens bridge computes some sites without running their module, and a hook there
    would be lost (TransformerLens 4.3: ln1, ln2, resid_mid, ln_final and attn.q of GPT-2; mlp_in, mlp.pre, mlp.pre_linear and
    attn.q of Phi-3). While there is such a bridge, applying the edit is refused with a ModelError that names the site; a bridge
    that is made while the edit is applied is refused too.

    Args:
        site: with its layer, such as "blocks.2.resid_post".
        values: one a feature; see `core.activation` for what each kind does with them.
        index: features of the site; None for all of them.
    Raises: UnknownNameError for a site the model lacks; ShapeError if values and features do not go together.
    """
    place = _place(model, model.sites[site])
    part = None if place.part is None else (place.part.start, place.part.stop, place.part.step)
    features = arange(len(values)) if index is None else index
    return ActivationChange(kind, model.sites[site].name, place.module, place.side, part, features, values)


def _place(model: Model, site: Site) -> Site:
    block, _, below = site.name.rpartition(".")
    if below not in _LAST_PART:
        return site
    try:
        last = model.sites[f"{block}.{_LAST_PART[below]}"]
    except (UnknownNameError, ModelError):  # a mixture of experts has no one last part
        return site
    return last if last.module.startswith(site.module + ".") else site  # behind a norm (Gemma-2) the site is the norm's own
