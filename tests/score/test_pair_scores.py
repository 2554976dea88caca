"""What one does with the scores of pairs: the exact cut, the file that is read back, the correlation, and a safe page."""

import re
from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from workbench.core.errors import DataError, InputError, NumericsError, ShapeError
from workbench.core.records import PreferencePair, PreferencePairs, Provenance
from workbench.core.statistics import spearman_estimate
from workbench.score import PairScores
from workbench.score.pictures import histogram, scatter


def scored(values, **columns):
    pairs = PreferencePairs([PreferencePair(f"p{i}", f"Q{i}?", "yes", "<b>no</b>") for i in range(len(values))], "pairs")
    made = {name: np.asarray(column, dtype=float) for name, column in columns.items()}
    ids, numbers = tuple(pairs.ids), np.asarray(values, dtype=float)
    return PairScores("ches", ids, numbers, "worse", Provenance("ches", "m"), columns=made, pairs=pairs)


def test_the_lowest_are_kept_in_their_order_and_ties_go_to_the_earlier():
    found = scored([3.0, 1.0, 2.0, 2.0, 0.0])
    assert found.filter(keep=0.6).ids == ["p1", "p2", "p4"]  # round(.6 * 5) = 3: of the two twos the earlier
    assert found.filter(keep=1).ids == ["p0", "p1", "p2", "p3", "p4"]
    assert len(scored(range(40)).filter()) == 38  # .95 * 40


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan")])
def test_a_bad_share_is_refused(keep):
    with pytest.raises(InputError, match="keep is .* expected a share above 0 and at most 1"):
        scored([1.0, 2.0]).filter(keep)


def test_none_left_and_no_number_are_refused():
    with pytest.raises(InputError, match="keep 0.1 of 3 pairs is none"):
        scored([1.0, 2.0, 3.0]).filter(0.1)
    with pytest.raises(NumericsError, match="ches of pair 'p1' is NaN"):
        scored([1.0, np.nan, 3.0]).filter()


def test_equal_scores_cut_nothing_but_can_be_looked_at():
    same = scored([2.0, 2.0, 2.0])
    with pytest.raises(InputError, match="filter: ches is 2 for all 3 pairs, so none is higher than another. Filter by another"):
        same.filter(0.5)
    assert len(same.filter(1)) == 3  # nothing is dropped
    assert "the 3 kept" in same._repr_html_()


def test_the_file_is_read_back(tmp_path):
    path = tmp_path / "kept.jsonl"
    kept = scored([3.0, 1.0, 2.0]).filter(0.67, out=path)
    assert wb.pairs(path).rows == kept.rows
    before = path.read_bytes()
    with pytest.raises(InputError, match="kept.jsonl exists already"):
        scored([3.0, 1.0]).filter(out=path)
    assert path.read_bytes() == before


def test_against_a_measurement():
    found = scored([1.0, 2.0, 3.0, 4.0], length=[5, 5, 5, 5], alike=[1, 2, 4, 3])
    held = found.against([0.0, -2.0, -3.0, -4.0])  # the higher the score, the further ln p fell
    assert held.displaced.tolist() == [0.0, 2.0, 3.0, 4.0]
    assert held.rho.value == 1
    assert held.rho.n == 4
    assert np.isnan(held.rho[1:3]).all()
    assert "4 groups of 4 rows are too few" in held.notes["ches"]
    assert held.estimates["alike"].value == pytest.approx(4 / 5)  # one exchange of neighbors among four: 1 - 6 * 2 / 60
    assert np.isnan(held.estimates["length"].value)
    assert "x has the same value 5 in all 4 rows" in held.notes["length"]
    assert held.frame().loc["length", "note"] == held.notes["length"]
    page = held._repr_html_()
    assert "rho 1.000, n = 4; 4 groups of 4 rows are too few" in page
    assert "displacement: fall of ln p(chosen), nats" in page
    assert "NaN, NaN" not in page
    np.testing.assert_equal(tuple(held.rho), tuple(found.against(np.array([0.0, -2.0, -3.0, -4.0])).rho))
    with pytest.raises(ShapeError, match="measured is .3,., expected one number for each of 4 pairs"):
        found.against([1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="NaN or infinite in 1 of 4"):
        found.against([1.0, 2.0, 3.0, np.nan])


def test_pairs_of_a_prompt_are_drawn_together():
    rng = np.random.default_rng(0)
    alone = scored(rng.normal(size=40))
    change = rng.normal(size=40)
    pairs = PreferencePairs([PreferencePair(p.id, f"Q{i // 8}?", p.chosen, p.rejected) for i, p in enumerate(alone.pairs)], "pairs")
    found = replace(alone, pairs=pairs).against(change)
    assert found.rho == spearman_estimate(alone.values, -change, groups=[f"Q{i // 8}?" for i in range(40)])
    assert found.rho[1:3] != alone.against(change).rho[1:3]
    assert found.rho.value == alone.against(change).rho.value


def test_the_page_is_static_and_escaped():
    page = scored(np.arange(30.0)).card(keep=0.9, measured=np.arange(30.0) ** 2)._repr_html_()
    assert "<b>no</b>" not in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert not re.search(r"<script|https?://|javascript:|<link|onload", page)
    assert "the 27 kept" in page
    assert "the 3 dropped" in page
    assert page.count("<circle") == 30
    assert ">p29<" in page  # the highest
    assert ">p0<" in page  # the lowest
    assert ">p15<" not in page
    assert scored([1.0, 2.0])._repr_html_().count("<svg") == 1


def test_a_histogram_counts_every_value():
    values, kept = np.array([0.0, 1.0, 1.0, 5.0, np.nan]), np.array([True, True, False, False, True])
    drawn = histogram(values, kept, label="x", kept_label="kept", dropped_label="dropped")
    assert sum(int(n) for n in re.findall(r"<title>[^<]*: (\d+)</title>", drawn)) == 4
    with pytest.raises(DataError, match="no value is finite"):
        histogram(np.array([np.nan]), np.array([True]), label="x", kept_label="", dropped_label="")
    one = scatter(np.array([1.0, np.inf]), np.array([2.0, 2.0]), ["a<", "b"], x_label="x", y_label="y")
    assert one.count("<circle") == 1
    assert "a&lt;" in one


def test_one_value_alone_can_be_drawn():
    assert "<rect" in histogram(np.zeros(3), np.ones(3, bool), label="x", kept_label="kept", dropped_label="")
