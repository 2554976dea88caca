"""Each objective: its formula, values by hand, limits, refusals."""

import math

import pytest
import torch

from tests.reference import objectives as truth
from tests.unlearn.made import DETACHED, N, leaf, masks, passed, passes, rows, take, wider
from workbench.core.errors import InputError, ShapeError
from workbench.core.numerics import Forward, States
from workbench.core.registry import objective
from workbench.unlearn import (
    ceu,
    generic_logits,
    gradient_ascent,
    gradient_difference,
    idk,
    kl_minimization,
    npo,
    npo_kl,
    pdu,
    random_label,
    refusal_dpo,
    rmu,
    satimp,
    simnpo,
    task_vector,
    undial,
    wga,
    whos_harry_potter,
)

MEMBERS = list(objective)
every = pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)


@every
def test_equals_the_loop(member):
    given = passes(member)
    expected = [getattr(truth, member.name)(*row) for row in rows(member, given)]
    assert member.function(*given).tolist() == pytest.approx(expected, rel=1e-12)
    half = member.function(*passes(member, torch.float32))
    assert half.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (npo, {"beta": 2.0}),
        (simnpo, {"beta": 1.0, "margin": 0.5}),
        (refusal_dpo, {"beta": 3.0}),
        (wga, {"beta": 2.5}),
        (satimp, {"beta1": 0.5, "beta2": 3.0}),
        (undial, {"beta": 1.0}),
        (ceu, {"skip": 0}),
        (ceu, {"skip": 2}),
        (whos_harry_potter, {"target": "softmax"}),
    ],
)
def test_options_equal_the_loop(function, options):
    member = objective[function.__name__]
    given = passes(member)
    expected = [getattr(truth, member.name)(*row, **options) for row in rows(member, given)]
    assert function(*given, **options).tolist() == pytest.approx(expected, rel=1e-12)


@every
def test_autograd_equals_finite_differences(member):
    given = passes(member)
    value, rebuilt = leaf(member, given)
    value = value.clone().requires_grad_()
    if member.name not in DETACHED:
        assert torch.autograd.gradcheck(lambda x: member.function(*rebuilt(x)), value, eps=1e-6, atol=1e-7)
        return
    member.function(*rebuilt(value)).sum().backward()
    fixed, step = [row[0] for row in rows(member, given)], 1e-6  # what weights and targets are made from stays
    places = given[0].mask.nonzero()[::2] if member.name != "ceu" else torch.tensor([[0, 0], [3, 1], [7, 2], [9, 4]])
    for place in map(tuple, places.tolist()):
        values = []
        for sign in (1, -1):
            moved = value.detach().clone()
            moved[place] += sign * step
            changed = rows(member, rebuilt(moved))
            values.append(sum(getattr(truth, member.name)(*row, at=at) for row, at in zip(changed, fixed, strict=True)))
        assert float(value.grad[place]) == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-7)


@every
def test_permutes_with_the_batch_and_ignores_padding(member):
    given = passes(member)
    order = torch.tensor([2, 0, 3, 1])
    base = member.function(*given)
    assert torch.equal(member.function(*(take(one, order) for one in given)), base[order])
    alone = [float(member.function(*(take(one, torch.tensor([i])) for one in given))) for i in range(N)]
    assert alone == pytest.approx(base.tolist(), rel=1e-12)
    torch.testing.assert_close(member.function(*(wider(one) for one in given)), base, rtol=1e-12, atol=0)


def one(*logprobs):
    return Forward(torch.tensor([[0.0, *logprobs]], dtype=torch.float64), torch.tensor([[False] + [True] * len(logprobs)]))


def logits_pass(*given, target):
    """One example, whose answer tokens have these logits."""
    mask = torch.tensor([[False] + [True] * len(given)])
    return passed(0, mask, logits=torch.tensor(given, dtype=torch.float64).log())._replace(target=torch.tensor(target))


def test_by_hand():
    policy, reference = one(-1.0, -2.0, -6.0), one(-2.0, -1.0, -1.0)
    for function in (gradient_ascent, gradient_difference, kl_minimization):
        assert float(function(policy)) == -3.0  # -(1 + 2 + 6) / 3
    for function in (idk, random_label, task_vector):
        assert float(function(policy)) == 3.0
    # beta .1: sums -9 and -4, ratio -5; (2/.1) ln(1 + e^-.5) = 20 ln 1.60653
    for function in (npo, npo_kl):
        assert float(function(policy, reference)) == pytest.approx(20 * math.log(1 + math.exp(-0.5)))
    # beta 2, margin 1: mean NLL 3; -(2/2) ln sigmoid(2 (3 - 1)) = ln(1 + e^-4)
    assert float(simnpo(policy, beta=2.0, margin=1.0)) == pytest.approx(math.log(1 + math.exp(-4)))
    # the answer lost 5 nats (-9 against -4), the refusal won 3 (-1 against -4): h = 8; (2/.5) ln(1 + e^-4)
    assert float(refusal_dpo(policy, reference, one(-1.0), one(-4.0), beta=0.5)) == pytest.approx(4 * math.log(1 + math.exp(-4)))


def test_weights_by_hand():
    policy = one(math.log(1 / 2), math.log(1 / 4))
    # (1/2 ln 1/2 + 1/4 ln 1/4) / 2 = -(1/2 ln 2 + 1/2 ln 2) / 2
    assert float(wga(policy)) == pytest.approx(-0.5 * math.log(2))
    assert float(wga(policy, beta=0.0)) == pytest.approx(float(gradient_ascent(policy)))
    # weights (1/2)^1 (1/2)^2 = 1/8 and (1/4)^1 (3/4)^2 = 9/64: -(8/64 ln 2 + 18/64 ln 2) / 2
    assert float(satimp(policy, beta1=1.0, beta2=2.0)) == pytest.approx(-13 / 64 * math.log(2))
    # a token the model is sure of weighs nothing, and ln 1 = 0 anyway: no 0 * inf
    assert float(satimp(one(0.0, -1.0), beta1=1.0)) == pytest.approx(-math.exp(-1) * (1 - math.exp(-1)) / 2)


def test_targets_by_hand():
    # logits ln 1, ln 2, ln 1: p = 1/4, 1/2, 1/4. The reference is the same; the true token 1 loses ln 2: 1, 1, 1, so q = 1/3 each
    policy = logits_pass((1, 2, 1), target=[1])
    found = float(undial(policy, policy, beta=math.log(2)))
    assert found == pytest.approx((2 * math.log(4) + math.log(2)) / 3)  # -(ln 1/4 + ln 1/2 + ln 1/4) / 3
    # without token 1 the others are 1/2 each: CE = ln 4
    assert float(ceu(policy, skip=0)) == pytest.approx(math.log(4))
    # tokens (1, 2, 1) and (1, 1, 2), true 1 and 2; the first is skipped: q = 1/2, 1/2, 0 on p = 1/4, 1/4, 1/2
    assert float(ceu(logits_pass((1, 2, 1), (1, 1, 2), target=[1, 2]))) == pytest.approx(math.log(4))
    # max ln 2, mean ln 2 / 3: (2/3 ln 2)^2
    assert float(pdu(policy)) == pytest.approx((2 / 3 * math.log(2)) ** 2)
    # generic logits: (0, 1, 0) where the reinforced has (0, 2, -5): 1 - 3 (2 - 1) = -2, the rest as it was
    base, reinforced = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 2.0, -5.0])
    assert generic_logits(base, reinforced, alpha=3.0).tolist() == [0.0, -2.0, 0.0]
    generic = policy._replace(logits=torch.tensor([[0.0, -2.0, 0.5]], dtype=torch.float64))
    assert float(whos_harry_potter(policy, generic)) == pytest.approx(math.log(4))  # -ln p(2)
    # softmax of (0, 0, -inf): 1/2 and 1/2: (ln 4 + ln 2) / 2
    flat = policy._replace(logits=torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64).clamp_min(-1e4))
    assert float(whos_harry_potter(policy, flat, target="softmax")) == pytest.approx(1.5 * math.log(2))


def test_distances_by_hand():
    # two positions count of three: ((3-0)^2 + 4^2) / 2 and (1 + 1) / 2; their mean is (12.5 + 1) / 2
    hidden = torch.tensor([[[9.0, 9.0], [3.0, 4.0], [1.0, 1.0]]])
    mask = torch.tensor([[False, True, True]])
    assert float(rmu(States(hidden, mask), States(torch.zeros(1, 3, 2), mask))) == 6.75


def test_npo_where_the_models_agree():
    policy, _ = passes(objective["npo"])
    assert npo(policy, policy, beta=0.5).tolist() == pytest.approx([4 * math.log(2)] * 4)
    same = passes(objective["refusal_dpo"])
    assert refusal_dpo(same[0], same[0], same[2], same[2], beta=0.5).tolist() == pytest.approx([4 * math.log(2)] * 4)


def test_npo_becomes_ascent_as_beta_vanishes():
    policy, reference = passes(objective["npo"])
    logprob = policy.logprob.clone().requires_grad_()
    npo(Forward(logprob, policy.mask), reference, beta=1e-7).sum().backward()
    # gradient of sum ln p is 1 on every answer token
    assert logprob.grad[policy.mask].tolist() == pytest.approx([1.0] * int(policy.mask.sum()), rel=1e-5)


def test_undial_of_no_strength_is_at_its_least_at_the_reference():
    policy, _ = passes(objective["undial"])
    logits = policy.logits.clone().requires_grad_()
    undial(policy._replace(logits=logits), policy, beta=0.0).sum().backward()
    assert float(logits.grad.abs().max()) < 1e-15  # rounding of probabilities that sum to 1


def test_refusals():
    policy, reference = passes(objective["npo"])
    with pytest.raises(ShapeError, match="reference is none"):
        npo(policy)
    with pytest.raises(ShapeError, match=r"reference is \(3, 7\)"):
        npo(policy, reference.part(0, 3))
    for function in (npo, simnpo, npo_kl):
        with pytest.raises(InputError, match="beta is 0.0"):
            function(policy, reference, beta=0.0)
    for function, options in ((wga, {"beta": -1.0}), (satimp, {"beta2": -0.1}), (undial, {"beta": -2.0}), (ceu, {"skip": -1})):
        with pytest.raises(InputError, match=rf"{function.__name__}: {next(iter(options))} is -.*, expected 0 or more"):
            function(policy, reference, **options)
    with pytest.raises(InputError, match="task_vector: alpha is 0.0"):
        task_vector(policy, alpha=0.0)


def test_passes_that_do_not_belong_together():
    bare = Forward(*passes(objective["npo"])[0][:2])
    for function in (undial, ceu, pdu, whos_harry_potter):
        with pytest.raises(ShapeError, match=f"{function.__name__}: a forward pass comes without logits"):
            function(bare, bare)
    policy, reference = passes(objective["undial"])
    for function in (undial, whos_harry_potter):
        with pytest.raises(ShapeError, match=r"policy has logits \(10, 5\), .* \(3, 5\)"):
            function(policy, reference.part(0, 2))
    four = passes(objective["refusal_dpo"])
    with pytest.raises(ShapeError, match="refused and its reference are none and none"):
        refusal_dpo(*four[:2])
    with pytest.raises(ShapeError, match="4 answers, but 3 refusals"):
        refusal_dpo(*four[:2], *(one.part(0, 3) for one in four[2:]))
    states = passes(objective["rmu"])
    with pytest.raises(ShapeError, match="reference is none"):
        rmu(states[0])


def test_parts_of_a_pass():
    whole = passed(0, masks())
    for first, last in ((0, 4), (1, 3), (3, 4)):
        part, expected = whole.part(first, last), take(whole, torch.arange(first, last))
        assert all(torch.equal(a, b) for a, b in zip(part, expected, strict=True))
