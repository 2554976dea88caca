"""Each objective: its formula, values by hand, limits, refusals."""

import math

import pytest
import torch

from tests.reference import objectives as truth
from workbench.core.errors import InputError, ShapeError
from workbench.core.numerics import Forward
from workbench.core.registry import objective
from workbench.unlearn import gradient_ascent, gradient_difference, npo, simnpo

MEMBERS = list(objective)


def passes(dtype=torch.float64, n=4, seed=0):
    """Policy and reference on one batch with answers of 1 to 4 tokens."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(n, 7, dtype=torch.bool)
    for i in range(n):
        mask[i, 2 : 3 + i] = True
    logprob = [(-3 * torch.rand(n, 7, generator=g, dtype=torch.float64)).to(dtype) * mask for _ in range(2)]
    return Forward(logprob[0], mask), Forward(logprob[1], mask)


def rows(passed):
    return [lp[m].tolist() for lp, m in zip(passed.logprob, passed.mask, strict=True)]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_equals_the_loop(member):
    policy, reference = passes()
    expected = [getattr(truth, member.name)(p, r) for p, r in zip(rows(policy), rows(reference), strict=True)]
    assert member.function(policy, reference).tolist() == pytest.approx(expected, rel=1e-12)
    half = member.function(*passes(torch.float32))
    assert half.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_autograd_equals_finite_differences(member):
    policy, reference = passes()

    def loss(logprob):
        return member.function(Forward(logprob, policy.mask), reference)

    assert torch.autograd.gradcheck(loss, policy.logprob.clone().requires_grad_(), eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_permutes_with_the_batch_and_ignores_padding(member):
    policy, reference = passes()
    order = torch.tensor([2, 0, 3, 1])
    base = member.function(policy, reference)
    assert torch.equal(member.function(Forward(*(t[order] for t in policy)), Forward(*(t[order] for t in reference))), base[order])
    wider = [
        Forward(torch.nn.functional.pad(p.logprob, (0, 3)), torch.nn.functional.pad(p.mask, (0, 3))) for p in (policy, reference)
    ]
    torch.testing.assert_close(member.function(*wider), base, rtol=1e-12, atol=0)


def one(*logprobs):
    return Forward(torch.tensor([[0.0, *logprobs]], dtype=torch.float64), torch.tensor([[False] + [True] * len(logprobs)]))


def test_by_hand():
    policy, reference = one(-1.0, -2.0, -6.0), one(-2.0, -1.0, -1.0)
    assert float(gradient_ascent(policy)) == -3.0  # -(1 + 2 + 6) / 3
    assert float(gradient_difference(policy)) == -3.0
    # beta .1: sums -9 and -4, ratio -5; (2/.1) ln(1 + e^-.5) = 20 ln 1.60653
    assert float(npo(policy, reference)) == pytest.approx(20 * math.log(1 + math.exp(-0.5)))
    # beta 2, margin 1: mean NLL 3; -(2/2) ln sigmoid(2 (3 - 1)) = ln(1 + e^-4)
    assert float(simnpo(policy, beta=2.0, margin=1.0)) == pytest.approx(math.log(1 + math.exp(-4)))


def test_npo_where_the_models_agree():
    policy, _ = passes()
    assert npo(policy, policy, beta=0.5).tolist() == pytest.approx([4 * math.log(2)] * 4)


def test_npo_becomes_ascent_as_beta_vanishes():
    policy, reference = passes()
    logprob = policy.logprob.clone().requires_grad_()
    npo(Forward(logprob, policy.mask), reference, beta=1e-7).sum().backward()
    # gradient of sum ln p is 1 on every answer token
    assert logprob.grad[policy.mask].tolist() == pytest.approx([1.0] * int(policy.mask.sum()), rel=1e-5)


def test_refusals():
    policy, reference = passes()
    with pytest.raises(ShapeError, match="reference is none"):
        npo(policy)
    with pytest.raises(ShapeError, match=r"reference is \(3, 7\)"):
        npo(policy, Forward(*(t[:3] for t in reference)))
    for function in (npo, simnpo):
        with pytest.raises(InputError, match="beta is 0.0"):
            function(policy, reference, beta=0.0)
