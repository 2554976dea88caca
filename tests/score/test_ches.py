"""CHES and the numbers beside it: the definition in float64, by hand, and nothing that padding, batches or halves change."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import score as truth
from tests.score.cases import capped, double, small, states_of, story_pairs, tiny_pairs
from workbench.core.errors import DataError, InputError, NumericsError, TooLongError
from workbench.core.records import PreferencePair, PreferencePairs
from workbench.load.batches import encode_pairs
from workbench.score.ches import COLUMNS, _centered


def swapped(pairs):
    return PreferencePairs([PreferencePair(p.id, p.prompt, p.rejected, p.chosen) for p in pairs], pairs.name)


def assert_definition(scores, states, *, rtol):
    """Both forms against <S+, S-> - |S+|^2 of reference states, relative to the larger term (a score may be near 0)."""
    for name, define in (("ches_sum", truth.ches), ("ches_mean", truth.ches_normalized)):
        for i, (plus, minus) in enumerate(states):
            share = 1 if name == "ches_sum" else len(plus)
            size = float(sum(plus) @ sum(plus)) / share**2
            assert scores.columns[name][i] == pytest.approx(define(plus, minus), rel=rtol, abs=rtol * size), f"{name} of pair {i}"


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_it_is_the_definition_whatever_the_padding_and_the_batch(side, batch_size):
    model = small()
    found = wb.score.ches(model, tiny_pairs(), side=side, batch_size=batch_size)
    assert_definition(found, states_of(truth, model, tiny_pairs()), rtol=1e-9)  # float64 on both sides
    assert found.values.tolist() == found.columns["ches_mean"].tolist()
    assert tuple(found.columns) == COLUMNS
    assert found.ids == ("p0", "p1", "p2", "p3", "p4")


def test_by_hand():
    # S+ = (1, 2) + (3, 0) = (4, 2), S- = (0, 5): S+ . (S- - S+) = (4, 2) . (-4, 3) = -10; <S+, S-> - |S+|^2 = 10 - 20
    # m+ = (2, 1), m- = (0, 5): (2, 1) . (-2, 4) = 0
    sums = torch.tensor([[4.0, 2.0], [0.0, 5.0]], dtype=torch.float64)
    assert float(_centered(sums)) == -10
    assert float(_centered(sums / torch.tensor([[2], [1]]))) == 0
    states = [np.array([1.0, 2.0]), np.array([3.0, 0.0])], [np.array([0.0, 5.0])]
    assert truth.ches(*states) == -10
    assert truth.ches_normalized(*states) == 0


@pytest.mark.parametrize("length_normalize", [True, False])
def test_the_authors_left_padded_form_with_end_of_text(length_normalize):
    model = small()
    coded = encode_pairs(model, tiny_pairs())
    width = max(len(row.tokens) for pair in coded for row in (pair.chosen, pair.rejected))
    expected = []
    for pair in coded:
        padded, last = [], []
        for row in (pair.chosen, pair.rejected):
            states, _ = truth.final_states(model.hf, row.tokens)
            padded.append(np.concatenate([np.full((width - len(states), states.shape[1]), 7.0), states]))  # pads are masked there
            last.append(width - len(states) + row.start - 1)
        expected.append(truth.library_ches(*padded, last, normalize=length_normalize))
    found = wb.score.ches(model, tiny_pairs(), length_normalize=length_normalize)
    np.testing.assert_allclose(found.values, expected, rtol=1e-9, atol=1e-9)  # float64; equal answers give 0


def test_equal_answers_score_exactly_nothing_and_are_counted():
    found = wb.score.ches(small(torch.float32), tiny_pairs())
    assert found.values[3] == 0
    assert found.columns["ches_sum"][3] == 0
    assert found.columns["logprob_chosen"][3] == found.columns["logprob_rejected"][3]
    assert found.provenance.notes == {"identical": "1 of 5 pairs is identical: score 0 (p3)"}
    assert "1 of 5 pairs is identical" in repr(found)
    assert "1 of 5 pairs is identical" in found._repr_html_()


def test_equal_answers_score_nothing_though_the_rows_of_a_batch_differ_in_their_last_bits():
    model = small()

    def shaken(module, given, said):
        del module, given
        return said * (1 + 1e-9 * torch.arange(len(said), dtype=torch.float64)[:, None, None])

    handle = model.hf.model.norm.register_forward_hook(shaken)
    found = wb.score.ches(model, tiny_pairs())
    handle.remove()
    assert found.values[3] == 0
    assert found.columns["logprob_chosen"][3] == found.columns["logprob_rejected"][3]
    assert (found.values[[0, 1, 2, 4]] != 0).all()


def test_exchanged_answers():
    # CHES(+-) + CHES(-+) = 2 <S+, S-> - |S+|^2 - |S-|^2 = -|S+ - S-|^2
    model = small()
    one, other = (wb.score.ches(model, pairs, length_normalize=False) for pairs in (tiny_pairs(), swapped(tiny_pairs())))
    expected = [-float(((sum(plus) - sum(minus)) ** 2).sum()) for plus, minus in states_of(truth, model, tiny_pairs())]
    np.testing.assert_allclose(one.values + other.values, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.columns["logprob_chosen"], other.columns["logprob_rejected"], rtol=1e-12)
    for name in ("last_hidden", "edit_distance", "length", "starts_alike"):
        np.testing.assert_allclose(one.columns[name], other.columns[name], rtol=1e-12)


def test_the_numbers_beside_it():
    model = small()
    found = wb.score.ches(model, tiny_pairs())
    for i, (pair, (plus, minus)) in enumerate(
        zip(encode_pairs(model, tiny_pairs()), states_of(truth, model, tiny_pairs()), strict=True)
    ):
        for name, row in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            _, logits = truth.final_states(model.hf, row.tokens)
            assert found.columns[f"logprob_{name}"][i] == pytest.approx(truth.logprob(logits, row.tokens, row.start), rel=1e-9)
            assert found.columns[f"length_{name}"][i] == len(row.tokens) - row.start
        assert found.columns["last_hidden"][i] == pytest.approx(float(plus[-1] @ minus[-1]), rel=1e-9)
        assert found.columns["length"][i] == len(plus) + len(minus)
    # "blue" / "very very green": 3 edits of 3; 5 words / "no": 5 of 5; "no" / "no no": 1 of 2; equal: 0;
    # "a very green sea" / "a very blue sky and grass": two exchanged, two added, of 6
    np.testing.assert_allclose(found.columns["edit_distance"], [-1, -1, -1 / 2, 0, -4 / 6])
    assert found.columns["starts_alike"].tolist() == [0, 0, 1, 2, 2]
    assert found.columns["length"].tolist() == [2 + 4, 6 + 2, 2 + 3, 3 + 3, 5 + 7]


def test_the_order_of_the_pairs_does_not_matter():
    model, pairs = small(), tiny_pairs()
    one, other = wb.score.ches(model, pairs), wb.score.ches(model, pairs.take([4, 2, 0, 1, 3]))
    np.testing.assert_allclose(other.values, one.values[[4, 2, 0, 1, 3]], rtol=1e-12, atol=1e-12)


def test_without_the_end_of_text():
    model, pairs = small(), PreferencePairs([PreferencePair("a", "the sky is", "blue", "green")], "words")
    found = wb.score.ches(model, pairs, end=False)
    # one token each, predicted from the same state h: h . (h - h) = 0
    assert found.columns["length"].tolist() == [2.0]
    assert found.values.tolist() == [0.0]
    assert found.columns["logprob_chosen"][0] != found.columns["logprob_rejected"][0]
    said = "1 of 1 pairs is predicted from one shared hidden state: CHES is 0 by construction (a); keep end=True"
    assert found.provenance.notes == {"shared": said}
    assert said in repr(found)
    ended = wb.score.ches(model, pairs)
    assert ended.values[0] != 0
    assert ended.provenance.notes == {}


def test_answers_that_differ_in_their_last_token_alone():
    texts = [("a", "is blue", "is green"), ("b", "is blue", "no"), ("c", "no", "green")]
    pairs = PreferencePairs([PreferencePair(name, "the sky", *two) for name, *two in texts], "words")
    model = small(torch.float32)
    found = wb.score.ches(model, pairs, end=False)
    assert found.values[[0, 2]].tolist() == [0.0, 0.0]
    assert found.values[1] != 0
    notes = found.provenance.notes
    assert notes["shared"].startswith("2 of 3 pairs are predicted from shared hidden states: CHES is 0 by construction (a, c)")
    with pytest.raises(InputError, match=r"filter: ches is 0 for all 2 pairs.*keep end=True"):
        wb.score.ches(model, pairs.take([0, 2]), end=False).filter(0.5)


def test_real_models_of_another_kind(stories, slm):
    for model, kind in ((stories, "Llama"), (slm, "GPT-2, no end-of-text, Conv1D")):
        found = wb.score.ches(model, story_pairs(), batch_size=2)
        left = wb.score.ches(model, story_pairs(), side="left")
        # float32 states on both sides: sums of some 40 states of relative error 1e-6
        assert_definition(found, states_of(truth, model, story_pairs()), rtol=1e-5)
        np.testing.assert_allclose(left.values, found.values, rtol=1e-4, atol=1e-4, err_msg=kind)
        assert_definition(wb.score.ches(double(model), story_pairs()), states_of(truth, model, story_pairs()), rtol=1e-9)


def test_what_lies_behind_the_unembedding_still_happens():
    model = capped()
    found = wb.score.ches(model, tiny_pairs())
    assert_definition(found, states_of(truth, model, tiny_pairs()), rtol=1e-9)
    for i, pair in enumerate(encode_pairs(model, tiny_pairs())):
        _, logits = truth.final_states(model.hf, pair.chosen.tokens)
        assert float(np.abs(logits).max()) < 1  # the softcap
        expected = truth.logprob(logits, pair.chosen.tokens, pair.chosen.start)
        assert found.columns["logprob_chosen"][i] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precision_sums_in_float32(root, dtype, rtol):
    # the states carry rounding of 2^-9 and 2^-12 a layer; what is asked is that summing adds none, relative to |S+|^2
    model = wb.load(root / "data/models/stories260K", dtype=dtype)
    found = wb.score.ches(model, story_pairs())
    assert_definition(found, states_of(truth, double(model), story_pairs()), rtol=rtol)


def test_a_sum_beyond_half_precision_does_not_overflow():
    # entries of up to 16000 sqrt(8) = 45,300 fit float16; the sum of two does not (65,504), nor does a square
    model = small(torch.float16)
    with torch.no_grad():
        model.hf.model.norm.weight.mul_(16000)
        model.hf.lm_head.weight.div_(16000)
    found = wb.score.ches(model, tiny_pairs(), length_normalize=False)
    assert np.isfinite(found.values).all()
    states = states_of(truth, double(model), tiny_pairs())
    assert max(float(np.abs(sum(plus)).max()) for plus, _ in states) > 65504
    assert_definition(found, states, rtol=1e-2)  # float16 states, see above


def test_the_unembedding_runs_once_and_on_answers_alone():
    model, seen = small(), []
    handle = model.hf.lm_head.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    wb.score.ches(model, tiny_pairs())
    handle.remove()
    assert seen == [(1, 37, 8)]  # 6 + 8 + 5 + 6 + 12 answer tokens of the five pairs
    assert not model.hf.lm_head._forward_pre_hooks


def test_it_leaves_the_model_alone():
    model = small()
    before = model.fingerprint()
    wb.score.ches(model, tiny_pairs())
    assert model.fingerprint() == before
    assert all(p.grad is None for p in model.hf.parameters())


def test_what_is_refused():
    model = small()
    long = [PreferencePair(str(i), "the sky is " * 9, "blue " * (1 + 9 * (i % 2)), "no") for i in range(4)]
    with pytest.raises(TooLongError, match="2 of 4 pairs do not fit .*1, chosen.*3, chosen"):
        wb.score.ches(model, PreferencePairs(long, "long"))
    with pytest.raises(DataError, match="the response is empty"):
        wb.score.ches(model, PreferencePairs([PreferencePair("a", "the sky", "blue", " ")], "x"))
    with pytest.raises(InputError, match="batch_size is 0"):
        wb.score.ches(model, tiny_pairs(), batch_size=0)
    with pytest.raises(InputError, match="side is 'up'"):
        wb.score.ches(model, tiny_pairs(), side="up")
    model.hf.train()
    with pytest.raises(InputError, match="training mode"):
        wb.score.ches(model, tiny_pairs())
    assert not model.hf.lm_head._forward_pre_hooks


def test_infinite_states_stop_it():
    model = small()
    with torch.no_grad():
        model.hf.model.norm.weight[0] = torch.inf
    with pytest.raises(NumericsError, match="final hidden states of tiny"):
        wb.score.ches(model, tiny_pairs())
