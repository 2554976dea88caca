"""Row NLLs against a slow loop, in any batching; and the rows that nothing predicts, by name."""

import pytest
import torch

from tests.reference import score as truth
from tests.tiny import tiny, tiny_sets
from workbench.core.errors import DataError, InputError
from workbench.load.batches import Encoded, encode_all
from workbench.trace.forward import row_nll


@pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
def test_it_is_the_slow_one_in_the_rows_order(batch_tokens):
    model = tiny()
    rows = encode_all(model, tiny_sets()[1])
    found = row_nll(model, rows, batch_tokens=batch_tokens)
    assert found.dtype == torch.float64
    assert len({len(row.tokens) for row in rows}) > 1
    for value, row in zip(found.tolist(), rows, strict=True):
        _, logits = truth.final_states(model.hf, row.tokens)
        # float64, but for Llama's norms, which transformers computes in float32
        assert value == pytest.approx(-truth.logprob(logits, row.tokens, row.start) / (len(row.tokens) - row.start), rel=1e-6)


def test_no_rows_and_no_gradient():
    model = tiny()
    assert row_nll(model, []).shape == (0,)
    assert not row_nll(model, encode_all(model, tiny_sets()[0])).requires_grad


def test_what_is_refused():
    model = tiny()
    rows = [Encoded("good", [1, 2, 3], 1), Encoded("bare", [1, 2], 0)]
    with pytest.raises(DataError, match="row 'bare': the answer starts at position 0"):
        row_nll(model, rows)
    for size in (0, -3):
        with pytest.raises(InputError, match=f"batch_tokens is {size}, expected 1 or more"):
            row_nll(model, rows[:1], batch_tokens=size)
