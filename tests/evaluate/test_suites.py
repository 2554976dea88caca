from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from tests.evaluate.cases import FULL, RETAIN, ROOT, answers
from workbench.core.errors import DataError, InputError, TooLongError, UnknownNameError
from workbench.core.records import Example, Examples
from workbench.core.registry import metric
from workbench.core.statistics import wilson
from workbench.evaluate import TokenTable, read, suite, tofu
from workbench.evaluate.logs import read_logs
from workbench.evaluate.suites.lines import Given, Line, mean, measured

SPLITS = ("forget", "retain", "real_authors", "world_facts")


@pytest.fixture(scope="module")
def model():
    return wb.load(ROOT / "data/models/stories260K")


@pytest.fixture(scope="module")
def data():
    return {split: wb.examples(f"tofu:{split}", root=ROOT / "data/tofu-mini")[:3] for split in SPLITS}


@pytest.fixture(scope="module")
def tables(model, data):
    return read(model, data, generate=6)


def same(one, two):
    return all(
        np.array_equal([a.value, a.low, a.high], [b.value, b.low, b.high], equal_nan=True) for a, b in zip(one, two, strict=True)
    )


def test_is_the_tables_and_then_the_metrics(model, data, tables):
    whole = suite("tofu", model, data=data, generate=6)
    assert same(whole, tofu(tables))
    assert same(whole, suite("tofu", model, data=data, generate=6)), "the same seed must give the same bits"


def test_the_seed_reaches_every_interval():
    log, reference = read_logs(FULL), read_logs(RETAIN)
    for one, two in zip(tofu(log, reference), tofu(log, reference, seed=1), strict=True):
        assert one.value == two.value
        if not one.metric.startswith("forget_quality"):  # a p-value has no interval
            assert (one.low, one.high) != (two.low, two.high), one


def test_every_number_has_unit_and_interval(tables):
    rows = tofu(tables, tables)
    assert {row.split for row in rows} == {*SPLITS, "all"}
    for row in rows:
        assert row.unit
        assert row.better
        assert row.n in (3, 9)
        if row.metric.startswith("forget_quality"):
            assert "no interval: a p-value; its floor at n=3 is 1.00e-1" in row.note  # 2 / C(6, 3) = 2/20
        else:
            assert row.low <= row.value <= row.high, row
        known = {row.metric, row.metric.removesuffix("_arithmetic"), row.metric.removesuffix("_paraphrase")}
        assert known & set(metric.names())
    assert rows["probability", "forget"].better == "lower"
    assert rows["probability", "retain"].better == "higher"
    assert ("probability", "real_authors") not in rows
    assert ("probability_options", "real_authors") in rows


def test_a_model_against_itself(model, data):
    rows = suite("tofu", model, data=data, reference=model, generate=6)
    assert rows["forget_quality", "forget"].value == 1.0
    assert rows["ks_distance", "forget"].value == 0.0
    assert rows["log_truth_ratio_difference", "forget"].value == pytest.approx(0, abs=1e-6)  # float32, other batches


def test_without_reference_there_is_no_forget_quality(tables):
    rows = tofu(tables)
    assert not [row for row in rows if row.metric.startswith(("forget_quality", "ks_", "log_truth"))]
    with pytest.raises(UnknownNameError, match="unknown measurement 'forget_quality/forget'"):
        rows["forget_quality", "forget"]
    with pytest.raises(InputError, match="pass reference="):
        metric["forget_quality"].function(tables["forget"])


def test_tables_on_disk_give_the_same_numbers(tables, tmp_path):
    for split, table in tables.items():
        table.save(tmp_path / f"{split}.parquet")
    assert same(tofu({s: TokenTable.load(tmp_path / f"{s}.parquet") for s in SPLITS}), tofu(tables))


def test_unknown_or_missing_names(model, data, tables):
    with pytest.raises(UnknownNameError, match=r"unknown suite 'tofuu'. Did you mean 'tofu'\?"):
        suite("tofuu", model, data=data)
    with pytest.raises(DataError, match="no world_facts among forget, retain, real_authors"):
        suite("tofu", model, data={s: data[s] for s in SPLITS[:3]})
    with pytest.raises(UnknownNameError, match=r"unknown split of tofu 'retian'. Did you mean 'retain'\?"):
        tofu({**tables, "retian": tables["retain"]})
    with pytest.raises(DataError, match=r"the reference has retain, but not 'forget'"):
        tofu(tables, {"retain": tables["retain"]})


def test_rows_without_false_answers_are_refused_before_the_model_runs(model, data, monkeypatch):
    monkeypatch.setattr(model.hf, "forward", None)
    every = wb.examples("tofu:retain", root=ROOT / "data/tofu-mini")
    with pytest.raises(DataError, match=r"320 of 720 rows of retain have no perturbed answers.*Use retain\[:400\]\."):
        suite("tofu", model, data=data | {"retain": every})
    mixed = every.take([399, 400, 398])
    with pytest.raises(DataError, match=r"1 of 3 rows of retain.*Use retain\.take\(i for i, row in enumerate\(retain\)"):
        suite("tofu", model, data=data | {"retain": mixed})


def test_tables_without_generated_text(model, data, tables):
    with pytest.raises(InputError, match=r"no generated text for row .*generate=200"):
        tofu({**tables, "retain": read(model, {"retain": data["retain"]}, generate=None)["retain"]})


def test_what_the_same_tables_say_of_the_forget_rows(tables):
    rows = tofu(tables)
    forget = tables["forget"]
    assert rows["probability_paraphrase", "forget"].value == np.exp(-forget.mean_nll()[:, 1]).mean()
    for name in ("exact_memorization", "extraction_strength"):
        assert rows[name, "forget"].value == metric[name].function(forget).mean()
        assert rows[name, "forget"].better == "lower"
    silent = rows["empty_answer", "forget"]
    assert (silent.low, silent.high) == wilson(silent.value, silent.n)[1:3]
    assert silent.high > silent.low
    from_log = tofu(read_logs(FULL))  # which holds no tokens
    assert ("exact_memorization", "forget") not in from_log
    assert ("probability_paraphrase", "forget") in from_log


def test_leaks_need_a_holdout_and_a_reference(model, data, tables):
    holdout = wb.examples("tofu:retain", root=ROOT / "data/tofu-mini")[500:504]  # rows without false answers
    given = data | {"holdout": holdout}
    assert set(read(model, {"holdout": holdout}, generate=6)["holdout"].generated) == {None}  # nothing reads such texts
    alone = suite("tofu", model, data=given, generate=6)
    assert ("auc_min_k", "forget") in alone
    assert ("privleak", "forget") not in alone
    assert ("auc_min_k", "forget") not in tofu(tables)
    both = suite("tofu", model, data=given, reference=model, generate=6)
    assert both["privleak", "forget"].value == pytest.approx(0, abs=1e-6)  # float32, other batches
    assert both["privleak", "forget"].unit == "percent"
    read_with = {**tables, "holdout": read(model, {"holdout": holdout}, generate=None)["holdout"]}
    with pytest.raises(DataError, match="the reference has forget, but not 'holdout'"):
        tofu(read_with, {"forget": tables["forget"]})


def test_unequal_numbers_of_false_answers(model, data):
    """A row's own false answers count, however many others have: each row as if it were alone."""
    rows = [
        Example(row.id, row.prompt, row.response, row.paraphrase, row.perturbed[: 1 + i])
        for i, row in enumerate(data["world_facts"])
    ]
    uneven = Examples(rows, "world_facts")
    for name in ("probability_options", "truth_ratio_score_geometric", "truth_ratio_score_arithmetic"):
        truth = {} if name == "probability_options" else {"truth": "response"}
        together = metric[name].function(read(model, {"x": uneven}, generate=None)["x"], **truth)
        alone = [metric[name].function(read(model, {"x": uneven[i : i + 1]}, generate=None)["x"], **truth)[0] for i in range(3)]
        np.testing.assert_allclose(together, alone, rtol=1e-5)  # float32, other batches
    whole = suite("tofu", model, data=data | {"world_facts": uneven}, generate=6)
    assert 0 < whole["probability_options", "world_facts"].value < 1


def test_a_row_that_is_too_long_is_named(model, data):
    long = [Example(name, "Why? " * 600, "So.", "Thus.", ("No.",)) for name in ("long", "longer")]
    total = len(data["forget"]) + 2
    with pytest.raises(
        TooLongError, match=rf"2 of {total} rows do not fit the model's context of 512 tokens: row 'long': \d+ tokens; row 'longer'"
    ):
        suite("tofu", model, data=data | {"forget": Examples([*data["forget"], *long], "forget")})


def test_a_line_says_what_it_needs():
    """Lines are skipped by what they need, never by what happens to fail."""
    text = answers([1.0, 2.0], generated=["a", None], truth=["a", "b"])
    given = Given({"forget": text}, {"forget": text})
    line = Line("probability", "forget", mean)
    for need in ("reference", "tokens", "texts", "holdout"):
        assert measured([line, replace(line, name="other", needs=(need,))], given) == [line.measure(given)]
    full = Given({"forget": text, "holdout": text}, {"forget": text}, {"forget": text})
    assert len(measured([replace(line, needs=("reference", "holdout"))], full)) == 1
    # exp(-1), exp(-2): (.3679 + .1353) / 2 = .2516
    assert line.measure(given).value == pytest.approx((np.exp(-1) + np.exp(-2)) / 2)
    noted = replace(line, note="{n} rows, floor {floor}", unit="u", better="b").measure(given)
    assert (noted.note, noted.unit, noted.better) == ("2 rows, floor 3.33e-1", "u", "b")  # 2 / C(4, 2)


def test_options_of_a_suite_are_checked(model, data):
    with pytest.raises(UnknownNameError, match="unknown option of tofu 'generat'. Did you mean 'generate'"):
        suite("tofu", model, data=data, options={"generat": 3})
    with pytest.raises(InputError, match="conceptvectors: needs the untouched model"):
        suite("conceptvectors", model, data=[])
