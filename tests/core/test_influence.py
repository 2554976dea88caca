"""Influence: both ends of a ranking, means, cards that show text without running it, files."""

import numpy as np
import pytest

from workbench.core.errors import InputError, MismatchError, NumericsError, ShapeError, UnknownNameError
from workbench.core.influence import HIGHER, Influence
from workbench.core.records import Example, Examples, Provenance
from workbench.core.store import load_tensors

VALUES = np.array([[3.0, 1.0, 2.0, 5.0, -4.0], [0.0, 0.0, 1.0, 0.0, 7.0]])


def influence(values=VALUES):
    queries, train = (tuple(f"{letter}{i}" for i in range(n)) for letter, n in zip("qt", values.shape, strict=True))
    return Influence(values, queries, train, Provenance("dot", "abc"))


def rows(letter, n, text="x"):
    return Examples([Example(f"{letter}{i}", f"prompt {i}", text) for i in range(n)], letter)


def test_both_ends_of_a_ranking():
    frame = influence().frame(k=2)
    assert list(frame.columns) == ["query", "rank", "train", "value"]
    assert frame[frame["query"] == "q0"].values.tolist() == [
        ["q0", 1, "t3", 5.0],
        ["q0", 2, "t0", 3.0],
        ["q0", -2, "t1", 1.0],
        ["q0", -1, "t4", -4.0],
    ]
    whole = influence().frame(k=4)  # five rows: four at the top, and the one that is left at the bottom
    assert whole[whole["query"] == "q0"]["train"].tolist() == ["t3", "t0", "t2", "t1", "t4"]
    assert whole[whole["query"] == "q0"]["rank"].tolist() == [1, 2, 3, 4, -1]


def test_equal_values_keep_their_order():
    assert influence().top("q1", k=4) == ["t4", "t2", "t0", "t1"]


def test_mean_over_queries():
    """(3 + 0) / 2 = 1.5, (1 + 0) / 2, (2 + 1) / 2, (5 + 0) / 2, (-4 + 7) / 2."""
    mean = influence().mean()
    assert mean.values.tolist() == [1.5, 0.5, 1.5, 2.5, 1.5]
    assert mean.ids == ("t0", "t1", "t2", "t3", "t4")
    assert mean.name == "dot, mean over 2 queries"


def test_the_card_escapes_text_and_has_no_script():
    shown = influence().with_text(rows("q", 2, "<script>alert(1)</script>"), rows("t", 5, 'a "quote" & <b>bold</b>\u202e'))
    html = shown._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert "<b>bold" not in html
    assert "\u202e" not in html
    assert html.index("t3") < html.index("t4")  # the top proponent of the first query comes before its strongest opponent
    assert "prompt 3" in html
    assert HIGHER.replace("'", "&#39;") in html
    assert "3 of 4 queries" in influence(np.zeros((4, 2)))._repr_html_()


def test_text_of_other_rows_is_refused():
    with pytest.raises(MismatchError, match="t does not hold the 5 training rows"):
        influence().with_text(rows("q", 2), rows("t", 4))
    with pytest.raises(MismatchError, match="does not hold the 2 queries"):
        influence().with_text(rows("t", 5), rows("t", 5))


def test_files_hold_values_and_sign_and_no_text(tmp_path):
    path = tmp_path / "influence.safetensors"
    influence().with_text(rows("q", 2, "secret"), rows("t", 5, "secret")).save(path)
    again = Influence.load(path)
    assert np.array_equal(again.values, VALUES)
    assert (again.query, again.train, again.provenance.method) == (("q0", "q1"), ("t0", "t1", "t2", "t3", "t4"), "dot")
    assert load_tensors(path, "Influence")[1]["higher"] == HIGHER
    assert b"secret" not in path.read_bytes()


def test_what_is_refused():
    with pytest.raises(ShapeError, match="2 queries and 4 training rows"):
        Influence(VALUES, ("q0", "q1"), ("a", "b", "c", "d"), Provenance("dot", "abc"))
    with pytest.raises(NumericsError, match="row 't1' on query 'q0' is NaN"):
        influence(np.array([[0.0, np.nan]]))
    with pytest.raises(UnknownNameError, match="Did you mean 'q0'"):
        influence().of("q00")
    with pytest.raises(InputError, match="k is 0"):
        influence().frame(k=0)
