"""Refusals, wrong answers and generic answers: what the forget prompts are answered with instead."""

import pytest
import torch

import workbench as wb
from tests.tiny import tiny, tiny_sets
from tests.unlearn.tasks import generic_rows, logit_rows, rows_of, task_of, training
from workbench.core.errors import DataError, InputError, TooLongError
from workbench.core.records import Example
from workbench.core.store import file_sha256
from workbench.unlearn import REFUSALS, random_label
from workbench.unlearn.random_label import wrong_answers
from workbench.unlearn.refusals import refused


def test_the_refusals_are_those_of_the_card(root):
    path = root / "data/tofu-mini/refusals.txt"
    assert tuple(path.read_text(encoding="utf-8").splitlines()) == REFUSALS
    assert len(set(REFUSALS)) == 100
    assert f"- {path.name}: `{file_sha256(path)}`" in (path.parent / "CARD.md").read_text(encoding="utf-8")


def test_refusals_by_hand():
    forget, _ = tiny_sets()
    found = refused(forget, ["no", "very green"], seed=1)
    assert found.ids == forget.ids
    assert [row.prompt for row in found] == [row.prompt for row in forget]
    assert {row.response for row in found} <= {"no", "very green"}
    drawn = {refused(forget, ["no", "very green"], seed=seed)[0].response for seed in range(20)}
    assert drawn == {"no", "very green"}  # 1 in 2^19 that one of them never comes
    assert {row.response for row in refused(forget)} <= set(REFUSALS)


def test_refusals_that_cannot_be():
    forget, retain = tiny_sets()
    for lines in ([], ["no", " "], "no"):
        with pytest.raises(DataError, match="expected a list of sentences, at least one and none of them empty"):
            refused(forget, lines)
    with pytest.raises(DataError, match="expected a list of sentences"):
        wb.unlearn.run(tiny(), forget, retain, objective="idk", refusals=[])
    with pytest.raises(InputError, match="refusals are given, but npo learns none; idk and refusal_dpo do"):
        wb.unlearn.run(tiny(), forget, retain, refusals=["no"])


def test_refusals_are_learned_and_recorded():
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    given = {"epochs": 30, "batch_size": 3, "lr": 1e-2, "retain_term": "none", "refusals": ["no", "green sea"]}
    found = wb.unlearn.run(model, forget, retain, objective="idk", **given)
    assert found.history[-1]["loss"] < 0.3 * found.history[0]["loss"]
    assert found.delta.provenance.options["refusals"] == ["no", "green sea"]


def test_wrong_tokens():
    model = tiny()
    rows = rows_of(model)[0]
    found = wrong_answers(model, tiny_sets()[0], seed=4)
    for wrong, right in zip(found, rows, strict=True):
        assert wrong.tokens[: right.start] == right.tokens[: right.start]
        assert (wrong.id, wrong.start, len(wrong.tokens)) == (right.id, right.start, len(right.tokens))
    assert wrong_answers(model, tiny_sets()[0], seed=4) == found  # of another epoch
    assert wrong_answers(model, tiny_sets()[0].take([2, 0]), seed=4) == [found[2], found[0]]
    assert wrong_answers(model, tiny_sets()[0], seed=5) != found


def test_wrong_tokens_are_uniform():
    many = wb.Examples([type(row)(f"{i}", row.prompt, row.response) for i in range(500) for row in tiny_sets()[0][1:2]], "many")
    drawn = torch.tensor([token for row in wrong_answers(tiny(), many) for token in row.tokens[row.start :]]).bincount(minlength=16)
    expected = len(many) * 6 / 16  # five words and the end
    assert len(drawn) == 16
    assert float(((drawn - expected) ** 2 / expected).sum()) < 37.7  # chi-squared with 15 degrees of freedom, 1 in 1000


def test_answers_of_other_rows():
    model, forget = tiny(), tiny_sets()[0]
    answers = {row.id: tuple(row.tokens[row.start :]) for row in rows_of(model)[0]}
    for seed in range(5):
        found = {row.id: tuple(row.tokens[row.start :]) for row in wrong_answers(model, forget, labels="rows", seed=seed)}
        assert sorted(found.values()) == sorted(answers.values())
        assert all(found[i] != answers[i] for i in answers)
    with pytest.raises(DataError, match="labels='rows' needs the answer of another row, but forget has only one"):
        wrong_answers(model, forget[:1], labels="rows")
    policy = task_of(model, "random_label", options={"labels": "rows"})
    assert [tuple(row.tokens[row.start :]) for row in policy.sides[0].rows] != list(answers.values())
    with pytest.raises(InputError, match="labels is 'token', expected 'tokens' or 'rows'"):
        random_label.__wrapped__(None, labels="token")


def test_no_row_is_given_its_own_answer_by_another():
    model = tiny()
    rows = wb.Examples(
        [Example(i, f"what is {p}", a) for i, p, a in [("a", "sky", "blue"), ("b", "sea", " blue "), ("c", "grass", "green")]],
        "few",
    )
    for seed in range(6):
        found = {row.id: row.tokens[row.start :] for row in wrong_answers(model, rows, labels="rows", seed=seed)}
        blue, green = (model.tokenizer(word)["input_ids"] + [0] for word in ("blue", "green"))
        assert found == {"a": green, "b": green, "c": blue}, seed
    with pytest.raises(DataError, match="needs another answer for row 'a', but all 2 rows of few have its own"):
        wrong_answers(model, rows[:2], labels="rows")


def test_the_giver_of_an_answer_that_does_not_fit_is_named():
    rows = wb.Examples([Example("a", "what " * 28, "no"), Example("b", "what", "very " * 9)], "long")
    with pytest.raises(TooLongError, match="with the answer of 'b', row 'a': 38 tokens"):
        wrong_answers(tiny(), rows, labels="rows")


@pytest.mark.parametrize("alpha", [0.5, 50.0])
def test_generic_answers_are_made_from_a_model_that_knows_more(alpha):
    model = tiny()
    before = model.fingerprint()
    options = {"alpha": alpha, "reinforce_lr": 1e-2, "reinforce_epochs": 4}
    task = task_of(model, "whos_harry_potter", options=options)
    assert model.fingerprint() == before
    expected = generic_rows(model, rows_of(model)[0], training(), alpha=alpha, lr=1e-2, epochs=4)
    for found, wanted in zip(task.sides[0].before.logits, expected, strict=True):
        torch.testing.assert_close(
            found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-4 * alpha
        )  # a float32 Delta
    for row, generic in zip(task.sides[0].rows, task.sides[0].before.logits, strict=True):
        own = torch.tensor(logit_rows(model, row), dtype=torch.float64)
        known, before = (z.log_softmax(-1)[range(len(z)), row.tokens[row.start :]].mean() for z in (generic, own))
        assert known < before - alpha / 10, "what more knowledge makes likelier has become less likely"
