"""Methods carried out up to a budget: what a study file may say, how far they go, and what is left of the model."""

from dataclasses import replace

import pytest
import torch

from tests.tiny import WORDS, tiny, tiny_sets
from workbench import attribute
from workbench.core.delta import applied
from workbench.core.errors import DataError, NumericsError, StudyError, UnknownNameError
from workbench.core.records import Example, Examples
from workbench.load.batches import encode_all
from workbench.study import methods
from workbench.study.intervene import row_nll
from workbench.study.methods import FIXED, Method, Training, at_budget, read_methods
from workbench.train.check import PRECISION
from workbench.unlearn import budget
from workbench.unlearn.pairs import set_nll

ASCENT = Method("ascent", "unlearn", "gradient_ascent", {"objective": "gradient_ascent"})


@pytest.fixture(scope="module")
def setting():
    model = tiny()
    forget, train = tiny_sets()
    kept = Examples([Example("k0", "the sky", "is very blue"), Example("k1", "what is a sea", "no sky")], "kept")
    return model, forget, train, kept


def rise(setting, delta):
    model, _, _, kept = setting
    before = row_nll(model, kept).mean()
    with applied(model, delta):
        return row_nll(model, kept).mean() - before


def test_methods_of_a_file():
    found = read_methods("c", {"npo": None, "kind": {"objective": "npo", "options": {"beta": 0.5}}}, {"dampen": {"alpha": 2.0}})
    assert [(one.name, one.kind, one.called) for one in found] == [
        ("npo", "unlearn", "npo"),
        ("kind", "unlearn", "npo"),
        ("dampen", "edit", "dampen"),
    ]
    assert found[1].options == {"objective": "npo", "options": {"beta": 0.5}}
    assert found[2].options == {"alpha": 2.0}


@pytest.mark.parametrize(
    ("unlearn", "edits", "error", "match"),
    [
        ({"npoo": {}}, {}, UnknownNameError, "'npoo'.*npo"),
        ({"npo": {"option": {}}}, {}, UnknownNameError, "options"),
        ({"npo": {"options": {"betta": 1}}}, {}, UnknownNameError, "beta"),
        ({}, {"surgry": {}}, UnknownNameError, "surgery"),
        ({}, {"dampen": {"alfa": 1}}, UnknownNameError, "alpha"),
        ({}, {}, StudyError, "expected at least one"),
        ({"npo": {}}, {"npo": {"method": "dampen"}}, StudyError, "each with a name of its own"),
        *(({"npo": {key: 1}}, {}, StudyError, f"{key} is set by the study") for key in FIXED),
    ],
)
def test_what_a_file_may_not_say(unlearn, edits, error, match):
    with pytest.raises(error, match=match):
        read_methods("c", unlearn, edits)


@pytest.mark.parametrize("mask", [False, True])
def test_training_ends_at_the_budget(setting, mask):
    model, forget, train, kept = setting
    before = model.fingerprint()
    inside = attribute.snip(model, forget, train).mask(0.4) if mask else None
    spent = at_budget(model, forget, train, kept, ASCENT, Training(0.02, 40, 2), mask=inside, lr=1e-2)
    assert model.fingerprint() == before
    assert spent.reached
    assert (1 - 2 * PRECISION) * 0.02 <= spent.used <= 0.02
    assert spent.used == pytest.approx(rise(setting, spent.delta), rel=1e-9)
    assert spent.part is None
    assert 0 < spent.steps < 40
    if mask:
        assert spent.moved <= inside.count / sum(p.numel() for p in model.hf.parameters())


def test_a_budget_that_is_not_spent_is_told(setting):
    model, forget, train, kept = setting
    spent = at_budget(model, forget, train, kept, ASCENT, Training(50.0, 3, 2), lr=1e-3)
    assert not spent.reached
    assert spent.steps == 4  # two steps an epoch of three rows, so three steps are two epochs
    assert spent.used == pytest.approx(rise(setting, spent.delta), rel=1e-9)


def test_a_rate_inside_a_mask_makes_steps_of_one_norm(setting):
    model, forget, train, kept = setting
    inside = attribute.snip(model, forget, train).mask(0.25)
    one_step = Training(50.0, 1, 3)
    whole = at_budget(model, forget, train, kept, ASCENT, one_step, lr=1e-3).delta
    part = at_budget(model, forget, train, kept, ASCENT, one_step, lr=1e-3, mask=inside).delta

    def norm(delta):
        return sum(row["delta_norm"] ** 2 for row in delta.by_layer(model)) ** 0.5

    # the first step of Adam moves every weight that has a gradient by its rate: 1e-3 sqrt(n) for a share n of all weights, and
    # 1e-3 / sqrt(1/4) sqrt(m) for m of those in the mask; where all have one, n = 1 and m = 1/4, and the norms are equal
    share, every = part.moved(model), whole.moved(model)
    assert share == pytest.approx(0.25, abs=0.01)
    # a gradient near Adam's epsilon of 1e-8 moves its weight by less
    assert norm(part) / norm(whole) == pytest.approx((share / 0.25 / every) ** 0.5, rel=0.02)


def test_an_edit_is_taken_in_part(setting):
    model, forget, train, _ = setting
    before = model.fingerprint()
    words = Examples([Example(word, "the sea", word) for word in WORDS[2:]], "words")
    likely = row_nll(model, words).argsort()[:2]
    kept = words.take(likely.tolist())  # what it finds likely costs something to lose
    setting = (model, forget, train, kept)
    cut = read_methods("c", {}, {"dampen": {"alpha": 0.5}})[0]
    whole = at_budget(model, forget, train, kept, cut, Training(50.0))
    assert (whole.part, whole.reached, whole.steps) == (1.0, False, None)
    assert whole.used == pytest.approx(rise(setting, whole.delta), rel=1e-9)
    assert whole.used > 0
    half = at_budget(model, forget, train, kept, cut, Training(whole.used / 2))
    assert half.reached
    assert 0 < half.part < 1
    assert (0.5 - PRECISION) * whole.used <= half.used <= 0.5 * whole.used
    assert half.used == pytest.approx(rise(setting, half.delta), rel=1e-9)
    assert model.fingerprint() == before
    with pytest.raises(StudyError, match="an edit chooses its weights itself"):
        at_budget(model, forget, train, kept, cut, Training(), mask=attribute.snip(model, forget, train).mask(0.4))


def test_the_order_of_the_rows_of_the_budget_does_not_matter(setting):
    model, forget, train, kept = setting
    one = at_budget(model, forget, train, kept, ASCENT, Training(0.02, 40, 2), lr=1e-2)
    other = at_budget(model, forget, train, kept[::-1], ASCENT, Training(0.02, 40, 2), lr=1e-2)
    assert one.used == pytest.approx(other.used, rel=1e-9)  # float64: the order of a sum of two numbers
    assert set_nll(model, encode_all(model, kept)) == pytest.approx(row_nll(model, kept).mean(), rel=1e-9)


def test_rows_of_the_budget_are_not_trained_on(setting):
    model, forget, train, _ = setting
    for method in (ASCENT, Method("cut", "edit", "dampen")):
        for rows in (train[:2], forget[1:]):
            with pytest.raises(DataError, match=r"budget_rows \(.*\) and .* share 2 rows"):
                at_budget(model, forget, train, rows, method, Training())
    with pytest.raises(UnknownNameError, match="gradient_ascent"):
        at_budget(model, forget, train[:2], train[2:], replace(ASCENT, called="gradient_asent"), Training())


def test_what_is_called_is_what_is_trained(setting):
    model, forget, train, kept = setting
    named = at_budget(model, forget, train, kept, ASCENT, Training(50.0, 1, 3), lr=1e-3).delta
    for options in ({}, {"objective": "npo"}):
        found = at_budget(model, forget, train, kept, replace(ASCENT, options=options), Training(50.0, 1, 3), lr=1e-3).delta
        assert (found.id, found.provenance.method) == (named.id, "gradient_ascent")


def test_a_task_vector_takes_all_its_steps_and_then_a_part(setting):
    model, forget, train, kept = setting
    vector = Method("vector", "unlearn", "task_vector", {"options": {"alpha": 5.0}})
    spent = at_budget(model, forget, train, kept, vector, Training(0.02, 6, 3), lr=1e-2)
    assert spent.reached
    assert spent.steps == 6.0
    assert 0 < spent.part < 1
    assert spent.delta.provenance.notes["part"] == spent.part
    free = at_budget(model, forget, train, kept, vector, Training(100.0, 6, 3), lr=1e-2)
    assert (free.reached, free.part, free.steps) == (False, 1.0, 6.0)
    for name, change in free.delta.changes.items():
        torch.testing.assert_close(spent.delta.changes[name].dense(), spent.part * change.dense(), rtol=1e-5, atol=1e-12)


def test_an_edit_that_breaks_the_model_is_taken_in_part(setting, monkeypatch):
    model, forget, train, kept = setting
    real = budget.set_nll

    def breaks(model, rows):
        value = real(model, rows)
        if abs(value - start) > 1e-4:
            raise NumericsError("overflow")
        return value

    start = real(model, encode_all(model, kept))
    for module in (methods, budget):
        monkeypatch.setattr(module, "set_nll", breaks)
    spent = at_budget(model, forget, train, kept, Method("cut", "edit", "dampen", {"alpha": 0.5}), Training(50.0))
    assert spent.reached
    assert 0 <= spent.part < 1
    assert abs(spent.used) <= 1e-4
