"""Located sets: one mask, components found by patching, scores that saw too much, and values of the wrong type."""

import inspect
import math

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.reference.answers import answer_statistics
from tests.study.located import learned, renamed, rows, word_scores
from tests.tiny import tiny
from workbench import unlearn
from workbench.core.components import GRIDS, Components, Place
from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError, MismatchError, UnknownNameError
from workbench.core.records import Provenance
from workbench.load.batches import encode_all
from workbench.study.intervene import Located, Question, Settings, bench, measure, row_nll
from workbench.study.judge import Fixed, Ranked, from_components, judge, named, questions, sizes_of, split_retain
from workbench.study.verdict import Verdict, area, student_interval, word
from workbench.unlearn.pairs import set_nll

ROWS = {"budget_rows": 4, "report_rows": 5}


@pytest.fixture(scope="module")
def model():
    return learned()


def test_one_mask_has_one_size(model):
    mask = word_scores(model, "sky").mask(0.05)
    fixed = Fixed("ticket", mask)
    assert isinstance(fixed, Located)
    other = Ranked("sky", word_scores(model, "sky"))
    found = judge(model, [fixed, other], *rows(), sizes=(0.1, 0.2), seeds=(0, 1), intervention="ablate", **ROWS).points
    ticket = found[found["set"] == "ticket"]
    assert set(ticket["size"]) == {mask.count / 5584}
    assert len(ticket) == 1 + 2 + 1
    assert set(ticket[ticket["side"] != "outside"]["weights"]) == {mask.count}
    assert set(found[found["set"] == "sky"]["size"]) == {0.1, 0.2}
    assert fixed.random(fixed.size, seed=1) == mask.matched_random(seed=1)
    with pytest.raises(InputError, match=r"ticket is one mask with a share of 0.04996\d*, so there is none of size 0.1"):
        fixed.inside(0.1)


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_heads_and_neurons_found_by_patching(model, kind):
    count = {"head": model.sites.n_heads, "neuron": model.d_mlp}[kind]
    values = np.linspace(-1, 0.5, model.n_layers * count)  # the most negative is the largest
    places = [Place(layer, index) for layer in range(model.n_layers) for index in range(count)]
    about = Provenance("patching", model.fingerprint())
    said = {"unit": "nats", "direction": "denoise", "provenance": about}
    found = Components.of(kind, [GRIDS[kind][0]] * len(places), places, values[None].repeat(2, 0), **said)
    located = from_components("found", model, found)
    assert located.inside(2 / len(places)) == wb.attribute.units_mask(model, kind, [(0, 0), (0, 1)])
    judged = judge(model, [located], *rows(), sizes=(2 / len(places),), seeds=(0,), intervention="ablate", **ROWS)
    assert judged.points.groupby("side")["weights"].first()["inside"] == located.inside(2 / len(places)).count
    # outside are all other weights of the model, embeddings and norms too
    outside = judged.points[judged.points["side"] == "outside"]["weights"].iloc[0]
    assert outside == sum(p.numel() for p in model.hf.parameters()) - located.inside(2 / len(places)).count
    with pytest.raises(InputError, match=f"found has 2 {kind}s, but the model has {len(places)}"):
        from_components("found", model, found.top(2))
    with pytest.raises(MismatchError, match="found is of model"):
        from_components("found", tiny(torch.float32, d_model=16, seed=9), found)


def test_residual_sites_have_no_weights(model):
    about = Provenance("patching", model.fingerprint())
    sites = Components.of("resid", ["resid_pre"], [Place(0, -1)], np.ones((2, 1)), unit="", direction="", provenance=about)
    with pytest.raises(InputError, match="of kind 'resid', which has no weights of its own"):
        from_components("found", model, sites)


def test_scores_found_on_the_rows_that_are_reported_are_refused(model):
    forget, retain = rows()
    seen = wb.attribute.wagle(model, forget, retain)
    with pytest.raises(
        InputError, match="scores of leak were found on all 14 rows of retain .* split_retain\\(forget, retain\\).train"
    ):
        judge(model, [Ranked("leak", seen)], forget, retain, **ROWS)
    with pytest.raises(InputError, match="scores of leak were found on all 14 rows"):
        judge(model, [Fixed("leak", seen.mask(0.1))], forget, retain, **ROWS)
    unseen = wb.attribute.wagle(model, forget, split_retain(forget, retain, **ROWS).train)
    judge(model, [Ranked("fair", unseen)], forget, retain, sizes=(0.1,), seeds=(0,), intervention="ablate", **ROWS)


def test_values_of_the_wrong_type_are_refused_without_a_typechecker(model):
    plain = inspect.unwrap(judge)  # pytest checks annotations; users do not
    sets = [Ranked("sky", word_scores(model, "sky"))]
    for given, match in (
        ({"budget": "0.1"}, "option budget of judge is '0.1', expected float"),
        ({"batch_size": 2.5}, "option batch_size of judge is 2.5, expected int"),
        ({"max_steps": 2.5}, "option max_steps of judge is 2.5"),
        ({"budget_rows": 4.5}, "option budget_rows of judge is 4.5"),
        ({"sizes": 0.1}, "option sizes of judge is 0.1"),
    ):
        with pytest.raises(InputError, match=match):
            plain(model, sets, *rows(), **ROWS | given)
    with pytest.raises(InputError, match=r"sizes has \[0.1\], expected shares"):
        inspect.unwrap(Settings.__init__)(object.__new__(Settings), ([0.1],), (0,))
    with pytest.raises(InputError, match="located has a Mask, expected located sets: write Ranked"):
        inspect.unwrap(named)([sets[0].inside(0.1)])
