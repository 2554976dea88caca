"""What is asked, letter by letter; what comes back, against one answer at a time; best, mean and their bounds."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import answers as slow
from tests.tiny import tiny, tiny_sets
from workbench.core.errors import DataError, InputError, UnknownNameError
from workbench.core.records import Example
from workbench.evaluate.attacks import TEMPLATES, Prompting, in_context, prompting, rephrased, worded
from workbench.load.batches import encode

ASKED = {"again": "no {question} very", "known": "and {question}"}


def ways(rows):
    return {name: worded(rows, text) for name, text in ASKED.items()}


def record(recall, probability):
    n = len(recall[0])
    names = ("direct", *(f"p{i}" for i in range(1, len(recall))))
    said = tuple(("",) * n for _ in recall)
    return Prompting("rows", tuple(f"r{i}" for i in range(n)), names, np.array(recall), np.array(probability), said)


def test_words_around_the_question():
    forget, _ = tiny_sets()
    found = worded(forget, "Say: {question} Now!")
    assert [row.prompt for row in found] == [f"Say: {row.prompt} Now!" for row in forget]
    assert [(row.id, row.response) for row in found] == [(row.id, row.response) for row in forget]
    assert worded(wb.Examples([Example("a", "why {question}", "x")], "s"), "{question}?")[0].prompt == "why {question}?"
    with pytest.raises(InputError, match="expected {question} in it exactly once"):
        worded(forget, "no place for it")
    with pytest.raises(InputError, match="exactly once"):
        worded(forget, "{question} {question}")


def test_other_questions():
    forget, _ = tiny_sets()
    found = rephrased(forget, {row.id: f"q {i}" for i, row in enumerate(forget)})
    assert [row.prompt for row in found] == ["q 0", "q 1", "q 2"]
    with pytest.raises(DataError, match="1 of 3 rows have no other question, first 'f1'"):
        rephrased(forget, {"f0": "a", "f2": "b"})


def test_examples_in_front_by_hand():
    """Two of two rows in front of each question, in one order or the other."""
    asked = wb.Examples([Example("a", "who {answer}", "x")], "asked")
    shown = wb.Examples([Example("b", "q1", "a1 {question}"), Example("c", "q2", "a2")], "shown")
    first, second = "q1\nAnswer: a1 {question}\n\nQuestion: ", "q2\nAnswer: a2\n\nQuestion: "
    found = {in_context(asked, shown, shots=2, seed=s)[0].prompt for s in range(8)}
    assert found == {first + second + "who {answer}", second + first + "who {answer}"}
    assert in_context(asked, shown, shots=1, shot="{question}={answer};")[0].prompt in (
        "q1=a1 {question};who {answer}",
        "q2=a2;who {answer}",
    )


def test_examples_are_drawn_without_repeats_and_by_the_seed():
    forget, retain = tiny_sets()
    one, again, other = (in_context(forget, retain, shots=4, seed=s) for s in (0, 0, 1))
    assert [row.prompt for row in one] == [row.prompt for row in again]
    assert [row.prompt for row in one] != [row.prompt for row in other]
    for row in one:
        assert all(row.prompt.count(shown.prompt + "\nAnswer: " + shown.response) == 1 for shown in retain)


def test_in_context_refusals():
    forget, retain = tiny_sets()
    with pytest.raises(InputError, match="shots is 5, expected 1 to 4"):
        in_context(forget, retain, shots=5)
    with pytest.raises(InputError, match="expected {question} and {answer} in it"):
        in_context(forget, retain, shot="{question}")
    with pytest.raises(DataError, match="row 'f0' is asked about and may be shown with its answer"):
        in_context(forget, wb.Examples([*retain, forget[0]], "both"))


def test_equals_one_answer_at_a_time():
    model, (forget, _) = tiny(torch.float32), tiny_sets()
    found = prompting(model, forget, variants=ways(forget), generate=4)
    assert found.prompts == ("direct", "again", "known")
    for i, text in enumerate(["{question}", *ASKED.values()]):
        for j, row in enumerate(forget):
            coded = encode(model, text.replace("{question}", row.prompt), row.response)
            nll = -np.mean([t["logprob"] for t in slow.answer_statistics(model.hf, coded.tokens, coded.start)])
            # a float32 model, padded or not: measured 3e-7
            assert found.probability[i, j] == pytest.approx(np.exp(-nll), rel=1e-5)
            ids = slow.greedy(model.hf, coded.tokens[: coded.start], most=4, ends={0, 2}, context=32)  # 2: of the config
            said = model.tokenizer.decode(ids, skip_special_tokens=True)
            assert found.generated[i][j] == said
            truth = row.response.split()
            assert found.rouge_l_recall[i, j] == pytest.approx(longest(truth, said.split()) / len(truth))


def longest(one, other):
    """Length of the longest common subsequence; no word of the tiny vocabulary has a stem of its own but "very"."""
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return table[-1, -1]


def test_best_and_mean_by_hand():
    found = record([[0.0, 1.0], [0.5, 0.25]], [[0.1, 0.2], [0.3, 0.0]])
    np.testing.assert_allclose(found.direct("rouge_l_recall"), [0, 1])
    np.testing.assert_allclose(found.best("rouge_l_recall"), [0.5, 1])
    np.testing.assert_allclose(found.mean("rouge_l_recall"), [0.25, 0.625])
    np.testing.assert_allclose(found.best("probability"), [0.3, 0.2])
    rows = found.measurements()
    assert rows["rouge_l_recall_best", "forget"].value == pytest.approx(0.75)
    assert rows["rouge_l_recall_best", "forget"].note == "over 2 prompts"
    assert rows["probability_direct", "forget"].value == pytest.approx(0.15)
    assert len(found.frame()) == 4


def test_the_best_of_more_prompts_is_no_smaller_and_order_does_not_matter():
    model, (forget, _) = tiny(torch.float32), tiny_sets()
    few = prompting(model, forget, variants={"again": ways(forget)["again"]}, generate=3)
    more = prompting(model, forget, variants=ways(forget), generate=3)
    assert (more.best("probability") >= few.best("probability")).all()
    assert (more.best("probability") >= more.mean("probability")).all()
    turned = forget.take([2, 0, 1])
    other = prompting(model, turned, variants=ways(turned), generate=3, batch_tokens=1)
    np.testing.assert_allclose(other.probability, more.probability[:, [2, 0, 1]], rtol=1e-5)
    np.testing.assert_array_equal(other.rouge_l_recall, more.rouge_l_recall[:, [2, 0, 1]])


def test_the_direct_question_is_asked_once_and_the_defaults_are_templates():
    model, (forget, _) = tiny(torch.float32), tiny_sets()
    found = prompting(model, forget, generate=2)
    assert found.prompts == tuple(TEMPLATES)
    assert all(text.count("{question}") == 1 for text in TEMPLATES.values())


def test_refusals():
    model, (forget, retain) = tiny(), tiny_sets()
    with pytest.raises(DataError, match="'others' has other ids or answers than the examples"):
        prompting(model, forget, variants={"others": retain})
    with pytest.raises(UnknownNameError, match="Did you mean 'probability'"):
        record([[0.0]], [[0.1]]).best("probabilty")
