"""Scores every localization is compared with: the size of the weight, and chance."""

import torch

from workbench.core.numerics import generator
from workbench.core.records import Examples, Provenance
from workbench.core.registry import attribution
from workbench.core.weights import Scores
from workbench.load.models import Model


@attribution
def magnitude(model: Model, forget: Examples, retain: Examples) -> Scores:
    """Size of each weight, whatever the data: S_i = |w_i|, float32.

    Args: forget, retain: not used; every attribution has the same signature.
    """
    del forget, retain
    sizes = {n: p.detach().float().abs().cpu() for n, p in model.hf.named_parameters() if p.is_floating_point()}
    return Scores(sizes, Provenance("magnitude", model.fingerprint(), dtype=str(model.dtype)))


@attribution
def random(model: Model, forget: Examples, retain: Examples, *, seed: int = 0) -> Scores:
    """Chance: uniform numbers in [0, 1), independent of the data, the same for the same seed and model.

    `Mask.matched_random` is the sharper control for a given mask: as many weights in every tensor as the mask has.

    Args: forget, retain: not used; every attribution has the same signature.
    """
    del forget, retain
    source = generator(seed)
    named = ((n, p) for n, p in model.hf.named_parameters() if p.is_floating_point())
    drawn = {n: torch.rand(p.shape, generator=source) for n, p in named}
    return Scores(drawn, Provenance("random", model.fingerprint(), seed=seed))
