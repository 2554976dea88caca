"""Texts as tokens: which are the text's own, where a long one is cut, and what is refused."""

import inspect

import pytest
from tokenizers import processors

import workbench as wb
from tests.tiny import tiny
from workbench.core.errors import DataError, InputError
from workbench.load.batches import collate
from workbench.load.texts import encode_texts


def words(model, row):
    return model.tokenizer.convert_ids_to_tokens(row.tokens)


def test_special_tokens_stand_before_start(stories):
    rows = encode_texts(stories, ["Once upon a time", "A cat."])
    assert [row.id for row in rows] == ["0", "1"]
    assert all(row.tokens[0] == stories.tokenizer.bos_token_id and row.start == 1 for row in rows)
    assert stories.tokenizer.eos_token_id not in rows[0].tokens
    assert stories.tokenizer.decode(rows[1].tokens[1:]) == "A cat."
    batch = collate(rows)  # unequal lengths: the text's own tokens are the answer mask
    assert batch.answer.sum(-1).tolist() == [len(row.tokens) - 1 for row in rows]


def test_a_tokenizer_without_special_tokens_starts_at_0(slm):
    (row,) = encode_texts(slm, ["Hi you"])
    assert (row.start, len(row.tokens)) == (0, 6)  # one token a character


def test_an_unknown_first_word_is_the_texts_own():
    model = tiny()
    (row,) = encode_texts(model, ["purple sky"])
    assert words(model, row) == ["<unk>", "sky"]
    assert row.start == 0


def test_special_tokens_that_the_text_spells_are_its_own():
    model = tiny()
    (row,) = encode_texts(model, ["<end> sky"])
    assert (words(model, row), row.start) == (["<end>", "sky"], 0)


def test_an_end_that_the_tokenizer_appends_is_left_out():
    model = tiny()
    end = model.tokenizer.eos_token_id
    template = processors.TemplateProcessing(single="<end> $A <end>", special_tokens=[("<end>", end)])
    model.tokenizer.backend_tokenizer.post_processor = template
    (row,) = encode_texts(model, ["the sky"])
    assert (words(model, row), row.start) == (["<end>", "the", "sky"], 1)
    (row,) = encode_texts(model, ["the sky <end>"])  # this one the text spells itself
    assert (words(model, row), row.start) == (["<end>", "the", "sky", "<end>"], 1)


def test_a_turn_of_a_chat(root):
    model = wb.load(root / "data/organism/full")
    plain, turn = (encode_texts(model, ["Who is it?"], chat=chat)[0] for chat in (False, True))
    assert model.tokenizer.decode(plain.tokens) == "Who is it?"
    assert model.tokenizer.decode(turn.tokens) == "Question: Who is it?\nAnswer:"
    assert turn.start == 0


def test_a_chat_needs_no_template(stories):
    assert encode_texts(stories, ["Once upon"], chat=True) == encode_texts(stories, ["Once upon"])


def test_long_texts_lose_their_end_and_are_counted():
    model = tiny()
    rows = encode_texts(model, ["the sky is blue", "the sky", "what is the sea and the sky"], max_tokens=4)
    assert [words(model, row) for row in rows] == [["the", "sky", "is", "blue"], ["the", "sky"], ["what", "is", "the", "sea"]]
    assert (rows.cut, rows.limit) == (1, 4)
    long = encode_texts(model, ["sky " * 40], max_tokens=999)
    assert (len(long[0].tokens), long.cut, long.limit) == (32, 1, 32)  # the model's context


def test_a_long_turn_keeps_the_opening_of_the_answer():
    model = tiny()
    model.tokenizer.chat_template = "{% for m in messages %}what is {{ m['content'] | trim }} no very{% endfor %}"
    (whole,) = encode_texts(model, [" the sea and the sky "], chat=True)
    assert words(model, whole) == ["what", "is", "the", "sea", "and", "the", "sky", "no", "very"]
    rows = encode_texts(model, ["\nthe sea and the sky\n"], chat=True, max_tokens=7)
    assert words(model, rows[0]) == ["what", "is", "the", "sea", "and", "no", "very"]
    assert rows.cut == 1
    with pytest.raises(DataError, match="text 0 .* has 1 token.s. of its own within 5 tokens, expected at least 2"):
        encode_texts(model, ["the sea and the sky"], chat=True, max_tokens=5)
    with pytest.raises(DataError, match="has 0 token.s. of its own within 2 tokens"):
        encode_texts(model, ["the sea and the sky"], chat=True, max_tokens=2)


def test_a_turn_that_repeats_the_template_is_the_later_one():
    model = tiny()
    model.tokenizer.chat_template = "{% for m in messages %}the sky and {{ m['content'] }} no{% endfor %}"
    (row,) = encode_texts(model, ["the sky and"], chat=True, max_tokens=6)
    assert words(model, row) == ["the", "sky", "and", "the", "sky", "no"]


def test_the_tokens_of_a_template_are_not_the_texts_own():
    model = tiny()
    model.tokenizer.chat_template = "{% for m in messages %}what is {{ m['content'] }} no very{% endfor %}"
    with pytest.raises(DataError, match="text 0 .'sky'. has 1 token"):
        encode_texts(model, ["sky"], chat=True)


def test_refusals(slm):
    model = tiny()
    with pytest.raises(DataError, match="text 1 .'sky'. has 1 token.s. of its own, expected at least 2. Take the row out"):
        encode_texts(model, ["the sky", "sky"])
    with pytest.raises(DataError, match="text 2 .'日本語'. has 0 token.s. of its own"):  # characters this tokenizer drops
        encode_texts(slm, ["abc", "abd", "日本語"])
    with pytest.raises(DataError, match="text 0 .''. has 0"):
        encode_texts(model, [""])
    with pytest.raises(DataError, match="texts is empty"):
        encode_texts(model, [])
    with pytest.raises(DataError, match="text 1: is int, expected a str"):
        inspect.unwrap(encode_texts)(model, ["the sky", 3])  # pytest checks annotations; users do not
    with pytest.raises(InputError, match=r"texts is the string 'the sky', expected a list of texts. Write \[text\]"):
        encode_texts(model, "the sky")
    with pytest.raises(InputError, match="max_tokens is 1, expected at least 2"):
        encode_texts(model, ["the sky"], max_tokens=1)
