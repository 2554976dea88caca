"""States where answers are predicted: against one row at a time, before the final norm."""

import numpy as np
import pytest
import torch

from tests.reference import traces as slow
from tests.tiny import tiny, tiny_sets
from workbench.core.errors import InputError
from workbench.load.batches import collate, encode_all
from workbench.trace.answer_states import all_or, answer_states, predicting


@pytest.mark.parametrize(("side", "dtype", "rtol"), [("right", torch.float64, 1e-9), ("left", torch.float32, 1e-4)])
def test_states_against_one_row_at_a_time(side, dtype, rtol):
    """float64 leaves rounding alone; on the left in float32, for eager attention to nothing overflows in float64."""
    model = tiny(dtype)
    rows = encode_all(model, tiny_sets()[0])
    assert len({len(row.tokens) for row in rows}) == 3  # unequal lengths, so that there is padding
    batch = collate(rows, side=side)
    states, passed = answer_states(model, batch, [1, 0])
    for layer in (0, 1):
        expected = np.concatenate([slow.stream(model.hf, r.tokens)[layer][r.start - 1 : len(r.tokens) - 1] for r in rows])
        np.testing.assert_allclose(states[layer].numpy(), expected, rtol=rtol, atol=rtol / 100)
    own = [slow.span_logprob(model.hf, r.tokens, r.start, len(r.tokens)) for r in rows]
    np.testing.assert_allclose((passed.logprob.sum(1) / passed.mask.sum(1)).numpy(), own, rtol=rtol)


def test_predicting_by_hand():
    """Prompt of 3 and answer of 2 in a row of 6: answer at 3 and 4, predicted at 2 and 3."""
    batch = collate(encode_all(tiny(), tiny_sets()[1])[:1])._replace(
        answer=torch.tensor([[False, False, False, True, True, False]])
    )
    assert predicting(batch).tolist() == [[False, False, True, True, False, False]]


def test_layers():
    model = tiny()
    assert all_or(model, None) == (0, 1)
    assert all_or(model, [1]) == (1,)
    for bad in ([], [2], [-1], [0, 0]):
        with pytest.raises(InputError, match="expected different numbers from 0 to 1"):
            all_or(model, bad)
