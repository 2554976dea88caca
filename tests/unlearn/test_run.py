"""Unlearning on the loop: pairing, cached references, retain terms, masks, adapters, budget, refusals."""

import math

import pytest
import torch

import workbench as wb
from tests.tiny import tiny, tiny_sets
from tests.unlearn.tasks import changed, expected_forget, expected_kept, logprobs, rows_of, task_of, three_layers
from workbench.core.delta import applied, apply
from workbench.core.errors import DataError, InputError, TooLongError, TrainingStopped, UnknownNameError
from workbench.core.records import Example, Provenance
from workbench.core.registry import Member, objective
from workbench.load.batches import encode_all
from workbench.train import AnswerTask, fit
from workbench.train.lora import Lora
from workbench.train.task import Named, Observing, Sharp, Stepping
from workbench.unlearn.cache import answer_logprob_rows
from workbench.unlearn.pairs import Pairs, set_nll
from workbench.unlearn.prepare import weighting_of
from workbench.unlearn.run import run
from workbench.unlearn.training import read_lora

NAMES = objective.names()
LAYER = 1  # the middle of three


@pytest.mark.parametrize("name", NAMES)
def test_the_task_is_the_weighted_sum_of_rows_one_by_one(name):
    before, model = three_layers(), three_layers()
    task = task_of(model, name, weights=(0.7, 0.4))
    changed(model)  # what was kept of the reference stays
    found = task.losses([2, 0, 1], epoch=1).tolist()
    for value, i in zip(found, [2, 0, 1], strict=True):
        expected = 0.7 * expected_forget(name, before, model, task, i, layer=LAYER)
        kept = expected_kept(before, model, task, i, 1, layer=LAYER)
        if name == "pdu":  # lambda begins at the retain weight; the bound is the NLL before, plus .05
            kept -= sum(-sum(logprobs(before, row)) / len(logprobs(before, row)) for row in task.retain) / 4 + 0.05
        assert value == pytest.approx(expected + 0.4 * kept, rel=1e-6)  # RMSNorm is float32, padded and alone


@pytest.mark.parametrize(("name", "term"), [(n, t) for n in ("npo", "undial", "idk", "refusal_dpo") for t in ("none", "nll", "kl")])
def test_retain_terms_go_with_every_kind_of_objective(name, term):
    before, model = tiny(), tiny()
    task = task_of(model, name, term=term, weights=(0.7, 0.4))
    changed(model)
    for i, value in enumerate(task.losses([0, 1, 2], epoch=0).tolist()):
        expected = 0.7 * expected_forget(name, before, model, task, i) + 0.4 * expected_kept(before, model, task, i, 0)
        assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_two_halves_sum_to_the_loss_and_micro_batches_to_the_batch(name):
    model = three_layers()
    task = task_of(model, name)
    changed(model)
    whole = task.losses([0, 1, 2], epoch=1)
    halves = task.sharp_losses([0, 1, 2], epoch=1) + task.other_losses([0, 1, 2], epoch=1)
    torch.testing.assert_close(halves, whole, rtol=1e-6, atol=1e-9)  # other padding, and RMSNorm is float32
    alone = torch.cat([task.losses([i], epoch=1) for i in (0, 1, 2)])
    torch.testing.assert_close(alone, whole, rtol=1e-6, atol=1e-9)
    assert isinstance(task, Sharp)
    assert isinstance(task, Named)
    kept = [f" with {task.retain[task.partner(i, 1)].id}" if task.partners([i], 1) else "" for i in (2, 0)]
    assert task.names([2, 0], epoch=1) == [f"f2{kept[0]}", f"f0{kept[1]}"]
    rows = [side.rows[i] for side in task.sides for i in (0, 2)] + [task.retain[i] for i in task.partners([0, 2], 1)]
    assert task.tokens([0, 2], epoch=1) == sum(len(row.tokens) for row in rows)


def test_only_the_pairs_watch_and_step():
    assert isinstance(task_of(tiny(), "pdu"), Observing)
    assert isinstance(task_of(tiny(), "pdu"), Stepping)
    assert task_of(tiny(), "npo").observed() == {}


def test_kl_is_zero_at_the_start_and_the_reference_is_exact():
    model = tiny()
    found = task_of(model, "npo", term="kl").losses([0, 1, 2], epoch=0)
    assert found.tolist() == pytest.approx([20 * math.log(2)] * 3, rel=1e-12)


def test_partners_go_round_the_retain_set():
    task = task_of(tiny(), "npo")
    seen = [task.partner(i, epoch) for epoch in range(4) for i in range(3)]
    assert sorted(seen[:4]) == sorted(seen[4:8]) == [0, 1, 2, 3]
    assert len({tuple(seen[k : k + 4]) for k in (0, 4, 8)}) > 1, "each time round is shuffled anew"
    assert seen == [task_of(tiny(), "npo").partner(i, e) for e in range(4) for i in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_forgets(name):
    model, (forget, retain) = three_layers(torch.float32), tiny_sets()
    rows = encode_all(model, forget)
    about = Provenance("learned", model.fingerprint())
    apply(
        model, fit(model, AnswerTask(model, rows), about, epochs=20, batch_size=3, lr=1e-2).delta
    )  # what is known can be forgotten
    before = set_nll(model, rows)
    # a vector far from where the states are; an alpha that takes the first place from an answer that is known
    options = {"rmu": {"coefficient": 20.0}, "whos_harry_potter": {"reinforce_lr": 5e-3, "alpha": 100.0}}.get(name, {})
    given = {"epochs": 8, "batch_size": 3, "lr": 5e-3, "options": options, "forget_weight": 1.0}
    found = run(model, forget, retain, objective=name, retain_term="nll" if name == "pdu" else "none", **given)
    with applied(model, found.delta):
        assert set_nll(model, rows) > before + 0.02
    assert set_nll(model, rows) == before
    assert found.delta.provenance.method == name
    assert 0 < found.moved <= 1
    assert [row["layer"] for row in found.layers][1] == "model.layers.0"


@pytest.mark.parametrize("name", NAMES)
def test_masked_runs_leave_the_rest_alone(name):
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    mask = wb.attribute.magnitude(model, forget, retain).mask(0.2)
    before = {n: p.detach().clone() for n, p in model.hf.named_parameters()}
    found = run(model, forget, retain, objective=name, mask=mask, epochs=3, batch_size=2, lr=1e-2, weight_decay=0.1)
    with applied(model, found.delta):
        for n, p in model.hf.named_parameters():
            assert torch.equal(p[~mask[n]], before[n][~mask[n]])
    assert found.audit.trainable == mask.count


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_runs_in_bfloat16_with_adapters_and_with_sharpness(name):
    model, sets = tiny(torch.bfloat16), tiny_sets()
    before = model.fingerprint()
    for given in ({}, {"lora": {"rank": 2, "alpha": 4}}, {"sharpness": 0.01}):
        found = run(model, *sets, objective=name, epochs=1, batch_size=2, micro_batch=1, lr=1e-2, **given)
        assert found.moved > 0
        assert all(math.isfinite(row["loss"]) for row in found.history if "loss" in row)
    assert model.fingerprint() == before


def test_adapters_in_words_are_adapters():
    model, sets = tiny(torch.float32), tiny_sets()
    given = {"epochs": 2, "batch_size": 3, "lr": 1e-2}
    one, two = (
        run(model, *sets, lora=lora, **given) for lora in ({"rank": 2, "targets": ["q_proj"]}, Lora(rank=2, targets=("q_proj",)))
    )
    assert one.delta.id == two.delta.id
    assert all("q_proj" in name for name in one.delta.changes)
    assert one.delta.provenance.options["lora"] == {"rank": 2, "alpha": 16.0, "targets": ("q_proj",)}
    with pytest.raises(UnknownNameError, match="unknown option of lora 'rang'. Did you mean 'rank'"):
        run(model, *sets, lora={"rang": 2})


def test_options_can_stand_in_a_file():
    given = {"lora": {"rank": 8, "alpha": 16}, "refusals": ["no"], "sharpness": 0.01, "retain_weight": 2, "retain_term": "states"}
    assert Member("arm", run).check_options(given) == given
    with pytest.raises(InputError, match="option lora of arm is 8"):
        Member("arm", run).check_options({"lora": 8})


def test_retain_terms_keep_what_ascent_destroys():
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    rows = encode_all(model, retain)
    drift = {}
    for term in ("none", "nll", "kl"):
        weight = None if term == "none" else 5.0
        found = run(model, forget, retain, retain_term=term, retain_weight=weight, epochs=10, batch_size=3, lr=5e-3)
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


def test_names_and_sets_that_cannot_be():
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
    rows = rows_of(model)[0]
    for one, row in zip(answer_logprob_rows(model, rows, batch_tokens=1000), rows, strict=True):
        assert one.tolist() == pytest.approx(logprobs(model, row), rel=1e-6)  # RMSNorm is float32


def test_retain_terms_that_cannot_be():
    model, sets = tiny(), tiny_sets()
    for name, term, why in (
        ("rmu", "nll", "no layer behind the one it reads. Possible: none, states"),
        ("pdu", "none", "constraint is on the retain NLL. Possible: nll"),
        ("task_vector", "kl", "negated, so what it kept would be lost. Possible: none"),
        ("npo", "states", "that is rmu's. Possible: none, nll, kl"),
    ):
        with pytest.raises(InputError, match=f"retain_term '{term}' does not go with {name}: .*{why}"):
            run(model, *sets, objective=name, retain_term=term)
    with pytest.raises(UnknownNameError, match="unknown retain_term 'nl'. Did you mean 'nll'"):
        weighting_of(objective["npo"], "nl", None, None)


def test_rows_that_cannot_be_trained_on():
    model, (forget, retain) = tiny(), tiny_sets()
    long = wb.Examples([*forget, Example("long", "what " * 40, "blue")], "long")
    for name in NAMES:
        with pytest.raises(TooLongError, match=r"row 'long': \d+ tokens, but the model's context is 32"):
            run(model, long, retain, objective=name)
        with pytest.raises(DataError, match="share 4 rows"):
            run(model, retain, retain, objective=name)
    with pytest.raises(DataError, match="the set is empty"):
        run(model, forget[:0], retain)


def no_start(prefix):
    """A second row with nothing before its answer."""
    return wb.Examples([Example(f"{prefix}a", "the sky", "blue"), Example(f"{prefix}b", "", "no")], prefix)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_whose_answer_nothing_predicts_is_named_before_the_first_step(name, monkeypatch):
    model, (forget, retain) = three_layers(), tiny_sets()
    options = {"positions": "predicting"} if name == "rmu" else {}
    monkeypatch.setattr("workbench.train.loop._Run", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(DataError, match="row 'xb': the answer starts at position 0"):
        run(model, no_start("x"), retain, objective=name, options=options)
    if objective[name].about["retain"] != "none":
        with pytest.raises(DataError, match="row 'xb': the answer starts at position 0"):
            run(model, forget, no_start("x"), objective=name, options=options)


def test_nan_in_a_retain_partner_names_it(monkeypatch):
    model, real = tiny(torch.float32), Pairs._kept

    def broken(self, partners, kept, epoch):
        bad = torch.tensor([self.retain[i].id == "r1" for i in partners])
        return torch.where(bad, float("nan"), real(self, partners, kept, epoch))

    monkeypatch.setattr(Pairs, "_kept", broken)
    with pytest.raises(TrainingStopped, match=r"is NaN or infinite for 'f\d with r1'; try"):
        run(model, *tiny_sets(), objective="gradient_difference", epochs=2, batch_size=3)


def test_weights_that_cannot_be():
    model, sets = tiny(torch.float32), tiny_sets()
    for given, match in (
        ({"forget_weight": float("nan")}, "forget_weight is nan, expected a number, 0 or more"),
        ({"forget_weight": -1}, "forget_weight is -1"),
        ({"retain_weight": float("inf")}, "retain_weight is inf"),
        ({"retain_weight": -1}, "retain_weight is -1"),
        (
            {"objective": "undial", "retain_weight": 50.0},
            r"retain_weight is 50.0, but undial has no retain term here.*none, nll, kl",
        ),
        ({"retain_term": "none", "retain_weight": 2}, "but npo has no retain term here"),
    ):
        with pytest.raises(InputError, match=match):
            run(model, *sets, **given)


def test_options_are_refused_before_any_pass(monkeypatch):
    model, sets = tiny(torch.float32), tiny_sets()
    mask = wb.attribute.magnitude(model, *sets).mask(0.2)
    monkeypatch.setattr(type(model.hf), "forward", lambda *_, **__: pytest.fail("a pass was made"))
    for given, match in (
        ({"mask": mask, "lora": {"rank": 2}}, "mask and lora are both given"),
        ({"lr": 0.0}, "lr is 0.0, expected a positive number"),
    ):
        with pytest.raises(InputError, match=match):
            run(model, *sets, **given)


def test_adapters_that_cannot_be():
    for given in (8, "q_proj"):  # the tests check types before that
        with pytest.raises(InputError, match=f"lora is {given!r}, expected a `Lora`, a mapping such as"):
            read_lora.__wrapped__(given)
