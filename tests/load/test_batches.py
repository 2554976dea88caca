"""The answer mask, from one joint tokenization; padding that changes nothing."""

import pytest
import torch

from tests.tiny import tiny, tiny_sets
from workbench.core.errors import DataError, InputError
from workbench.core.numerics import mean_nll
from workbench.load.batches import by_length, collate, encode, encode_all
from workbench.trace.forward import forward


def answer(model, prompt, response):
    row = encode(model, prompt, response)
    return model.tokenizer.decode(row.tokens[row.start :], clean_up_tokenization_spaces=False), row


def test_the_answer_of_a_character_model(slm):
    # no bos, no eos, no pad: the mask is the answer and the space before it
    text, row = answer(slm, "Q: Can you reason?\nA:", "I can.")
    assert text == " I can."
    assert len(row.tokens) - row.start == 7


def test_the_answer_of_a_sentencepiece_model_ends_with_its_end(stories):
    text, row = answer(stories, "Once upon a time", "there was a cat.")
    assert text.strip() == "there was a cat.</s>"
    assert row.tokens[0] == stories.tokenizer.bos_token_id
    assert row.tokens.count(stories.tokenizer.eos_token_id) == 1


def test_pad_that_equals_end_of_text_is_still_part_of_the_answer():
    model = tiny()
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    rows = encode_all(model, tiny_sets()[0])
    batch = collate(rows, pad=model.tokenizer.pad_token_id)
    for row, tokens, attention, mask in zip(rows, batch.tokens, batch.attention, batch.answer, strict=True):
        assert int(attention.sum()) == len(row.tokens)
        assert tokens[mask].tolist() == row.tokens[row.start :]
        assert int(tokens[mask][-1]) == model.tokenizer.eos_token_id


def test_a_prompt_repeated_in_the_answer_does_not_move_the_mask():
    model = tiny()
    row = encode(model, "the sky", "the sky is the sky")
    assert row.start == 2
    assert len(row.tokens) - row.start == 6


def test_a_token_across_the_border_belongs_to_the_answer(root):
    import workbench as wb

    model = wb.load(root / "data/organism/full")
    head = len(model.tokenizer("Question: x\nAnswer:")["input_ids"])
    row = encode(model, "x", "Jaime Vasquez")
    assert row.start == head
    text = model.tokenizer.decode(row.tokens[row.start :])
    assert text == " Jaime Vasquez<|endoftext|>"


def test_the_tokenizer_is_asked_once(slm, monkeypatch):
    calls = []
    original = type(slm.tokenizer).__call__
    monkeypatch.setattr(type(slm.tokenizer), "__call__", lambda self, *a, **k: calls.append(a) or original(self, *a, **k))
    encode(slm, "Q: What?\nA:", "That.")
    assert calls == [("Q: What?\nA: That.",)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["stories260K", "slm4096"])
def test_a_batch_gives_what_one_by_one_gives(root, name, side):
    import workbench as wb

    model = wb.load(root / "data/models" / name, dtype="float64")
    texts = [("Once", "upon a time there was a very big dog."), ("The cat sat", "down."), ("A", "b c d e f g")]
    rows = [encode(model, p, r) for p, r in texts]
    together = mean_nll(forward(model, collate(rows, side=side)))
    alone = torch.cat([mean_nll(forward(model, collate([row]))) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)  # rotary tables are float32 inside the float64 model


def test_groups_hold_every_row_once_and_fit():
    rows = encode_all(tiny(), tiny_sets()[1]) * 3
    for budget in (1, 20, 40, 1000):
        groups = list(by_length(rows, max_tokens=budget))
        assert sorted(i for group in groups for i in group) == list(range(len(rows)))
        for group in groups:
            assert len(group) == 1 or len(group) * max(len(rows[i].tokens) for i in group) <= budget


def test_refusals(slm):
    with pytest.raises(DataError, match="row 'long': .* tokens, but the model's context is 128"):
        encode(slm, "Q: " + "why " * 40, "no.", id="long")
    with pytest.raises(DataError, match="row 'r': the response is empty"):
        encode(slm, "Q:", " ", id="r")
    with pytest.raises(DataError, match="no token of the answer '日本' survives"):
        encode(slm, "Q:", "日本", id="r")
    with pytest.raises(InputError, match="side is 'both'"):
        collate([encode(slm, "Q:", "a")], side="both")
