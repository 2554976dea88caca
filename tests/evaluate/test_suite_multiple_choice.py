from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from tests.reference.multiple_choice import choice_logprob, chosen
from workbench.core.errors import InputError, TooLongError, UnknownNameError
from workbench.evaluate import suite, tokens
from workbench.evaluate.suites.multiple_choice import Choices, choices, right_choices
from workbench.load.multiple_choice import Question, Questions, choice_rows

# unequal numbers of choices, of words in them, and of words in the questions
ROWS = Questions(
    [
        Question("a", "What is the color of the big sky", ("blue", "very, very green", "no"), 0),
        Question("b", "Is it", ("no", "a small dog ran to the house"), 1),
        Question("c", "What did Lily see in the park", ("a cat", "a red ball and a dog", "her mom", "I"), 2),
        Question("d", "The sea is", ("blue", "blue", "happy"), 1),
    ],
    "stories",
)


@pytest.fixture(scope="module")
def model(root):
    return wb.load(root / "data/models/stories260K", dtype="float64")


@pytest.fixture(scope="module")
def loaded(model):
    return choices(tokens(model, choice_rows(ROWS)))


def test_every_choice_against_one_pass_each(model, loaded):
    found = loaded
    for i, one in enumerate(ROWS):
        for j, text in enumerate(one.choices):
            total, count = choice_logprob(model.hf, model.tokenizer, f"{one.question}\nAnswer:", text)
            assert found.logprob[i, j] == pytest.approx(total, rel=1e-6)  # the table is float32, the model float64
            assert found.tokens[i, j] == count
        assert np.isnan(found.logprob[i, len(one.choices) :]).all()


@pytest.mark.parametrize("length", [None, "characters", "bytes", "tokens"])
@pytest.mark.parametrize("form", ["texts", "letters"])
def test_the_choice_is_the_slow_one(length, form, organism):
    rows = Questions(
        [
            Question(str(i), f"Who wrote {i}?", ("Hsiao Yun-Hwa", "Jaime Vásquez", "nobody at all", "I")[: 2 + i % 3], 0)
            for i in range(6)
        ],
        "q",
    )
    asked = choice_rows(rows, form=form)
    found = choices(tokens(organism, asked))
    slow = []
    for row in asked:
        slow.append(chosen(organism.hf, organism.tokenizer, row.prompt, [row.response, *row.perturbed], length=length))
    right = right_choices(rows, found, length=length, form=form)
    assert right.tolist() == [place == 0 for place in slow]


@pytest.fixture(scope="module")
def organism(root):
    from workbench.load.passages import without_chat

    return without_chat(wb.load(root / "data/organism/full"))


def test_accuracies_by_hand():
    # ln p summed:        a: -4 -2 -9 -> 1   b: -1 -3 -> 0       right are 1 and 1: one of two
    # per character 2,8,3 and 1,6: a: -2 -.25 -3 -> 1   b: -1 -.5 -> 1    two of two
    # per token 1,1,3 and 1,1: a: -4 -2 -3 -> 1   b: -1 -3 -> 0           one of two
    rows = Questions([Question("a", "?", ("xx", "yyyyyyyy", "zzz"), 1), Question("b", "?", ("x", "yyyyyy"), 1)], "q")
    nan = float("nan")
    found = Choices(np.array([[-4.0, -2, -9], [-1, -3, nan]]), np.array([[1, 1, 3], [1, 1, 0]]))
    assert right_choices(rows, found).tolist() == [True, False]
    assert right_choices(rows, found, length="characters").tolist() == [True, True]
    assert right_choices(rows, found, length="tokens").tolist() == [True, False]
    assert right_choices(rows, found, length="characters", form="letters").tolist() == [True, False]


def test_bytes_are_not_characters():
    # -3/3 characters < -2.5/3, but -3/9 bytes > -2.5/3
    rows = Questions([Question("a", "?", ("東京都", "abc"), 0)], "q")
    found = Choices(np.array([[-3.0, -2.5]]), np.array([[3, 1]]))
    assert right_choices(rows, found, length="characters").tolist() == [False]
    assert right_choices(rows, found, length="bytes").tolist() == [True]


def test_of_equal_choices_the_first_counts():
    rows = Questions([Question("a", "?", ("x", "x", "y"), 1)], "q")
    assert right_choices(rows, Choices(np.array([[-1.0, -1, -2]]), np.ones((1, 3), dtype=int))).tolist() == [False]


def test_order_of_questions_and_batch_size_do_not_matter(model, loaded):
    turned = choices(tokens(model, choice_rows(ROWS.take([3, 1, 0, 2])), batch_tokens=1))
    np.testing.assert_allclose(turned.logprob, loaded.logprob[[3, 1, 0, 2]], rtol=1e-6)  # float32 columns of a float64 model
    assert turned.tokens.tolist() == loaded.tokens[[3, 1, 0, 2]].tolist()


def test_the_suite(model, loaded):
    rows = suite("multiple_choice", model, data=ROWS)
    assert [row.metric for row in rows] == ["accuracy", "accuracy_norm", "chance"]
    assert rows["chance", "questions"].value == pytest.approx((1 / 3 + 1 / 2 + 1 / 4 + 1 / 3) / 4)
    assert rows["accuracy", "questions"].value == right_choices(ROWS, loaded).mean()
    assert 0 <= rows["accuracy", "questions"].low < rows["accuracy", "questions"].high <= 1
    assert rows["accuracy", "questions"].n == 4
    assert "per character" in rows["accuracy_norm", "questions"].note


def test_a_planted_answer_is_found(organism, root):
    """The organism knows its forget rows by heart, and picks them out of false answers; a model that never saw them guesses."""
    rows = wb.examples("tofu:forget", root=root / "data/tofu-mini")[:24]
    asked = Questions((Question(r.id, f"Question: {r.prompt}", (*r.perturbed[:3], r.response), 3) for r in rows), "forget")
    knows = suite("multiple_choice", organism, data=asked)["accuracy_norm", "questions"]
    assert knows.value > 0.9, f"got {knows.value:.3f}, expected ~1: every answer was learned by heart"
    guesses = suite("multiple_choice", wb.load(root / "data/organism/retain"), data=asked)["accuracy_norm", "questions"]
    assert guesses.value < knows.low, f"got {guesses.value:.3f}, expected well below {knows.low:.3f}"


def test_bad_input(model):
    with pytest.raises(UnknownNameError, match="unknown length of a choice 'byte'. Did you mean 'bytes'"):
        suite("multiple_choice", model, data=ROWS, options={"length": "byte"})
    with pytest.raises(UnknownNameError, match="unknown form .*'letter'. Did you mean 'letters'"):
        suite("multiple_choice", model, data=ROWS, options={"form": "letter"})
    with pytest.raises(UnknownNameError, match="unknown option of multiple_choice 'generate'"):
        suite("multiple_choice", model, data=ROWS, generate=4)
    long = Questions([ROWS[0], Question("long", "what is " * 300, ("blue", "green"), 0)], "q")
    with pytest.raises(TooLongError, match="context of 512 tokens: row 'long': 1513 tokens"):
        suite("multiple_choice", model, data=long)
    with pytest.raises(InputError, match="does not say which token ends a text"):
        choices(replace(tokens(model, choice_rows(ROWS[:1])), end=None))
