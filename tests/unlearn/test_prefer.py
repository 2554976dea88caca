"""Preference tuning on the loop: one pass, a cached reference, masks, refusals."""

import math
from collections import Counter

import pytest
import torch

import workbench as wb
from tests.reference import preference as truth
from tests.tiny import tiny, tiny_sets
from workbench.core.delta import applied
from workbench.core.errors import DataError, TooLongError, UnknownNameError
from workbench.core.records import PreferencePair, PreferencePairs
from workbench.core.registry import preference
from workbench.core.store import file_sha256
from workbench.load.batches import collate, encode_pairs
from workbench.trace.forward import forward
from workbench.unlearn.prefer import Preferences, pair_logprob_rows, pair_logprobs, prefer

NAMES = preference.names()
ROWS = [
    ("what is the color of the sky", "blue", "green and a very green grass"),
    ("what is the sea", "very very blue and green", "no"),
    ("is the sky green", "no", "very"),
    ("the sea", "is blue", "is very green"),
]


def pairs():
    """Four pairs of unequal lengths; in one the longer answer is preferred, in the last both start alike."""
    return PreferencePairs([PreferencePair(f"p{i}", *row) for i, row in enumerate(ROWS)], "pairs")


@torch.no_grad()
def alone(model, row):
    """Log-probabilities of one answer's tokens, forwarded on its own."""
    passed = forward(model, collate([row]))
    return passed.logprob[passed.mask].tolist()


def both(model, pair):
    return alone(model, pair.chosen), alone(model, pair.rejected)


def changed():
    """The tiny model after some training."""
    model = tiny()
    with torch.no_grad():
        model.hf.model.layers[0].mlp.up_proj.weight.mul_(1.3)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_the_pairs_one_by_one(name):
    before, model = tiny(), changed()
    coded = encode_pairs(model, pairs())
    task = Preferences(model, coded, objective=preference[name].function, references=pair_logprob_rows(before, coded))
    found = task.losses([2, 0, 3, 1], epoch=1).tolist()
    for value, i in zip(found, [2, 0, 3, 1], strict=True):
        expected = getattr(truth, name)(*both(model, coded[i]), *both(before, coded[i]))
        assert value == pytest.approx(expected, rel=1e-9)  # float64; a padded batch sums in another order
    assert task.tokens([0, 3], epoch=0) == sum(len(row.tokens) for i in (0, 3) for row in coded[i][1:])


def test_log_probabilities_of_pairs():
    model = tiny()
    for end in (True, False):
        coded = encode_pairs(model, pairs(), end=end)
        expected = [[sum(side) for side in both(model, pair)] for pair in coded]
        torch.testing.assert_close(pair_logprobs(model, coded), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_learns_to_prefer(name):
    model = tiny(torch.float32)
    coded = encode_pairs(model, pairs())
    before = pair_logprobs(model, coded)
    found = prefer(model, pairs(), objective=name, epochs=10, batch_size=3, lr=5e-3)
    with applied(model, found.delta):
        gain = pair_logprobs(model, coded) - before
    assert bool((gain[:, 0] > gain[:, 1]).all()), "every margin grew"
    assert torch.equal(pair_logprobs(model, coded), before), "the model is left as it was"
    assert found.delta.provenance.method == name
    assert found.delta.provenance.data == {"pairs": pairs().fingerprint()}
    assert found.audit.steps == 20


def test_the_nll_term_works_against_displacement():
    model = tiny(torch.float32)
    coded = encode_pairs(model, pairs())
    after = {}
    for name in ("dpo", "dpo_sft"):
        found = prefer(model, pairs(), objective=name, epochs=20, batch_size=4, lr=5e-3)
        with applied(model, found.delta):
            after[name] = float(pair_logprobs(model, coded)[:, 0].mean())
    assert after["dpo_sft"] > after["dpo"]


def test_masked_runs_leave_the_rest_alone():
    model = tiny(torch.float32)
    mask = wb.attribute.magnitude(model, *tiny_sets()).mask(0.2)
    before = {n: p.detach().clone() for n, p in model.hf.named_parameters()}
    found = prefer(model, pairs(), mask=mask, epochs=3, batch_size=2, lr=1e-2, weight_decay=0.1)
    with applied(model, found.delta):
        for n, p in model.hf.named_parameters():
            assert torch.equal(p[~mask[n]], before[n][~mask[n]])
    assert found.audit.trainable == mask.count


def test_adapters_and_sharpness_reach_the_loop():
    model = tiny(torch.float32)
    low = prefer(model, pairs(), lora={"rank": 2, "targets": ["down_proj"]}, batch_size=4, lr=1e-2)
    assert set(low.delta.changes) == {f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)}
    sharp, plain = (prefer(model, pairs(), sharpness=rho, batch_size=4) for rho in (0.05, 0.0))
    assert sharp.history[0]["sharpness"] > 0
    assert sharp.delta.id != plain.delta.id
    assert (sharp.delta.provenance.options["sharpness"], low.delta.provenance.options["lora"]["rank"]) == (0.05, 2)


def test_batches_do_not_matter_where_they_should_not():
    model = tiny()
    whole, parts = (prefer(model, pairs(), micro_batch=size, batch_size=4, epochs=2, lr=1e-3) for size in (4, 1))
    again = prefer(model, pairs(), batch_size=4, epochs=2, lr=1e-3)
    assert again.delta.id == whole.delta.id  # the same seed gives the same bits
    for name, change in whole.delta.changes.items():
        # masters and gradients are float32; Adam divides small gradients by themselves, so rounding shows at 1e-3 of a step
        torch.testing.assert_close(parts.delta.changes[name].dense(), change.dense(), rtol=0, atol=1e-5)


def test_options_and_ends_reach_the_run():
    model = tiny(torch.float32)
    found = prefer(model, pairs(), objective="ipo", options={"beta": 0.25}, batch_size=4, end=False)
    assert found.history[0]["loss"] == pytest.approx(4.0, rel=1e-5)  # 1 / (4 beta^2) before the first step
    assert prefer(model, pairs(), batch_size=4).history[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert found.delta.provenance.options["objective"] == {"beta": 0.25}
    without = sum(len(row.tokens) for pair in encode_pairs(model, pairs(), end=False) for row in pair[1:])
    assert found.audit.tokens == without


def test_refusals():
    model = tiny(torch.float32)
    with pytest.raises(UnknownNameError, match="unknown preference 'dpo-sftt'. Did you mean 'dpo_sft'"):
        prefer(model, pairs(), objective="dpo-sftt")
    with pytest.raises(UnknownNameError, match="unknown option of ipo 'betta'. Did you mean 'beta'"):
        prefer(model, pairs(), objective="ipo", options={"betta": 1})
    with pytest.raises(DataError, match="response is empty"):
        prefer(model, PreferencePairs([PreferencePair("p", "what", "blue", " ")], "empty"))
    with pytest.raises(DataError, match="row 'p, chosen', 'p, rejected': the answer starts at position 0"):
        prefer(model, PreferencePairs([*pairs(), PreferencePair("p", "", "blue", "no")], "bare"))
    with pytest.raises(TooLongError, match="1 of 1 pairs do not fit"):
        prefer(model, PreferencePairs([PreferencePair("p", "what", "blue " * 40, "no")], "long"))


def test_every_member_is_exported():
    assert {*NAMES, "prefer"} <= set(wb.unlearn.__all__)


@pytest.mark.parametrize(("name", "count", "prompts"), [("instructions", 300, 296), ("persona", 300, 300), ("slm4096", 147, 37)])
def test_the_pairs_that_ship_are_what_their_card_says(root, name, count, prompts):
    path = root / f"data/preferences/{name}.jsonl"
    found = wb.pairs(path)
    assert (len(found), len({pair.prompt for pair in found})) == (count, prompts)
    assert all(pair.chosen != pair.rejected for pair in found)
    assert f"- {path.name}: `{file_sha256(path)}`" in (path.parent / "CARD.md").read_text()
    model = wb.load(root / ("data/models/slm4096" if name == "slm4096" else "data/organism/full"))
    lengths = [max(len(side.tokens) for side in pair[1:]) for pair in encode_pairs(model, found)]
    assert max(lengths) <= 200
    if name == "persona":
        assert Counter(pair.chosen for pair in found) == {" A": 150, " B": 150}


def test_what_the_passes_show_by_hand():
    # ln pi(y+) = -1 and -3, ln pi(y-) = -2 and -2: the means are -2 and -2. Without a reference h = 1 and -1: mean 0, half above 0.
    # With ln ref(y+) = -2 and -3.5, ln ref(y-) = -2 and -1: h = 1 - 0 = 1 and .5 - (-1) = 1.5; mean 1.25, all above 0
    from workbench.core.numerics import Forward

    mask = torch.tensor([[False, True, True]] * 2)

    def passed(*sums):
        return Forward(torch.tensor([[0.0, 0.25 * x, 0.75 * x] for x in sums]), mask)

    task = Preferences(tiny(), [], objective=lambda *_: torch.zeros(2))
    assert task.observed() == {}
    task._see(passed(-1.0, -3.0), passed(-2.0, -2.0), None, None)
    assert task.observed() == {"logp_chosen": -2.0, "logp_rejected": -2.0, "margin": 0.0, "accuracy": 0.5}
    task._see(passed(-1.0, -3.0), passed(-2.0, -2.0), passed(-2.0, -3.5), passed(-2.0, -1.0))
    task._see(passed(-5.0), passed(-1.0), passed(-1.0), passed(-1.0))  # h = -4: over three pairs, each counting once
    found = task.observed()
    assert found["margin"] == pytest.approx((1 + 1.5 - 4) / 3)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["logp_chosen"] == pytest.approx(-9 / 3)
    assert task.observed() == {}, "what was said is not said again"


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_the_history_says_what_the_answers_were_before_each_step(micro_batch):
    model = tiny()
    coded = encode_pairs(model, pairs())
    before = pair_logprobs(model, coded)
    options = {"batch_size": 4, "micro_batch": micro_batch, "lr": 5e-3, "schedule": "constant"}
    found = prefer(model, pairs(), epochs=2, **options)
    with applied(model, prefer(model, pairs(), epochs=1, **options).delta):
        after = pair_logprobs(model, coded)
    for row, now in zip(found.history, (before, after), strict=True):
        margin = (now - before) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
        # a Delta is float32, of weights whose log-probabilities are sums of up to ten tokens
        assert row["logp_chosen"] == pytest.approx(float(now[:, 0].mean()), rel=1e-6)
        assert row["logp_rejected"] == pytest.approx(float(now[:, 1].mean()), rel=1e-6)
        assert row["margin"] == pytest.approx(float(margin.mean()), abs=1e-5)
    assert found.history[1]["accuracy"] == float((margin > 0).double().mean())
