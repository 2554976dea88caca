"""What stands around descent: the dual variable of pdu, and the negation of task_vector with its budget."""

import pytest
import torch

from tests.tiny import tiny, tiny_sets
from workbench.core.delta import applied
from workbench.core.errors import InputError, NumericsError, TrainingStopped
from workbench.core.records import Provenance
from workbench.load.batches import encode_all
from workbench.train import AnswerTask, fit
from workbench.unlearn.pairs import set_nll
from workbench.unlearn.pdu import Dual
from workbench.unlearn.run import run


def nll(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_dual_variable_by_hand():
    dual = Dual(1.0, start=0.5, rate=2.0, warmup=1)
    # NLL 2 and 4 in one micro-batch, 0 in another: (.5 * 1, .5 * 3), (.5 * -1); the mean is 2, so 1 above the bound
    assert dual.loss(nll(2, 4), 0).tolist() == [0.5, 1.5]
    assert dual.loss(nll(0), 0).tolist() == [-0.5]
    assert dual.observed() == {"lambda": 0.5, "retain_excess": 1.0}
    dual.step()
    assert dual.value == 0.5, "warm-up: epoch 0"
    dual.loss(nll(1.5), 1)
    dual.step()
    assert dual.value == 1.5  # .5 + 2 * .5; what the steps before saw is forgotten
    dual.loss(nll(0), 1)
    dual.step()
    assert dual.value == 0.0  # max(0, 1.5 - 2)
    assert dual.observed() == {}


def test_the_bound_is_where_the_retain_rows_stand_plus_a_slack():
    model, (forget, retain) = tiny(), tiny_sets()
    found = run(model, forget, retain, objective="pdu", epochs=1, batch_size=4, lr=1e-9)
    # three of the four retain rows are partners; the bound is that of all four
    rows = encode_all(model, retain)
    each = [set_nll(model, [row]) for row in rows]
    excess = found.history[0]["retain_excess"] + sum(each) / 4 + 0.05
    assert any(excess == pytest.approx((sum(each) - one) / 3, abs=1e-9) for one in each)


def test_the_constraint_is_kept():
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    rows = encode_all(model, retain)
    start = set_nll(model, rows)
    given = {"objective": "pdu", "epochs": 60, "batch_size": 3, "lr": 5e-3, "schedule": "constant", "clip_norm": None}
    after = {}
    for rate in (1e-9, 5.0):
        found = run(model, forget, retain, options={"dual_rate": rate, "epsilon": start - 1}, retain_weight=0.0, **given)
        with applied(model, found.delta):
            after[rate] = set_nll(model, rows)
    assert after[5.0] < start - 0.9 < start - 0.5 < after[1e-9]
    assert max(row["lambda"] for row in found.history) > 1


@pytest.mark.parametrize(("name", "value"), [("dual_rate", 0.0), ("dual_rate", -1.0), ("dual_warmup", -1), ("retain_weight", -1.0)])
def test_a_dual_variable_that_cannot_be(name, value):
    given = {"retain_weight": value} if name == "retain_weight" else {"options": {name: value}}
    with pytest.raises(InputError, match=f"{'unlearn' if name == 'retain_weight' else 'pdu'}: {name} is {value}"):
        run(tiny(), *tiny_sets(), objective="pdu", **given)


def test_a_task_vector_is_the_opposite_of_learning():
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    given = {"epochs": 3, "batch_size": 2, "lr": 1e-2, "seed": 3}
    learned = fit(model, AnswerTask(model, encode_all(model, forget)), Provenance("test", model.fingerprint()), **given)
    found = run(model, forget, retain, objective="task_vector", options={"alpha": 0.5}, **given)
    for name, change in learned.delta.changes.items():
        # the rows are forwarded in another order
        torch.testing.assert_close(found.delta.changes[name].dense(), -0.5 * change.dense(), rtol=1e-4, atol=1e-6)
    assert found.delta.provenance.method == "task_vector"
    assert [row["loss"] for row in found.history] == pytest.approx([row["loss"] for row in learned.history], rel=1e-5)


def test_a_task_vector_within_a_budget():
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    rows, budget = encode_all(model, retain[2:]), 0.05
    start = set_nll(model, rows)
    given = {"objective": "task_vector", "epochs": 5, "batch_size": 3, "lr": 1e-2, "budget_rows": retain[2:], "budget_every": 1}
    found = run(model, forget, retain[:2], options={"alpha": 5.0}, retain_budget=budget, **given)
    with applied(model, found.delta):
        used = set_nll(model, rows) - start
    assert 0.98 * budget < used <= budget + 1e-6  # to a hundredth of the budget, and float32
    assert "at alpha 5, above" in found.audit.stopped
    measured = [row for row in found.history if "part" in row]
    assert measured[0]["part"] == 1.0
    assert measured[0]["retain_nll"] > start + budget
    part = found.audit.part
    assert part == max(row["part"] for row in measured if row["retain_nll"] <= start + budget) < 1
    assert found.delta.provenance.notes == {"part": part}
    whole = run(model, forget, retain[:2], objective="task_vector", options={"alpha": 5.0}, epochs=5, batch_size=3, lr=1e-2).delta
    for name, change in whole.changes.items():
        torch.testing.assert_close(found.delta.changes[name].dense(), part * change.dense(), rtol=1e-5, atol=0)  # float32
    free = run(model, forget, retain[:2], options={"alpha": 5.0}, retain_budget=100.0, **given)
    assert (free.audit.stopped, free.audit.part, free.delta.provenance.notes) == ("", 1.0, {})
    assert free.delta.n_touched == found.delta.n_touched


@pytest.mark.parametrize("name", ["task_vector", "whos_harry_potter"])
def test_no_state_is_kept_that_knows_more(name):
    """The first step breaks the model: what was trained until then would be the opposite of forgetting."""
    options = {"reinforce_lr": 1e30} if name == "whos_harry_potter" else {}
    model = tiny(torch.float32)
    with pytest.raises(NumericsError, match=rf"{name}: the training .* stopped: train: the loss at step 1") as stopped:
        run(model, *tiny_sets(), objective=name, options=options, epochs=3, batch_size=3, lr=1e30)
    assert not isinstance(stopped.value, TrainingStopped)
    assert isinstance(stopped.value.__cause__, TrainingStopped)


def test_a_budget_ends_a_run_whose_weights_give_nan():
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    rows = encode_all(model, retain[2:])
    given = {"budget_rows": retain[2:], "budget_every": 1, "retain_budget": 0.05, "batch_size": 3, "schedule": "constant"}
    for rate in (1e30, 1e39):  # the second is infinite in float32
        found = run(model, forget, retain[:2], objective="gradient_ascent", epochs=3, lr=rate, **given)
        assert "retain_nll reached inf after step 0" in found.audit.stopped
        assert found.audit.part < 1
        with applied(model, found.delta):
            assert set_nll(model, rows) <= found.history[0]["retain_nll"] + 0.05 + 1e-6


@pytest.mark.parametrize("alpha", [-5.0, 0.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["task_vector", "whos_harry_potter"])
def test_a_factor_that_cannot_be(name, alpha):
    with pytest.raises(InputError, match=f"{name}: alpha is {alpha}, expected a number above 0"):
        run(tiny(), *tiny_sets(), objective=name, options={"alpha": alpha}, epochs=1)
