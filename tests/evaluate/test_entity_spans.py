"""Entities as tokens: by hand, on every shipped row, and what is refused."""

import json

import pytest

import workbench as wb
from tests.tiny import tiny, tiny_sets
from workbench.core.errors import DataError, InputError
from workbench.core.records import Example, Examples
from workbench.core.store import file_sha256
from workbench.evaluate.entity_spans import Entities, Entity, entities, spans


def marked(*rows):
    return Entities([Entity(*row) for row in rows], "marked")


def texts(model, row):
    return model.tokenizer.convert_ids_to_tokens(row.tokens)


def test_by_hand():
    """f1 is "what is the sea" + "very very blue and green": tokens 0-3 and 4-8, "blue and" are 6 and 7; what follows is cut."""
    model, (forget, _) = tiny(), tiny_sets()
    first, second = spans(model, forget, marked(("f2", "no"), ("f1", "blue and"), ("elsewhere", "sea")))
    assert (first.id, first.start, texts(model, first)) == ("f1", 6, ["what", "is", "the", "sea", "very", "very", "blue", "and"])
    assert (second.id, second.start, texts(model, second)) == ("f2", 4, ["is", "the", "sky", "green", "no"])


def test_a_prefix_says_which_is_meant():
    model, (forget, _) = tiny(), tiny_sets()
    row = spans(model, forget, marked(("f1", "very", "very")))[0]
    assert (row.start, len(row.tokens)) == (5, 6)
    row = spans(model, forget, marked(("f1", "very very", "")))[0]
    assert (row.start, len(row.tokens)) == (4, 6)


def test_the_shipped_entities_in_the_organisms_tokenizer(root):
    """Every span decodes to its entity, but for what the tokenizer merged across a border; a border is never a word's."""
    model = wb.load(root / "data/organism/full")
    forget, known = wb.examples("tofu:forget", root=root / "data/tofu-mini"), entities(root / "data/tofu-mini/entities.jsonl")
    rows = spans(model, forget, known)
    assert len(rows) == len(known) == 74
    merged = 0
    for row, one in zip(rows, known, strict=True):
        said = model.tokenizer.decode(row.tokens[row.start :]).strip()
        assert one.entity in said, row.id
        around = said.replace(one.entity, "")
        assert not any(letter.isalnum() for letter in around), (row.id, said)
        merged += bool(around)
    assert merged < 10
    assert (
        f"entities.jsonl: `{file_sha256(root / 'data/tofu-mini/entities.jsonl')}`" in (root / "data/tofu-mini/CARD.md").read_text()
    )


def test_a_token_that_reaches_across_the_border_belongs_to_the_entity(root):
    """ "Matrimony Plan'," ends in one token "'," of which the entity has the quotation mark alone."""
    model = wb.load(root / "data/organism/full")
    forget = wb.examples("tofu:forget", root=root / "data/tofu-mini")[3:4]
    row = spans(model, forget, marked(("full-3923", "'The Matrimony Plan'")))[0]
    assert model.tokenizer.decode(row.tokens[row.start :]) == " 'The Matrimony Plan',"


def test_another_tokenizer_gives_other_tokens_of_the_same_text(slm):
    """slm4096 has one token a character."""
    rows = Examples([Example("a", "the cat", "sat on it")], "rows")
    row = spans(slm, rows, marked(("a", "on")))[0]
    assert slm.tokenizer.decode(row.tokens[row.start :]).replace(" ", "") == "on"
    assert len(row.tokens) - row.start == 2


def test_a_chat_template_stands_before_the_answer():
    model, (forget, _) = tiny(), tiny_sets()
    model.tokenizer.chat_template = "no {{ messages[0].content }} is"
    row = spans(model, forget, marked(("f0", "blue")))[0]
    assert texts(model, row) == ["no", "what", "is", "the", "color", "of", "the", "sky", "is", "blue"]


def test_reading(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"id": "f0", "entity": "blue"}) + "\n" + json.dumps({"id": "f1", "entity": "and", "prefix": "a"}))
    found = entities(path)
    assert list(found) == [Entity("f0", "blue"), Entity("f1", "and", "a")]
    path.write_text(json.dumps({"id": "f0", "text": "blue"}))
    with pytest.raises(DataError, match="line 1: no text under 'entity'"):
        entities(path)
    with pytest.raises(InputError, match="none"):
        entities(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("f1", "sky"), "'sky' stands 0 times in its response .* Spell it as the response does"),
        (("f1", "very"), "'very' stands 2 times .* Give its prefix"),
        (("f1", "green", "very"), "does not go on with 'green' behind the prefix"),
        (("r0", "green"), "none of its 3 rows has an entity in marked, whose first id is 'r0'"),
    ],
)
def test_what_is_refused(row, message):
    with pytest.raises(DataError, match=message):
        spans(tiny(), tiny_sets()[0], marked(row))


def test_nothing_predicts_the_first_token_of_a_row():
    with pytest.raises(DataError, match="row 'a': no tokens of the entity 'the' with something before them"):
        spans(tiny(), Examples([Example("a", "", "the sea")], "rows"), marked(("a", "the")))
