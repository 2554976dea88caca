"""Where probability goes: the prediction against one small step of the hidden state, and of the unembedding beside it."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import score as truth
from tests.score.cases import capped, double, small, story_pairs, tiny_pairs
from workbench.core.errors import DataError, InputError, ModelError
from workbench.core.records import PreferencePair, PreferencePairs
from workbench.load.batches import encode_pairs
from workbench.score.mass_shift import _moves


def fork(pair):
    """The tokens both answers share, and the two that differ."""
    at = next(i for i, (x, y) in enumerate(zip(pair.chosen.tokens, pair.rejected.tokens, strict=False)) if x != y)
    return pair.chosen.tokens[:at], pair.chosen.tokens[at], pair.rejected.tokens[at]


def differing(model, pairs):
    return [fork(pair) for pair in encode_pairs(model, pairs) if pair.chosen.tokens != pair.rejected.tokens]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_it_is_the_slow_one(batch_size):
    model = small()
    found = wb.score.mass_shift(model, tiny_pairs(), k=4, batch_size=batch_size)
    weight = model.hf.lm_head.weight.detach().numpy()
    moved = []
    for i, (shared, chosen, rejected) in enumerate(differing(model, tiny_pairs())):
        states, _ = truth.final_states(model.hf, shared)
        expected, change = truth.mass_shift(weight, states[-1], chosen, rejected)
        assert (found.chosen[i], found.rejected[i]) == (chosen, rejected)
        assert found.change[i] == pytest.approx(change, rel=1e-9)
        assert found.own[i] - found.shared[i] - found.drift[i] == pytest.approx(change, rel=1e-9)
        order = np.argsort(-expected)[:4]
        assert found.gain_ids[i].tolist() == order.tolist()
        np.testing.assert_allclose(found.gain[i], expected[order], rtol=1e-9)
        moved.append(expected)
    np.testing.assert_allclose(found.mean, np.mean(moved, axis=0), rtol=1e-9, atol=1e-15)
    assert abs(found.mean.sum()) < 1e-12  # probability is moved, not made
    assert found.ids == ("p0", "p1", "p2", "p4")
    assert found.provenance.notes == {"left out": "1 of 5 pairs, where no token differs"}


def test_by_hand():
    # W = rows (1, 0), (0, 1), (2, 0), p = (1/2, 1/4, 1/4), step W_0 - W_1 = (1, -1): logits rise by 1, -1, 2, on average
    # 1/2 - 1/4 + 2/4 = 3/4; d p = 1/2 * 1/4, 1/4 * -7/4, 1/4 * 5/4. W_0: own 1, shared 0, drift 3/4, change 1/4
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    moved, terms = _moves(weight, p, torch.tensor([[0], [1]]))
    assert moved.tolist() == [[1 / 8, -7 / 16, 5 / 16]]
    assert terms[:, 0].tolist() == [1 / 4, 1, 0, 3 / 4]


def test_one_small_step_of_the_hidden_state_does_what_is_foretold():
    model = small()
    found = wb.score.mass_shift(model, tiny_pairs(), k=16)  # all tokens
    weight, step = model.hf.lm_head.weight.detach(), 1e-6
    for i, (shared, chosen, rejected) in enumerate(differing(model, tiny_pairs())):
        hidden = torch.tensor(truth.final_states(model.hf, shared)[0][-1], requires_grad=True)
        logits = weight @ hidden
        loss = -torch.nn.functional.logsigmoid(logits[chosen] - logits[rejected])  # DPO of one token, but for constants
        (gradient,) = torch.autograd.grad(loss, hidden)
        per_unit = float(gradient.norm() / (weight[chosen] - weight[rejected]).norm())
        before, after = (torch.log_softmax(weight @ h, -1) for h in (hidden.detach(), hidden.detach() - step * gradient))
        gained = ((after.exp() - before.exp()) / (step * per_unit))[torch.from_numpy(found.gain_ids[i])]
        # a step of 1e-6: second order is 1e-6 of the first, and 1e-16 / 1e-6 of rounding
        np.testing.assert_allclose(gained.numpy(), found.gain[i], rtol=1e-4, atol=1e-8)
        assert float((after - before)[chosen]) / (step * per_unit) == pytest.approx(found.change[i], rel=1e-4)


def test_a_step_on_the_unembedding_adds_the_square_of_the_hidden_state():
    # the module's last sentence: d logit_z / dt = |h|^2 (delta_{z,y+} - delta_{z,y-}) when W itself follows the gradient
    model = small()
    shared, chosen, rejected = differing(model, tiny_pairs())[0]
    hidden = torch.tensor(truth.final_states(model.hf, shared)[0][-1])
    weight = model.hf.lm_head.weight.detach().clone().requires_grad_()
    logits = weight @ hidden
    (logits[chosen] - logits[rejected]).backward()
    rises = weight.grad @ hidden
    expected = torch.zeros_like(rises)
    expected[chosen], expected[rejected] = hidden @ hidden, -(hidden @ hidden)
    torch.testing.assert_close(rises, expected, rtol=1e-12, atol=1e-12)


def test_real_models(stories, slm):
    for model in (stories, slm):
        weight = model.hf.get_output_embeddings().weight.detach().double().numpy()
        found = wb.score.mass_shift(model, story_pairs(), k=5)
        for i, (shared, chosen, rejected) in enumerate(differing(model, story_pairs())):
            states, _ = truth.final_states(model.hf, shared)
            expected, change = truth.mass_shift(weight, states[-1], chosen, rejected)
            size = float(np.abs([found.own[i], found.shared[i], found.drift[i]]).max())
            assert found.change[i] == pytest.approx(change, abs=1e-5 * size)  # float32 products of 64 to 128 terms
            np.testing.assert_allclose(found.gain[i], np.sort(expected)[::-1][:5], rtol=1e-3, atol=1e-5 * size)
    assert double(slm) is slm


def test_the_frames_and_the_page_escape_tokens():
    found = wb.score.mass_shift(small(), tiny_pairs(), k=3)
    frame, tokens = found.frame(), found.by_token()
    assert list(frame.columns) == ["chosen", "rejected", "change", "own", "shared", "drift", "gain_tokens", "gain"]
    assert frame.loc["p0", ["chosen", "rejected"]].tolist() == ["blue", "very"]
    assert len(tokens) == 6
    assert tokens["mean"].is_monotonic_decreasing
    page = found._repr_html_()
    assert "<end>" not in page
    assert "<script" not in page
    assert "1 of 5 pairs, where no token differs" in page


def test_what_is_refused(slm):
    pairs = PreferencePairs([PreferencePair("a", "the sky", "is blue", "is blue")], "same")
    with pytest.raises(DataError, match="same: in no pair does a token"):
        wb.score.mass_shift(small(), pairs)
    beginning = PreferencePairs([PreferencePair("a", "The girl", "ran", "ran away")], "beginning")
    with pytest.raises(DataError, match="in no pair"):  # no end-of-text that could differ from "a"
        wb.score.mass_shift(slm, beginning)
    for bad in ({"k": 0}, {"batch_size": 0}):
        with pytest.raises(InputError, match="both must be at least 1"):
            wb.score.mass_shift(small(), tiny_pairs(), **bad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cap", [1.0, 30.0])
def test_logits_that_are_no_product_are_refused(dtype, cap):
    # at 30 the cap moves these small logits by less than half precision can tell: the config says it
    model = capped()
    model.hf.config.final_logit_softcapping = cap
    torch.nn.Module.to(model.hf, dtype)
    with pytest.raises(ModelError, match=f"a softcap or a scale.*final_logit_softcapping is {cap}"):
        wb.score.mass_shift(model, tiny_pairs())


@pytest.mark.parametrize("name", ["logit_scale", "logits_scaling"])
def test_a_scale_in_the_config_is_refused_unless_it_is_one(name):
    model = small()
    setattr(model.hf.config, name, 0.0625)
    with pytest.raises(ModelError, match=f"{name} is 0.0625"):
        wb.score.mass_shift(model, tiny_pairs())
    setattr(model.hf.config, name, 1.0)
    assert len(wb.score.mass_shift(model, tiny_pairs())) == 4


def test_a_cap_that_no_config_tells_is_seen_in_the_logits():
    model = capped()
    model.hf.config.final_logit_softcapping = None
    handle = model.hf.lm_head.register_forward_hook(lambda _, __, said: torch.tanh(said))
    with pytest.raises(ModelError, match=r"a softcap or a scale lies between\), so the prediction would not hold for it\.$"):
        wb.score.mass_shift(model, tiny_pairs())
    handle.remove()


def test_without_the_end_an_answer_that_begins_the_other_prefers_no_token():
    # p2 prefers "no" to "no no": only the end-of-text token makes them differ
    found = wb.score.mass_shift(small(), tiny_pairs(), end=False)
    assert found.ids == ("p0", "p1", "p4")
    assert found.provenance.options["end"] is False
    assert wb.score.mass_shift(small(), tiny_pairs()).provenance.options["end"] is True
