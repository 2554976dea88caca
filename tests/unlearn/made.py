"""Passes made by hand for every objective: answers of 1 to 4 tokens in one batch, in the form that the objective reads."""

import torch
from torch.nn.functional import pad

from workbench.core.numerics import Forward, States

N, POS, VOCAB, D_MODEL = 4, 7, 5, 6
DETACHED = ("wga", "satimp", "ceu")  # weights or targets are made from the policy, but have no gradient


def masks(side=0):
    """Answers of 1, 2, 3, 4 tokens, or of 4, 3, 2, 1."""
    mask = torch.zeros(N, POS, dtype=torch.bool)
    for i in range(N):
        mask[i, 2 : (3 + i if side == 0 else 6 - i)] = True
    return mask


def passed(seed, mask, dtype=torch.float64, *, logits=None):
    """A pass whose log-probabilities are those of its logits."""
    g = torch.Generator().manual_seed(seed)
    count = int(mask.sum())
    drawn = 2 * torch.randn(count, VOCAB, generator=g, dtype=torch.float64)
    used = drawn.to(dtype) if logits is None else logits
    g.manual_seed(9)  # the tokens of one batch are the same for all seeds
    target = torch.randint(used.shape[-1], (count,), generator=g)
    picked = used.log_softmax(-1).gather(-1, target[:, None]).squeeze(-1)
    return Forward(torch.zeros(mask.shape, dtype=used.dtype).masked_scatter(mask, picked), mask, used, target)


def passes(member, dtype=torch.float64):
    """Everything an objective takes, in order: policy and reference, of both answers where it compares two."""
    if member.about["reads"] == "states":
        g = torch.Generator().manual_seed(0)
        return tuple(States(torch.randn(N, POS, D_MODEL, generator=g, dtype=torch.float64).to(dtype), masks()) for _ in range(2))
    sides = (0, 1) if member.about["answers"] == "both" else (0,)
    return tuple(passed(2 * side + k, masks(side), dtype) for side in sides for k in range(2))


def rows(member, given):
    """What the slow reference of this objective takes, an example at a time."""
    if member.about["reads"] == "states":
        return [tuple(one.hidden[i][one.mask[i]].tolist() for one in given) for i in range(N)]
    if member.about["reads"] == "logits":
        policy, reference = given
        now, before = (one.logits.split(one.mask.sum(-1).tolist()) for one in (policy, reference))
        targets = policy.target.split(policy.mask.sum(-1).tolist())
        return [(n.tolist(), t.tolist(), b.tolist()) for n, t, b in zip(now, targets, before, strict=True)]
    return [tuple(one.logprob[i][one.mask[i]].tolist() for one in given) for i in range(N)]


def leaf(member, given):
    """The tensor that the gradient is taken of, and the passes made from another value of it."""
    policy, *others = given
    if member.about["reads"] == "states":
        return policy.hidden, lambda x: (States(x, policy.mask), *others)
    if member.about["reads"] == "logits":
        return policy.logits, lambda x: (passed(0, policy.mask, logits=x), *others)
    return policy.logprob, lambda x: (Forward(x, policy.mask), *others)


def take(one, order):
    """The examples at `order`."""
    if isinstance(one, States):
        return States(one.hidden[order], one.mask[order])
    pieces = [t.split(one.mask.sum(-1).tolist()) for t in (one.logits, one.target)]
    return Forward(one.logprob[order], one.mask[order], *(torch.cat([p[i] for i in order.tolist()]) for p in pieces))


def wider(one, by=3):
    """The same examples with more padding, of which nothing is known but rubbish."""
    mask = pad(one.mask, (0, by))
    if isinstance(one, States):
        return States(pad(one.hidden, (0, 0, 0, by), value=7.0), mask)
    return one._replace(logprob=pad(one.logprob, (0, by)), mask=mask)
