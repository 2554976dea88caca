"""The probe on a model's states: planted knowledge is found, none is not, and its floors."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.tiny import tiny
from workbench.core.errors import DataError, InputError, MismatchError, UnknownNameError
from workbench.core.records import Example
from workbench.evaluate.probe_recovery import probe_recovery


def questions(n=12):
    """The right answer ends in "blue" or "sea", the false ones in other words; the paraphrase is the right one in other words."""
    subjects = ["sky", "grass", "sea", "color", "green", "no"]
    return wb.Examples(
        [
            Example(
                f"q{i}",
                f"what is {'the ' * (i % 3)}{subjects[i % 6]}",
                "a blue" if i % 2 else "is the blue",
                paraphrase="the very blue" if i % 2 else "a blue",
                perturbed=("the very green", "a no", "the very grass")[: 2 + i % 2],
            )
            for i in range(n)
        ],
        "questions",
    )


def test_what_the_states_hold_is_found():
    found = probe_recovery(tiny(d_model=16), questions(), folds=3, C=1.0)
    assert found.best.value > 0.9  # the word itself is in the states
    assert found.auc.shape == (12, 2)
    assert found.shuffled.shape == (5, 12, 2)
    assert set(np.unique(found.auc)) <= {0, 1 / 3, 0.5, 2 / 3, 1, 1 / 4, 3 / 4, 5 / 6, 1 / 6}


def test_states_that_are_all_the_same_are_refused():
    """With all weights zero every state is zero."""
    model = tiny()
    with torch.no_grad():
        for p in model.hf.parameters():
            p.zero_()
    with pytest.raises(DataError, match="layer 0 .* the same state"):
        probe_recovery(model, questions(), folds=3)


def test_batch_size_and_the_choice_of_layers_change_nothing():
    model = tiny()
    found = probe_recovery(model, questions(), folds=3)
    again = probe_recovery(model, questions(), folds=3, batch_tokens=1)
    np.testing.assert_array_equal(found.auc, again.auc)
    alone = probe_recovery(model, questions(), folds=3, layers=[1])
    np.testing.assert_array_equal(alone.auc[:, 0], found.auc[:, 1])
    np.testing.assert_array_equal(alone.shuffled[:, :, 0], found.shuffled[:, :, 1])


def test_the_reference_is_the_floor():
    model, retrained, rows = tiny(), tiny(seed=1), questions()
    floor = probe_recovery(retrained, rows, folds=3)
    found = probe_recovery(model, rows, folds=3, reference=floor)
    table = found.measurements()
    assert table["probe_auc_excess", "forget"].value == pytest.approx(found.best.value - floor.best.value)
    assert table["probe_auc_shuffled", "forget"].low <= table["probe_auc_shuffled", "forget"].value
    assert "best of 2 layers" in table["probe_auc", "forget"].note
    assert floor.excess is None
    assert probe_recovery(retrained, rows, folds=3, reference=floor).excess == (0.0, 0.0, 0.0, 12)
    np.testing.assert_allclose(found.by_layer()["reference"], floor.auc.mean(0), rtol=1e-12)
    assert len(found.frame()) == 24


def test_the_organism(root):
    """The full model knows the forget rows' paraphrased facts better than the retrained one; random answers are at chance."""
    full, retrained = (wb.load(root / f"data/organism/{name}") for name in ("full", "retain"))
    forget = wb.examples("tofu:forget", root=root / "data/tofu-mini")
    floor = probe_recovery(retrained, forget, layers=[1], shuffles=2)
    found = probe_recovery(full, forget, layers=[1], shuffles=2, reference=floor)
    assert found.excess.low > 0
    assert 0.35 < found.shuffled.mean() < 0.65
    assert floor.best.value > 0.6  # false answers can be told by their style alone: why there is a floor


def test_what_is_refused():
    model, rows = tiny(), questions()
    bare = wb.Examples([Example("a", "what is the sea", "blue", perturbed=("green",))] * 1, "bare")
    with pytest.raises(DataError, match="row 'a': it has no paraphrase"):
        probe_recovery(model, bare)
    with pytest.raises(DataError, match="row 'a': it has no false answers"):
        probe_recovery(model, wb.Examples([Example("a", "what is the sea", "blue")], "bare"), right="response")
    with pytest.raises(DataError, match="12 questions in 7 folds; expected at least 14"):
        probe_recovery(model, rows, folds=7)
    with pytest.raises(InputError, match="folds 1, shuffles 5"):
        probe_recovery(model, rows, folds=1)
    with pytest.raises(UnknownNameError, match="unknown right answer 'answer'"):
        probe_recovery(model, rows, right="answer")
    floor = probe_recovery(model, rows, folds=3, layers=[0])
    with pytest.raises(MismatchError, match=r"the reference has 12 questions, layers \[0\]"):
        probe_recovery(model, rows, folds=3, reference=floor)
