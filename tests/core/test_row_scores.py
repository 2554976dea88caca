"""RowScores: shapes that must agree, order, the table, the file, the page."""

import numpy as np
import pandas as pd
import pytest

from workbench.core.errors import InputError, ShapeError
from workbench.core.records import Provenance
from workbench.core.row_scores import RowScores


def scored(values, *, notes=None, **columns):
    ids = tuple(f"<{i}>" for i in range(len(values)))
    made = {name: np.asarray(column, dtype=float) for name, column in columns.items()}
    about = Provenance("loss", "m", notes=notes or {})
    return RowScores("loss", ids, np.asarray(values, dtype=float), "less likely", about, "nats", made)


def test_shapes_must_agree():
    with pytest.raises(ShapeError, match="length is .2,., but there are 3 rows"):
        scored([1.0, 2.0, 3.0], length=[1, 2])


def test_highest_first_and_ties_in_their_order():
    assert scored([1.0, 3.0, 3.0, 2.0]).ranked() == [1, 2, 3, 0]


def test_the_table_and_the_file(tmp_path):
    found = scored([1.0, 2.0], length=[5, 6])
    frame = found.frame()
    assert frame.loc["<1>"].to_dict() == {"loss": 2.0, "length": 6.0}
    found.save(tmp_path / "scores.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "scores.parquet"), frame)
    assert len(found) == 2


def test_notes_are_said_and_everything_is_escaped():
    found = scored(np.arange(20.0), notes={"left out": "<i>3</i>"})
    assert repr(found) == "RowScores(loss, 20 rows)\nleft out: <i>3</i>"
    page = found._repr_html_()
    assert "left out: &lt;i&gt;3" in page
    assert "&lt;19&gt;" in page
    assert "<i>" not in page
    assert "&lt;10&gt;" not in page  # of twenty rows, the five highest and the five lowest
    assert page.count("<tr>") == 11


def test_what_is_saved_is_read_back_with_how_it_was_made(tmp_path):
    found = scored([1.5, np.nan, -2.0], notes={"left out": "<i>3</i>"}, length=[5, 6, 7])
    found.save(tmp_path / "scores.parquet")
    read = RowScores.load(tmp_path / "scores.parquet")
    assert (read.name, read.ids, read.higher, read.unit) == (found.name, found.ids, found.higher, found.unit)
    assert read.provenance == found.provenance
    np.testing.assert_array_equal(read.values, found.values)
    assert list(read.columns) == ["length"]
    np.testing.assert_array_equal(read.columns["length"], found.columns["length"])


def test_another_file_is_refused(tmp_path):
    pd.DataFrame({"loss": [1.0]}).to_parquet(tmp_path / "plain.parquet")
    (tmp_path / "text.parquet").write_text("loss")
    for name, match in (("plain", "holds no scores of rows"), ("text", "not a parquet file"), ("none", "no such file")):
        with pytest.raises(InputError, match=match):
            RowScores.load(tmp_path / f"{name}.parquet")
