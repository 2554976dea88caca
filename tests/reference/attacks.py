"""Slow truths about attacks, one position and one candidate at a time; imports nothing from workbench."""

import numpy as np
import torch

from tests.reference.lens import rms_norm, top


@torch.no_grad()
def lens_logits(hf, tokens, position):
    """Logits of every layer's logit lens at one position of a Llama, [layer, d_vocab] float64, from the blocks' outputs."""
    states = []
    handles = [
        block.register_forward_hook(lambda module, args, out: states.append(out[0] if isinstance(out, tuple) else out))
        for block in hf.model.layers
    ]
    hf(input_ids=torch.tensor([tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    gain, eps = hf.model.norm.weight.detach().double().numpy(), hf.model.norm.variance_epsilon
    unembed = hf.lm_head.weight.detach().double().numpy()
    return np.stack([unembed @ rms_norm(h.reshape(-1, h.shape[-1])[position].double().numpy(), gain, eps) for h in states])


def softmax(logits):
    """exp z / sum exp z."""
    e = np.exp(logits - logits.max())
    return e / e.sum()


def head_lists(logits):
    """All tokens by falling logit of every layer, the last layer first."""
    return [top(layer, len(layer)) for layer in logits[::-1]]


def delta_lists(logits):
    """All tokens by how much probability they gain, and by how much they lose, from one layer to the next, the last pair first."""
    lists = []
    for layer in range(len(logits) - 1, 0, -1):
        step = softmax(logits[layer]) - softmax(logits[layer - 1])
        lists += [top(step, len(step)), top(-step, len(step))]
    return lists


def candidates(lists, budget):
    """The first `budget` different tokens when the lists take turns."""
    found = []
    rank = 0
    while len(found) < budget:
        for one in lists:
            if len(found) < budget and one[rank] not in found:
                found.append(one[rank])
        rank += 1
    return found


def needed(lists, target):
    """The smallest budget whose candidates hold the target."""
    budget = 1
    while target not in candidates(lists, budget):
        budget += 1
    return budget


def area(values, steps):
    """Mean height of the line through (step, value), by the areas of its trapezoids."""
    total = 0.0
    for i in range(1, len(steps)):
        total += (steps[i] - steps[i - 1]) * (values[i] + values[i - 1]) / 2
    return total / steps[-1]


def grid(row, bits, group=None):
    """Every weight of an output rounded to the nearest of the grid values s q, halves to even, group by group."""
    levels = 2 ** (bits - 1) - 1
    group = group or len(row)
    out = []
    for first in range(0, len(row), group):
        part = row[first : first + group]
        step = max(abs(w) for w in part) / levels
        for w in part:
            values = [q * step for q in range(-levels, levels + 1)]
            distance = [abs(w - value) for value in values]
            near = [i for i, d in enumerate(distance) if d == min(distance)]
            out.append(values[min(near, key=lambda i: (i - levels) % 2)] if step else 0.0)
    return out
