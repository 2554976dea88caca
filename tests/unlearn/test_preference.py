"""Each preference objective: its formula, values by hand, limits, refusals."""

import math

import pytest
import torch

from tests.reference import preference as truth
from workbench.core.errors import InputError, ShapeError
from workbench.core.numerics import Forward
from workbench.core.registry import preference
from workbench.unlearn import dpo, dpo_sft, ipo

MEMBERS = list(preference)


def passes(dtype=torch.float64, n=4):
    """Chosen answers of 1 to 4 tokens, rejected ones of 4 to 1, and the reference's passes on both."""
    g = torch.Generator().manual_seed(0)
    masks = [torch.zeros(n, 7, dtype=torch.bool) for _ in range(2)]
    for i in range(n):
        masks[0][i, 2 : 3 + i] = True
        masks[1][i, 2 : 6 - i] = True
    made = [Forward((-3 * torch.rand(n, 7, generator=g, dtype=torch.float64)).to(dtype) * mask, mask) for mask in 2 * masks]
    return tuple(made)


def rows(passed):
    return [lp[m].tolist() for lp, m in zip(passed.logprob, passed.mask, strict=True)]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_equals_the_loop(member):
    expected = [getattr(truth, member.name)(*pair) for pair in zip(*map(rows, passes()), strict=True)]
    assert member.function(*passes()).tolist() == pytest.approx(expected, rel=1e-12)  # a few additions in float64
    single = member.function(*passes(torch.float32))
    assert single.tolist() == pytest.approx(expected, rel=1e-5)  # float32 has 7 digits, h loses one to cancellation


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_autograd_equals_finite_differences(member):
    chosen, rejected, *references = passes()

    def loss(better, worse):
        return member.function(Forward(better, chosen.mask), Forward(worse, rejected.mask), *references)

    starts = [p.logprob.clone().requires_grad_() for p in (chosen, rejected)]
    assert torch.autograd.gradcheck(loss, starts, eps=1e-6, atol=1e-8)  # central differences: error eps^2, 1e-12 of the value


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_permutes_with_the_batch_and_ignores_padding(member):
    given = passes()
    order = torch.tensor([2, 0, 3, 1])
    base = member.function(*given)
    assert torch.equal(member.function(*(Forward(p.logprob[order], p.mask[order]) for p in given)), base[order])
    pad = torch.nn.functional.pad
    for ends in ((0, 3), (3, 0)):
        wider = [Forward(pad(p.logprob, ends), pad(p.mask, ends)) for p in given]
        torch.testing.assert_close(member.function(*wider), base, rtol=1e-12, atol=0)  # zeros may be added in another order
    one_by_one = [float(member.function(*(p.part(i, i + 1) for p in given))) for i in range(4)]
    assert one_by_one == pytest.approx(base.tolist(), rel=1e-12)


def one(*logprobs):
    return Forward(torch.tensor([[0.0, *logprobs]], dtype=torch.float64), torch.tensor([[False] + [True] * len(logprobs)]))


def test_by_hand():
    given = one(-1.0, -2.0), one(-4.0), one(-2.0, -4.0), one(-3.0)
    # h = (-3 + 6) - (-4 + 3) = 4
    assert float(dpo(*given, beta=0.5)) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(ipo(*given, beta=0.25)) == pytest.approx(4.0)  # (4 - 2)^2
    # the mean NLL of the chosen answer is (1 + 2) / 2
    assert float(dpo_sft(*given, beta=0.5, sft_weight=2.0)) == pytest.approx(math.log(1 + math.exp(-2)) + 3.0)
    assert torch.equal(dpo_sft(*given, sft_weight=0.0), dpo(*given))
    # swapped, h = -4: ln(1 + e^2) and (-4 - 2)^2
    swapped = given[1], given[0], given[3], given[2]
    assert float(dpo(*swapped, beta=0.5)) == pytest.approx(math.log(1 + math.exp(2)))
    assert float(ipo(*swapped, beta=0.25)) == pytest.approx(36.0)


def test_where_the_models_agree():
    chosen, rejected, *_ = passes()
    agreed = chosen, rejected, chosen, rejected
    assert dpo(*agreed, beta=0.3).tolist() == pytest.approx([math.log(2)] * 4)
    assert ipo(*agreed, beta=0.2).tolist() == pytest.approx([1 / (4 * 0.2**2)] * 4)
    nll = [-sum(row) / len(row) for row in rows(chosen)]
    assert dpo_sft(*agreed).tolist() == pytest.approx([math.log(2) + value for value in nll])


def test_the_gradient_of_dpo_is_of_a_difference():
    # at h = 0: d loss / d ln pi(y+) = -beta/2 on every chosen token, +beta/2 on every rejected one, so a common shift costs nothing
    chosen, rejected, *_ = passes()
    better, worse = (p.logprob.clone().requires_grad_() for p in (chosen, rejected))
    dpo(Forward(better, chosen.mask), Forward(worse, rejected.mask), chosen, rejected, beta=0.4).sum().backward()
    assert better.grad[chosen.mask].tolist() == pytest.approx([-0.2] * 10)
    assert worse.grad[rejected.mask].tolist() == pytest.approx([0.2] * 10)


def test_far_margins_stay_finite():
    far = one(-1e4), one(-1.0), one(-1.0), one(-1e4)
    assert float(dpo(*far, beta=10.0)) == pytest.approx(10 * (2e4 - 2))  # h = -19998: exp(-beta h) would overflow
    assert float(dpo(far[1], far[0], far[3], far[2], beta=10.0)) == 0.0


def test_refusals():
    given = passes()
    fewer = [p.part(0, 3) for p in given]
    for member in MEMBERS:
        with pytest.raises(ShapeError, match="reference_chosen is none"):
            member.function(*given[:2])
        with pytest.raises(ShapeError, match=r"rejected is \(4, 7\), reference_rejected is \(3, 7\)"):
            member.function(*given[:3], fewer[3])
        with pytest.raises(ShapeError, match="4 chosen answers, but 3 rejected ones"):
            member.function(given[0], fewer[1], given[2], fewer[3])
        for beta in (0.0, math.nan):
            with pytest.raises(InputError, match=f"{member.name}: beta is {beta}"):
                member.function(*given, beta=beta)
    with pytest.raises(InputError, match="sft_weight is -1.0, expected 0 or more"):
        dpo_sft(*given, sft_weight=-1.0)
