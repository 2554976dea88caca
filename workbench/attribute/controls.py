"""Scores every localization is compared with: the size of the weight, and chance."""

import torch

from workbench.attribute.gather import Patterns, choose_parameters, coverage, listed
from workbench.core.numerics import generator
from workbench.core.records import Examples, Provenance, check_disjoint
from workbench.core.registry import attribution
from workbench.core.scores import Scores
from workbench.core.store import text_sha256
from workbench.load.models import Model
from workbench.load.weights import transposed


@attribution
def magnitude(model: Model, forget: Examples, retain: Examples, *, include: Patterns = "*", exclude: Patterns = ()) -> Scores:
    """Size of each weight, whatever the data: S_i = |w_i|, float32.

    Args:
        forget, retain: checked for shared rows, otherwise not used; every attribution has the same signature.
        include, exclude: patterns of Hugging Face parameter names.
    """
    check_disjoint(forget, retain)
    names = choose_parameters(model, include, exclude)
    sizes = {name: model.hf.get_parameter(name).detach().float().abs().cpu() for name in names}
    notes = {"coverage": coverage(model, sizes)}
    return Scores(
        sizes, Provenance("magnitude", model.fingerprint(), dtype=str(model.dtype), notes=notes), transposed(model.hf, sizes)
    )


@attribution
def random(
    model: Model, forget: Examples, retain: Examples, *, include: Patterns = "*", exclude: Patterns = (), seed: int = 0
) -> Scores:
    """Chance: uniform numbers in [0, 1), independent of the data; a tensor's are fixed by the seed, its name and its shape.

    `Mask.matched_random` is the sharper control for a given mask: as many weights in every tensor as the mask has.

    Args:
        forget, retain: checked for shared rows, otherwise not used; every attribution has the same signature.
        include, exclude: patterns of Hugging Face parameter names.
    """
    check_disjoint(forget, retain)
    shapes = model.shapes()
    source = {name: generator(int(text_sha256([seed, name])[:15], 16)) for name in choose_parameters(model, include, exclude)}
    drawn = {name: torch.rand(shapes[name], generator=each) for name, each in source.items()}
    notes = {"coverage": coverage(model, drawn)}
    options = {"include": listed(include), "exclude": listed(exclude)}
    about = Provenance("random", model.fingerprint(), options=options, seed=seed, notes=notes)
    return Scores(drawn, about, transposed(model.hf, drawn))
