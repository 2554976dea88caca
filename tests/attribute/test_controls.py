"""Magnitude and chance."""

import torch

from tests.tiny import tiny, tiny_sets
from workbench.attribute import magnitude, random


def test_magnitude_is_the_weights_size():
    model = tiny()
    found = magnitude(model, *tiny_sets())
    for name, p in model.hf.named_parameters():
        assert torch.equal(found[name], p.detach().float().abs())


def test_random_is_uniform_and_fixed_by_the_seed():
    model = tiny(d_model=32)
    one, same, other = (random(model, *tiny_sets(), seed=s) for s in (0, 0, 1))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    values = torch.cat([one[n].flatten() for n in one]).double()
    # mean 1/2 with standard error sqrt(1/12/n), five of them
    assert abs(float(values.mean()) - 0.5) < 5 * (1 / 12 / len(values)) ** 0.5
    assert 0 <= float(values.min()) < 0.01 < 0.99 < float(values.max()) < 1


def test_a_tensors_random_scores_do_not_depend_on_the_others():
    whole, part = random(tiny(), *tiny_sets(), seed=3), random(tiny(), *tiny_sets(), seed=3, include="*.mlp.*")
    assert all(torch.equal(whole[name], part[name]) for name in part)
    assert part.provenance.options == {"include": ["*.mlp.*"], "exclude": []}
