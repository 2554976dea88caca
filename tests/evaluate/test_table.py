from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.evaluate.cases import ROOT, STORY, answers
from workbench.core.errors import DataError, InputError, ShapeError
from workbench.evaluate.table import COLUMNS, NO_END, TokenTable
from workbench.evaluate.tokens import tokens


@pytest.fixture(scope="module")
def table():
    return tokens(wb.load(ROOT / "data/models/stories260K"), STORY, generate=5)


def test_save_and_load_give_the_same_bits(table, tmp_path):
    table.save(tmp_path / "tokens" / "story.parquet")
    again = TokenTable.load(tmp_path / "tokens" / "story.parquet")
    for name in ("row", "variant", *COLUMNS):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name), err_msg=name)
        assert getattr(again, name).dtype == getattr(table, name).dtype
    for name in ("name", "ids", "truth", "generated", "variants", "prompt_tokens", "provenance"):
        assert getattr(again, name) == getattr(table, name)
    assert not list((tmp_path / "tokens").glob(".*")), "nothing is left beside the file"


def test_other_readers_find_ids_in_the_file(table, tmp_path):
    table.save(tmp_path / "t.parquet")
    frame = pd.read_parquet(tmp_path / "t.parquet")
    assert list(frame.columns) == ["id", "variant", *COLUMNS]
    assert frame[(frame.id == "d") & (frame.variant == "paraphrase")].logprob.tolist() == (
        table.logprob[(table.row == 3) & (table.variant == 1)].tolist()
    )


def test_mean_nll_by_hand(table):
    # tokens of -1 and -2 nats, then one of -4: means 1.5 and 4; nothing was read for the rest
    small = replace(
        table,
        **{name: getattr(table, name)[:3] for name in COLUMNS if name != "logprob"},
        ids=("a", "b"),
        variants=("response", "paraphrase"),
        row=np.array([0, 0, 1], dtype=np.int32),
        variant=np.array([0, 0, 0], dtype=np.int32),
        logprob=np.array([-1, -2, -4], dtype=np.float32),
    )
    np.testing.assert_array_equal(small.mean_nll(), [[1.5, np.nan], [4, np.nan]])


def test_take(table):
    few = table.take([3, 0])
    assert (few.ids, few.truth, few.generated) == tuple(
        tuple(getattr(table, name)[i] for i in (3, 0)) for name in ("ids", "truth", "generated")
    )
    for new, old in ((0, 3), (1, 0)):
        for name in ("variant", *COLUMNS):
            np.testing.assert_array_equal(getattr(few, name)[few.row == new], getattr(table, name)[table.row == old], err_msg=name)
    np.testing.assert_array_equal(few.mean_nll(), table.mean_nll()[[3, 0]])
    with pytest.raises(InputError, match="take was given -1 to 0, expected 0 to 3"):
        table.take([0, -1])
    with pytest.raises(DataError, match="take was given no position"):
        table.take([])


def test_the_end_of_text_token_is_kept(table, tmp_path):
    for end in (None, 2, NO_END):
        replace(table, end=end).save(tmp_path / f"{end}.parquet")
        assert TokenTable.load(tmp_path / f"{end}.parquet").end == end


def test_frame_and_repr(table):
    frame = table.frame()
    assert len(frame) == len(table)
    assert frame.id.iloc[0] == "a"
    assert "4 examples" in repr(table)
    assert f"{len(table):,} answer tokens after {table.prompt_tokens:,} prompt tokens, 4 generated" in repr(table)


def test_html_escapes_what_the_model_wrote(table):
    wicked = replace(table, generated=("<script>alert(1)</script>",) * 4, name="<b>")
    html = wicked._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<b>" not in html


def test_broken_files(table, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        TokenTable.load(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match=r"text\.parquet: not a parquet file"):
        TokenTable.load(tmp_path / "text.parquet")
    table.frame().to_parquet(tmp_path / "frame.parquet")
    with pytest.raises(InputError, match=r"frame\.parquet: holds no token table"):
        TokenTable.load(tmp_path / "frame.parquet")


def test_answers_refuse_lists_that_do_not_match():
    good = answers([1.0, 2.0])
    with pytest.raises(ShapeError, match=r"2 ids, but lengths \{'generated': 1\}"):
        replace(good, generated=("x",))
    with pytest.raises(DataError, match="an id stands twice"):
        replace(good, ids=("a", "a"))


def test_answers_frame():
    frame = answers([1.0, 2.0], perturbed=[[3.0], [4.0]], truth=["a", "b"]).frame()
    assert list(frame.columns) == ["response", "paraphrase", "perturbed.0", "generated", "truth"]
    assert frame.loc["r1", "perturbed.0"] == 4.0
