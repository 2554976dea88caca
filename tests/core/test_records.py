"""Rows, directions, measurements, registries and files."""

import json
import os

import pytest
import torch

import workbench as wb
from workbench.core.errors import DataError, InputError, ShapeError, UnknownNameError
from workbench.core.measurements import Measurement
from workbench.core.records import Example, check_disjoint
from workbench.core.registry import Registry, attribution
from workbench.core.store import load_tensors, new_folder, read_json, save_tensors, tensor_sha256


def rows(*ids):
    return wb.Examples([Example(i, f"question {i}", f"answer {i}") for i in ids], "set")


def test_examples_are_a_sequence():
    some = rows("a", "b", "c")
    assert [row.id for row in some[1:]] == ["b", "c"]
    assert some.take([2, 0]).ids == ["c", "a"]
    assert some.frame().loc["b", "response"] == "answer b"
    assert "question a" in some._repr_html_()


def test_fingerprint_follows_text_and_order():
    assert rows("a", "b").fingerprint() == rows("a", "b").fingerprint()
    assert rows("a", "b").fingerprint() != rows("b", "a").fingerprint()


def test_no_rows_and_repeated_ids_are_refused():
    with pytest.raises(DataError, match="the set is empty"):
        rows()
    with pytest.raises(DataError, match="two rows have the id 'a'"):
        rows("a", "a")


def test_shared_rows_are_named():
    check_disjoint(rows("a"), rows("b"))
    with pytest.raises(DataError, match="share 2 rows: b, c"):
        check_disjoint(rows("a", "b", "c"), rows("c", "b"))


def test_measurements(tmp_path):
    one = Measurement("probability", "forget", 0.5, 0.4, 0.6, 10, "probability", "lower")
    two = Measurement("ks_p", "forget", 0.1, float("nan"), float("nan"), 10, "probability", note="no interval")
    both = wb.Measurements([one, two])
    assert both["probability", "forget"] == one
    assert both.as_dicts()[1]["low"] is None
    json.dumps(both.as_dicts(), allow_nan=False)
    both.save(tmp_path / "m.parquet")
    assert wb.Measurements.load(tmp_path / "m.parquet").frame().equals(both.frame())
    with pytest.raises(UnknownNameError, match="Did you mean 'probability/forget'"):
        both["probability", "forgets"]
    with pytest.raises(InputError, match="stands twice"):
        wb.Measurements([one, one])


def test_registry_finds_members_and_suggests():
    assert "wagle" in attribution.names()
    assert attribution["wagle"].options["gamma"] == "curvature"
    with pytest.raises(UnknownNameError, match="Did you mean 'wagle'"):
        attribution["wagl"]
    with pytest.raises(UnknownNameError, match="unknown option of wagle 'gama'. Did you mean 'gamma'"):
        attribution["wagle"].check_options({"gama": 1})


def test_registry_asks_for_what_it_needs():
    kind = Registry("thing", "workbench.core", unit=...)
    with pytest.raises(InputError, match="@thing on f needs unit"):

        @kind
        def f(): ...

    with pytest.raises(UnknownNameError, match="Did you mean 'unit'"):

        @kind(units="m")
        def g(): ...


def test_a_folder_is_complete_or_absent(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a") as aside:
        (aside / "x").write_text("half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    for text in ("one", "two"):
        with new_folder(tmp_path / "a") as aside:
            (aside / "x").write_text(text)
    assert (tmp_path / "a" / "x").read_text() == "two"
    assert os.listdir(tmp_path) == ["a"]


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_tensors(tmp_path / "x", "mask")
    with pytest.raises(InputError, match="no such file"):
        load_tensors(tmp_path / "nowhere", "mask")
    (tmp_path / "j").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "j")


def test_order_survives_the_file(tmp_path):
    save_tensors(tmp_path / "t", {"z": torch.zeros(1), "a": torch.ones(2)}, {"kind": "test"})
    tensors, about = load_tensors(tmp_path / "t", "test")
    assert list(tensors) == ["z", "a"]
    assert about["kind"] == "test"


def test_hash_is_of_values_not_of_storage():
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    assert tensor_sha256(half) == tensor_sha256(half.float())
    assert tensor_sha256(half) != tensor_sha256(half.view(2, 1))
    assert tensor_sha256(half) != tensor_sha256(-half)
