"""Loss, EL2N, GraNd and length of single rows: slow float64 loops, hand values, ranges."""

import math

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import score as truth
from tests.score.cases import small
from tests.tiny import tiny_sets
from workbench.core.errors import DataError, NumericsError
from workbench.core.row_scores import RowScores
from workbench.load.batches import Encoded, encode_all
from workbench.score.rows import _error_norms
from workbench.score.states import Answers


def test_each_is_the_slow_one():
    model, rows = small(), tiny_sets()[1]
    coded = encode_all(model, rows)
    found = {f.__name__: f(model, rows) for f in (wb.score.loss, wb.score.el2n, wb.score.grad_norm, wb.score.length)}
    for i, row in enumerate(coded):
        _, logits = truth.final_states(model.hf, row.tokens)
        n = len(row.tokens) - row.start
        assert found["loss"].values[i] == pytest.approx(-truth.logprob(logits, row.tokens, row.start) / n, rel=1e-9)
        assert found["el2n"].values[i] == pytest.approx(truth.el2n(logits, row.tokens, row.start), rel=1e-9)
        assert found["grad_norm"].values[i] == pytest.approx(truth.grad_norm(model.hf, row.tokens, row.start), rel=1e-9)
        assert found["length"].values[i] == n
    for name, scores in found.items():
        assert isinstance(scores, RowScores)
        assert scores.name == name
        assert scores.ids == tuple(rows.ids)
        assert scores.higher
        assert scores.provenance.data == {"rows": rows.fingerprint()}


def fixed(logits, target):
    logits = torch.tensor(logits, dtype=torch.float64)
    return Answers(torch.zeros(len(logits), 1, dtype=torch.float64), logits, torch.tensor(target), [len(target)])


def test_el2n_by_hand():
    # p = (1/2, 1/4, 1/4), y = 0: (-1/2, 1/4, 1/4) has norm sqrt(3/8); p uniform over 4, y any: sqrt(9/16 + 3/16) = sqrt(3/4)
    assert float(_error_norms(fixed([[math.log(2), 0.0, 0.0]], [0]))[0]) == pytest.approx(math.sqrt(3 / 8))
    two = _error_norms(fixed([[0.0] * 4, [math.log(2), 0.0, 0.0, -math.inf]], [3, 0]))
    assert float(two[0]) == pytest.approx((math.sqrt(3 / 4) + math.sqrt(3 / 8)) / 2)  # the mean over tokens


def test_el2n_keeps_its_digits_where_the_model_is_sure():
    # p_y = 1 - e, the others e/2 each: sqrt(e^2 + e^2/2) = e sqrt(3/2). 1 - 2 p_y + sum p^2 has lost all digits in float32
    e = 2 * math.exp(-14)
    scores = Answers(torch.zeros(1, 1), torch.tensor([[14.0, 0.0, 0.0]]), torch.tensor([0]), [1])
    p = 1 / (1 + e)
    assert float(_error_norms(scores)[0]) == pytest.approx((1 - p) * math.sqrt(3 / 2), rel=1e-5)


def test_a_uniform_model():
    model, rows = small(), tiny_sets()[0]
    with torch.no_grad():
        model.hf.lm_head.weight.zero_()
    np.testing.assert_allclose(wb.score.loss(model, rows).values, math.log(16), rtol=1e-12)
    np.testing.assert_allclose(wb.score.el2n(model, rows).values, math.sqrt(15 / 16), rtol=1e-12)


def test_a_logit_that_is_not_a_number_stops_it():
    model = small()
    handle = model.hf.lm_head.register_forward_hook(lambda _, __, said: said * torch.nan)
    for score in (wb.score.loss, wb.score.el2n):
        with pytest.raises(NumericsError, match="NaN or infinite"):
            score(model, tiny_sets()[0])
    handle.remove()


def test_a_row_that_begins_with_its_answer_is_named(monkeypatch):
    # a tokenizer without a beginning-of-text token, and an empty prompt
    rows = tiny_sets()[0]
    bare = [Encoded(row.id, row.tokens, 0 if row.id == rows.ids[1] else row.start) for row in encode_all(small(), rows)]
    monkeypatch.setattr("workbench.score.rows.encode_all", lambda *_: bare)
    for score in (wb.score.loss, wb.score.el2n, wb.score.grad_norm):
        with pytest.raises(DataError, match=f"row {rows.ids[1]!r}: the answer starts at position 0"):
            score(small(), rows)
