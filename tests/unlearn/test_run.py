"""Unlearning on the loop: pairing, cached references, retain terms, masks, budget, refusals."""

import math

import pytest
import torch

import workbench as wb
from tests.reference import objectives as truth
from tests.tiny import tiny, tiny_sets
from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError, UnknownNameError
from workbench.core.numerics import answer_logits
from workbench.core.registry import objective
from workbench.load.batches import collate, encode_all
from workbench.trace.forward import forward, logits
from workbench.unlearn.pairs import Pairs, Weighting, answer_distributions, answer_logprob_rows, set_nll
from workbench.unlearn.run import run

NAMES = objective.names()


@torch.no_grad()
def single(model, row):
    """Log-probabilities of one row's answer, on its own."""
    passed = forward(model, collate([row]))
    return passed.logprob[passed.mask].tolist()


@torch.no_grad()
def distributions(model, row):
    batch = collate([row])
    return answer_logits(logits(model, batch), batch.answer).log_softmax(-1).tolist()


def pairs(model, term, *, weights=(1.0, 1.0), name="npo", before=None):
    forget, retain = (encode_all(model, rows) for rows in tiny_sets())
    before = before or model
    return Pairs(
        model, forget, retain,
        objective=objective[name].function,
        weighting=Weighting(*weights, term),
        references=answer_logprob_rows(before, forget, batch_tokens=20),
        known=answer_distributions(before, retain, range(len(retain)), batch_tokens=20) if term == "kl" else None,
        seed=2,
    )  # fmt: skip


@pytest.mark.parametrize("term", ["none", "nll", "kl"])
def test_a_pairs_loss_is_the_weighted_sum(term):
    before, model = tiny(), tiny()
    with torch.no_grad():
        model.hf.model.layers[0].mlp.up_proj.weight.mul_(1.3)
    task = pairs(model, term, weights=(0.7, 0.4), before=before)
    found = task.losses([2, 0, 1], epoch=1).tolist()
    for value, i in zip(found, [2, 0, 1], strict=True):
        kept = task.retain[task.partner(i, 1)]
        expected = 0.7 * truth.npo(single(model, task.forget[i]), single(before, task.forget[i]))
        if term == "nll":
            expected += 0.4 * truth.nll(single(model, kept))
        if term == "kl":
            expected += 0.4 * truth.kl(distributions(before, kept), distributions(model, kept))
        assert value == pytest.approx(expected, rel=1e-6)


def test_kl_is_zero_at_the_start_and_the_reference_is_exact():
    model = tiny()
    found = pairs(model, "kl", weights=(1.0, 1.0)).losses([0, 1, 2], epoch=0)
    assert found.tolist() == pytest.approx([20 * math.log(2)] * 3, rel=1e-12)


def test_partners_go_round_the_retain_set():
    task = pairs(tiny(), "nll")
    seen = [task.partner(i, epoch) for epoch in range(4) for i in range(3)]
    assert sorted(seen[:4]) == sorted(seen[4:8]) == [0, 1, 2, 3]
    assert len({tuple(seen[k : k + 4]) for k in (0, 4, 8)}) > 1, "each time round is shuffled anew"
    assert seen == [pairs(tiny(), "nll").partner(i, e) for e in range(4) for i in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_forgets(name):
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    rows = encode_all(model, forget)
    before = set_nll(model, rows)
    found = run(model, forget, retain, objective=name, retain_term="none", epochs=8, batch_size=3, lr=5e-3)
    with applied(model, found.delta):
        assert set_nll(model, rows) > before + 0.02
    assert set_nll(model, rows) == before
    assert found.delta.provenance.method == name
    assert 0 < found.moved <= 1
    assert [row["layer"] for row in found.layers][1] == "model.layers.0"


@pytest.mark.parametrize("name", NAMES)
def test_masked_runs_leave_the_rest_alone(name):
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    mask = wb.attribute.wagle(model, forget, retain).mask(0.2)
    before = {n: p.detach().clone() for n, p in model.hf.named_parameters()}
    found = run(model, forget, retain, objective=name, mask=mask, epochs=3, batch_size=2, lr=1e-2, weight_decay=0.1)
    with applied(model, found.delta):
        for n, p in model.hf.named_parameters():
            assert torch.equal(p[~mask[n]], before[n][~mask[n]])
    assert found.audit.trainable == mask.count


def test_retain_terms_keep_what_ascent_destroys():
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    rows = encode_all(model, retain)
    drift = {}
    for term in ("none", "nll", "kl"):
        found = run(model, forget, retain, retain_term=term, retain_weight=5.0, epochs=10, batch_size=3, lr=5e-3)
        with applied(model, found.delta):
            drift[term] = set_nll(model, rows)
    assert drift["nll"] < drift["none"]
    assert drift["kl"] < drift["none"]


def test_the_budget_holds():
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    rows = encode_all(model, retain)
    start = set_nll(model, rows)
    found = run(model, forget, retain, objective="gradient_ascent", epochs=40, batch_size=3, lr=1e-2, retain_budget=0.2)
    with applied(model, found.delta):
        assert set_nll(model, rows) <= start + 0.2 + 1e-5
    assert "retain_nll reached" in found.audit.stopped
    assert found.moved > 0


def test_a_budget_that_cannot_be_kept():
    model, (forget, retain) = tiny(), tiny_sets()
    for given, match in (
        ({"budget_every": 1}, "budget_every is given without retain_budget"),
        ({"budget_rows": retain}, "budget_rows is given without retain_budget"),
        ({"retain_budget": -0.1}, "retain_budget is -0.1"),
        ({"retain_budget": float("nan")}, "retain_budget is nan"),
        ({"retain_budget": 0.1, "budget_every": 0}, "budget_every is 0"),
    ):
        with pytest.raises(InputError, match=match):
            run(model, forget, retain, **given)
    for name, rows in (("forget", forget), ("retain", retain)):
        with pytest.raises(DataError, match=rf"budget_rows \(.*\) and {name} \(.*\) share 1 rows, such as"):
            run(model, forget, retain, retain_budget=0.1, budget_rows=rows[:1])


def test_options_reach_the_objective():
    model, sets = tiny(torch.float32), tiny_sets()
    one, two = (run(model, *sets, objective="npo", options={"beta": b}, epochs=1, lr=1e-3) for b in (0.1, 5.0))
    # at the start the models agree: (2/beta) ln 2 and the retain NLL
    assert one.history[0]["loss"] - two.history[0]["loss"] == pytest.approx((20 - 0.4) * math.log(2), rel=1e-4)
    assert one.delta.provenance.options["objective"] == {"beta": 0.1}


def test_refusals():
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    with pytest.raises(UnknownNameError, match="Did you mean 'simnpo'"):
        run(model, forget, retain, objective="sim-npo")
    with pytest.raises(UnknownNameError, match="unknown option of npo 'betta'. Did you mean 'beta'"):
        run(model, forget, retain, objective="npo", options={"betta": 1})
    with pytest.raises(DataError, match="share 1 rows: f1"):
        run(model, forget, wb.Examples([*retain, forget[1]], "retain"))


def test_every_member_is_exported():
    assert set(NAMES) <= set(wb.unlearn.__all__)


def test_reference_rows_do_not_depend_on_batching():
    model = tiny()
    rows = encode_all(model, tiny_sets()[0])
    for one, row in zip(answer_logprob_rows(model, rows, batch_tokens=1000), rows, strict=True):
        assert one.tolist() == pytest.approx(single(model, row), rel=1e-12)
