"""What well-known code does otherwise, one test a bug: each holds for us and would fail for them."""

import math

import pytest
import torch
from torch.nn.functional import pad

from tests.tiny import tiny, tiny_sets
from tests.unlearn.made import masks, passes
from tests.unlearn.tasks import changed, expected_forget, logprobs, rows_of, task_of, three_layers
from workbench.core.numerics import Forward, States, answer_forward, sequence_logprob
from workbench.core.records import Example, Examples
from workbench.core.registry import objective
from workbench.load.batches import collate, encode_all
from workbench.unlearn import dpo, npo, pdu, refusal_dpo, rmu, run, undial
from workbench.unlearn.pairs import divergence
from workbench.unlearn.prepare import weighting_of
from workbench.unlearn.refusals import refused
from workbench.unlearn.rmu import steering_vector

OF_LOGITS = [member for member in objective if member.about["reads"] != "states"]
VOCAB = 5


def full(seed=0, width=7):
    """Logits at all positions of a padded batch with answers of 1 to 4 tokens, its tokens, and the answer mask."""
    g = torch.Generator().manual_seed(seed)
    mask = masks()
    logits = torch.randn(len(mask), width, VOCAB, generator=g, dtype=torch.float64)
    tokens = torch.randint(VOCAB, (len(mask), width), generator=torch.Generator().manual_seed(5))
    return logits, tokens, pad(mask, (0, width - mask.shape[1]))


def of(member, logits, tokens, answer):
    """An objective of the full logits; what else it takes is made from other logits of the same batch."""
    other = answer_forward(full(3)[0], tokens, answer, keep_logits=True)
    count = 4 if member.about["answers"] == "both" else 2
    return member.function(answer_forward(logits, tokens, answer, keep_logits=True), *[other] * (count - 1))


@pytest.mark.parametrize("member", OF_LOGITS, ids=lambda m: m.name)
def test_no_objective_uses_raw_logits(member):
    """MUSE's NPO takes raw logits, so that a constant added to all of them, which changes no model, lowers its loss."""
    logits, tokens, answer = full()
    shifted = logits + torch.randn(4, 7, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(of(member, shifted, tokens, answer), of(member, logits, tokens, answer), rtol=1e-9, atol=1e-12)


def reading_positions(answer):
    """Where an answer token is predicted: one position before it."""
    places = torch.zeros_like(answer)
    places[:, :-1] = answer[:, 1:]
    return places


@pytest.mark.parametrize("member", OF_LOGITS, ids=lambda m: m.name)
def test_no_objective_teaches_the_prompt_or_padding(member):
    """OpenUnlearning's UNDIAL teaches all positions, its PDU those of the unshifted labels."""
    logits, tokens, answer = full()
    leaf = logits.clone().requires_grad_()
    of(member, leaf, tokens, answer).sum().backward()
    places, moved = reading_positions(answer), leaf.grad.abs().sum(-1) > 0
    if member.name == "ceu":  # the first token of the three longer answers is skipped, that of the short one is its only one
        places[torch.arange(1, 4), 1] = False
    assert torch.equal(moved, places)


def test_undial_does_not_teach_the_prompt_or_padding():
    """A label of -100 there would lower the logit of token d_vocab - 100, and the mean would be over all positions."""
    logits, tokens, answer = full()
    wide = (pad(logits, (0, 0, 0, 6), value=3.0), pad(tokens, (0, 6)), pad(answer, (0, 6)))
    narrow = [answer_forward(x, tokens, answer, keep_logits=True) for x in (logits, full(3)[0])]
    padded = answer_forward(*wide, keep_logits=True)
    torch.testing.assert_close(undial(padded, narrow[1]._replace(mask=padded.mask)), undial(*narrow), rtol=1e-12, atol=0)


def test_undial_runs_no_retain_rows():
    """With a retain weight of 0 OpenUnlearning forwards the retain rows, and back, all the same."""
    model, seen = tiny(), []
    task = task_of(model, "undial")
    model.hf.register_forward_pre_hook(lambda _, __, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True)
    task.losses([0, 1, 2], epoch=0).sum().backward()
    assert seen == [3]
    assert task.tokens([0, 1, 2], epoch=0) == sum(len(row.tokens) for row in rows_of(model)[0])


def test_pdu_positions_are_shifted():
    logits, tokens, answer = full()
    flat = torch.zeros_like(logits)
    flat[reading_positions(answer)] = torch.tensor([5.0, 0, 0, 0, 0], dtype=torch.float64)  # max 5, mean 1
    assert pdu(answer_forward(flat, tokens, answer, keep_logits=True)).tolist() == pytest.approx([16.0] * 4)
    unshifted = torch.zeros_like(logits)
    unshifted[:, 1] = logits[:, 1] * 0 + torch.tensor([5.0, 0, 0, 0, 0])  # predicts the first answer token, at 2
    assert pdu(answer_forward(unshifted, tokens, answer, keep_logits=True)).tolist() == pytest.approx([16, 16 / 2, 16 / 3, 16 / 4])


def test_pdu_moves_lambda_once_a_step_and_not_in_micro_batches():
    """OpenUnlearning's moves in every micro-step, and on every process by itself."""
    model, sets = tiny(), tiny_sets()
    given = {"objective": "pdu", "options": {"dual_rate": 0.5, "epsilon": 1.0}, "epochs": 2, "batch_size": 3, "lr": 1e-3}
    whole, parts = (run(model, *sets, micro_batch=size, **given).history for size in (None, 1))
    assert [row["lambda"] for row in parts] == pytest.approx([row["lambda"] for row in whole], rel=1e-5)
    assert whole[1]["lambda"] == pytest.approx(1 + 0.5 * whole[0]["retain_excess"])


def test_rmu_does_not_broadcast_lengths_against_sums():
    """Four answers of 1, 2, 10, 50 tokens with sums 1, 2, 10, 50: each mean is 1. A column of lengths would give the mean sum,
    63/4, times the mean reciprocal, (1 + 1/2 + 1/10 + 1/50)/4 = .405, which is 6.4."""
    lengths = (1, 2, 10, 50)
    mask = torch.arange(50) < torch.tensor(lengths)[:, None]
    hidden = mask[..., None].double().expand(4, 50, 3)
    assert rmu(States(hidden, mask), States(torch.zeros_like(hidden), mask)).tolist() == [1.0] * 4


def test_rmu_can_steer_the_state_that_predicts_the_first_answer_token():
    """With a mask of the labels OpenUnlearning leaves that state, at the last prompt token, as it is."""
    model = three_layers()
    counted = {}
    for positions in ("all", "answer", "predicting"):
        task = task_of(model, "rmu", options={"positions": positions})
        found = task._states(task.sides[0].rows)
        counted[positions] = [mask.nonzero().squeeze(-1).tolist() for mask in found.mask]
    for i, row in enumerate(rows_of(model)[0]):
        n = len(row.tokens)
        assert counted["all"][i] == list(range(n))
        assert counted["answer"][i] == list(range(row.start, n))
        assert counted["predicting"][i] == list(range(row.start - 1, n - 1))


def test_rmu_runs_no_layer_behind_its_own_and_computes_no_gradient_there():
    """OpenUnlearning runs the whole model, and its optimizer turns the gradients of all weights on again."""
    model, ran = three_layers(torch.float32), []
    for i, layer in enumerate(model.hf.model.layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.hf.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    task = task_of(model, "rmu")
    ran.clear()
    task.losses([0, 1, 2], epoch=0).sum().backward()
    assert ran == [0, 1]
    assert all(p.grad is None for p in model.hf.model.layers[2].parameters())
    found = run(model, *tiny_sets(), objective="rmu", epochs=1, batch_size=3)
    assert found.audit.trainable == 2 * 8 * 20  # the value vectors of layers 0 and 1, and no other weight


def test_rmu_steering_vector_can_be_given():
    """In OpenUnlearning the given vector is dropped before it is looked for. Drawn ones: cosine 3/4 if uniform, 0 if gaussian."""
    given = torch.tensor([0.0, 3, 0, 0, 4, 0, 0, 0])
    task = task_of(three_layers(), "rmu", options={"steering": given, "coefficient": 5.0})
    assert task.targets.tolist() == [pytest.approx([0, 3, 0, 0, 4, 0, 0, 0])] * 3
    for kind, expected in (("uniform", 0.75), ("gaussian", 0.0)):
        one, two = (steering_vector(kind, 10_000, seed=seed) for seed in (0, 1))
        assert float(one @ two) == pytest.approx(expected, abs=0.03)  # three standard deviations of a gaussian's are 3/100
        assert float(one.norm()) == pytest.approx(1.0)


def collapsed():
    """A reference, and a policy with all mass on its likeliest tokens."""
    _, reference = passes(objective["undial"])
    best = reference.logits.argmax(-1, keepdim=True)
    return reference, reference._replace(logits=torch.zeros_like(reference.logits).scatter(-1, best, 30.0))


def before(reference):
    return reference.logits.log_softmax(-1).split(reference.mask.sum(-1).tolist())


def test_kl_is_not_reversed_cross_entropy():
    """-sum p ln q, of WAGLE and SOUL, is least where all mass lies on the reference's arg max; KL is 0 at the reference alone."""
    reference, policy = collapsed()
    assert divergence(before(reference), reference).tolist() == pytest.approx([0.0] * 4, abs=1e-15)
    assert float(divergence(before(reference), policy).min()) > 0.1
    theirs = [-(p.logits.softmax(-1) * reference.logits.log_softmax(-1)).sum() for p in (reference, policy)]
    assert theirs[1] < theirs[0]


def test_kl_is_never_negative_and_flat_at_the_reference():
    """MUSE's, of raw logits, can be negative."""
    reference, _ = collapsed()
    leaf = reference.logits.clone().requires_grad_()
    divergence(before(reference), reference._replace(logits=leaf)).sum().backward()
    assert float(leaf.grad.abs().max()) < 1e-15  # rounding of probabilities that sum to 1
    for seed in range(20):
        moved = 3 * torch.randn(reference.logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert float(divergence(before(reference), reference._replace(logits=reference.logits + moved)).min()) > 0


def test_kl_is_not_averaged_over_padding():
    """TOFU and OpenUnlearning divide by all positions of the padded batch: a short row's loss falls with its neighbor's length."""
    model = tiny()
    task = task_of(model, "kl_minimization", weights=(0.0, 1.0))
    changed(model)
    for i, value in enumerate(task.losses([0, 1, 2], epoch=0).tolist()):
        assert value == pytest.approx(task.losses([i], epoch=0).item(), rel=1e-6)  # RMSNorm is float32


def test_npo_does_not_average_tokens_over_the_micro_batch():
    """WAGLE and SOUL put the token mean of the whole micro-batch into the sigmoid."""
    policy, reference = passes(objective["npo"])
    alone = [npo(policy.part(i, i + 1), reference.part(i, i + 1)) for i in range(4)]
    torch.testing.assert_close(npo(policy, reference), torch.cat(alone), rtol=1e-12, atol=0)
    ratio = sequence_logprob(policy) - sequence_logprob(reference)  # a sum over tokens
    assert npo(policy, reference, beta=0.5).tolist() == pytest.approx([4 * math.log(1 + math.exp(r / 2)) for r in ratio.tolist()])


def test_npo_of_a_model_becomes_ascent_on_the_summed_nll_as_beta_vanishes():
    model, other = tiny(), tiny()
    task = task_of(model, "npo", term="none", options={"beta": 1e-6})
    changed(model)
    changed(other)
    task.losses([0, 1, 2], epoch=0).sum().backward()
    ascent = task_of(other, "gradient_ascent")
    lengths = torch.tensor([len(row.tokens) - row.start for row in ascent.sides[0].rows])
    (lengths * ascent.losses([0, 1, 2], epoch=0)).sum().backward()
    one, two = (torch.cat([p.grad.flatten() for p in m.hf.parameters() if p.grad is not None]) for m in (model, other))
    assert float(one @ two / one.norm() / two.norm()) == pytest.approx(1.0, abs=1e-9)
    assert float(one.norm() / two.norm()) == pytest.approx(1.0, abs=1e-4)  # the weight is 1 + beta ratio / 2, ratios of some nats


def test_idk_weights_are_not_decided_by_token_counts():
    """TOFU takes one mean over the tokens of refusals and retain answers together: few against many."""
    model = tiny()
    task = task_of(model, "idk", refusals=["no"])
    row, kept = task.sides[0].rows[1], task.retain[task.partner(1, 0)]
    expected = sum(-sum(logprobs(model, one)) / len(logprobs(model, one)) for one in (row, kept))
    assert task.losses([1], epoch=0).item() == pytest.approx(expected, rel=1e-6)  # RMSNorm is float32


@pytest.mark.parametrize("name", ["idk", "refusal_dpo"])
def test_idk_attention_is_of_the_refusal(name):
    """WAGLE keeps the mask of the original answer on the refusal, and takes the last token of the first row for padding."""
    model = tiny()
    refusals = ["no", "very very very very very very blue"]  # shorter and longer than the answers
    task, seen = task_of(model, name, refusals=refusals, term="none"), []
    side = task.sides[-1].rows
    hook = model.hf.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["attention_mask"]), with_kwargs=True)
    found = task.losses([0, 1, 2], epoch=0)
    hook.remove()
    assert seen[0][-3:].sum(-1).tolist() == [len(row.tokens) for row in side]  # the refusals come last
    assert found.tolist() == pytest.approx([expected_forget(name, model, model, task, i) for i in range(3)], rel=1e-6)
    assert {len(row.tokens) - row.start for row in side} <= {2, 8}  # with the end-of-text token


def test_refusals_depend_on_the_row_and_the_seed_alone():
    """QAwithIdk draws anew whenever a row is met, so that workers and epochs decide."""
    forget, _ = tiny_sets()
    one = {row.id: row.response for row in refused(forget, seed=3)}
    assert {row.id: row.response for row in refused(forget.take([2, 0]), seed=3)} == {i: one[i] for i in ("f2", "f0")}
    assert any({row.id: row.response for row in refused(forget, seed=seed)} != one for seed in range(4, 8))


def test_refusal_dpo_has_the_scale_of_npo():
    """TOFU's lacks the factor 2/beta, 20 at beta 0.1, and stops with a NameError."""
    answer, answer_before, refusal, refusal_before = passes(objective["refusal_dpo"])
    plain = dpo(refusal, answer, refusal_before, answer_before, beta=0.1)
    torch.testing.assert_close(refusal_dpo(answer, answer_before, refusal, refusal_before), 20 * plain, rtol=1e-12, atol=0)


def test_satimp_ratio_is_forget_ten_to_retain_one():
    """The configuration file of OpenUnlearning has 0.1 for the forget loss and 1 for the retain loss."""
    assert weighting_of(objective["satimp"], None, None, None) == (1.0, 0.1, "nll")
    assert weighting_of(objective["simnpo"], None, None, None) == (0.125, 1.0, "nll")


@pytest.mark.parametrize("name", ["wga", "satimp", "simnpo", "ceu", "pdu"])
def test_no_reference_is_kept_that_is_never_used(name):
    """OpenUnlearning holds a frozen second model for WGA and SatImp."""
    task = task_of(tiny(), name)
    assert all(side.before is None for side in task.sides)


def test_retain_partners_do_not_depend_on_workers_or_micro_batches():
    """OpenUnlearning draws them where rows are loaded: other workers, other pairs."""
    model = tiny()
    asked = [task_of(model, "npo").partners([2, 0, 1], epoch) for epoch in range(3)]
    again = task_of(model, "npo")
    assert [[again.partner(i, epoch) for i in (2, 0, 1)] for epoch in reversed(range(3))] == asked[::-1]


def test_a_short_answer_counts_as_much_as_a_long_one():
    """Hugging Face's mean over the tokens of a micro-batch, used by OpenUnlearning, weighs answers by their length."""
    policy, _ = passes(objective["gradient_ascent"])
    leaf = policy.logprob.clone().requires_grad_()
    objective["gradient_ascent"].function(Forward(leaf, policy.mask)).mean().backward()
    assert (leaf.grad * policy.mask).sum(-1).tolist() == pytest.approx([1 / 4] * 4)


def test_an_answer_of_one_token_counts_in_ceu():
    """With its first token skipped nothing would be left: OpenUnlearning leaves the row out, silently."""
    policy, _ = passes(objective["ceu"])
    assert int(policy.mask[0].sum()) == 1
    assert float(objective["ceu"].function(policy)[0]) > 0


def test_padding_is_told_from_lengths_and_not_from_the_pad_token():
    """OpenUnlearning masks every token that equals the pad token, which is also the end of a turn."""
    model = tiny()
    row = encode_all(model, Examples([Example("a", "what <end> is the <end> sea", "blue")], "a"))
    batch = collate([*row, *rows_of(model)[0]])
    assert int(batch.attention[0].sum()) == len(row[0].tokens) == 8


def test_task_vector_is_not_lost_in_bfloat16():
    """MUSE subtracts in bfloat16: a step of 1e-6 on weights near 0.3 is far below half an ulp, and alpha would multiply zero."""
    model, sets = tiny(torch.bfloat16), tiny_sets()
    given = {"objective": "task_vector", "epochs": 1, "batch_size": 3, "lr": 1e-6}
    found, times = (run(model, *sets, options={"alpha": alpha}, **given) for alpha in (1.0, 4096.0))
    assert found.moved < 0.02 < times.moved
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(times.delta.changes[name].dense(), 4096 * found.delta.changes[name].dense(), rtol=1e-6, atol=0)
