"""A full disk: whatever was being written, the old state is whole, nothing half written is left, and a run can go on later."""

import errno
import json
import os

import pytest
import torch

from workbench.core import store
from workbench.core.delta import Delta
from workbench.core.records import Provenance
from workbench.core.store import load_tensors, new_file, new_folder, read_json, save_tensors, write_json
from workbench.study.folder import begin, kept


def full(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_at_call(monkeypatch, where, name, number):
    """Let the disk be full at the given call of a function, counted from 0, and never again."""
    real, calls = getattr(where, name), iter(range(100))
    monkeypatch.setattr(where, name, lambda *args, **options: (full if next(calls) == number else real)(*args, **options))


def half_written(self, text, **_options):
    """What `write_text` leaves when the disk fills up half way: half of the file, and an error."""
    with open(self, "w", encoding="utf-8") as file:
        file.write(text[: len(text) // 2])
    full()


NO_SPACE = "No space left on device"


def test_a_text_file_keeps_its_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with monkeypatch.context() as m:
        m.setattr("pathlib.Path.write_text", half_written)
        with pytest.raises(OSError, match=NO_SPACE):
            write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]
    write_json(path, {"new": 2})
    assert read_json(path) == {"new": 2}


def test_a_file_that_did_not_exist_still_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_text", half_written)
    with pytest.raises(OSError, match=NO_SPACE):
        write_json(tmp_path / "below" / "a.json", {"new": 2})
    assert os.listdir(tmp_path / "below") == []


@pytest.mark.parametrize("where", ["in safetensors", "at the rename"])
def test_tensors_keep_their_old_values(where, tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"kind": "test"})

    def save_half(tensors, name, **_options):
        name.write_bytes(b"\x08\x00")
        full()

    with monkeypatch.context() as m:
        if where == "in safetensors":
            m.setattr(store, "save_file", save_half)
        else:
            m.setattr(os, "replace", full)
        with pytest.raises(OSError, match=NO_SPACE):
            save_tensors(path, {"a": torch.zeros(2)}, {"kind": "test"})
    assert torch.equal(load_tensors(path, "test")[0]["a"], torch.ones(2))
    assert os.listdir(tmp_path) == ["t.safetensors"]


@pytest.mark.parametrize(("exists", "rename"), [(True, None), (True, 0), (True, 1), (False, None), (False, 0)])
def test_a_folder_is_the_old_one_or_absent(exists, rename, tmp_path, monkeypatch):
    """The disk fills up while the folder is written (None), or at one of the renames that put it in place."""
    path = tmp_path / "run"
    if exists:
        with new_folder(path) as aside:
            (aside / "a").write_text("old")
    with monkeypatch.context() as m:
        if rename is not None:
            full_at_call(m, os, "replace", rename)
        with pytest.raises(OSError, match=NO_SPACE), new_folder(path) as aside:
            (aside / "a").write_text("new")
            (aside / "b").write_text("half")
            if rename is None:
                full()
    assert os.listdir(tmp_path) == (["run"] if exists else [])
    if exists:
        assert os.listdir(path) == ["a"]
        assert (path / "a").read_text() == "old"
    with new_folder(path) as aside:
        (aside / "a").write_text("new")
    assert (path / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_that_a_killed_process_had_moved_aside_comes_back(tmp_path, monkeypatch):
    with new_folder(tmp_path / "run") as aside:
        (aside / "a").write_text("old")
    os.replace(tmp_path / "run", tmp_path / ".run.old.partial")  # killed between the two renames
    with pytest.raises(OSError, match=NO_SPACE), new_folder(tmp_path / "run") as aside:
        full()
    assert (tmp_path / "run" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_written_inside_another_goes_with_it(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=NO_SPACE), new_folder(tmp_path / "out") as aside:
        write_json(aside / "a.json", 1)
        monkeypatch.setattr("pathlib.Path.write_text", half_written)
        write_json(aside / "b.json", 2)
    assert os.listdir(tmp_path) == []


def test_a_delta_keeps_its_old_file(tmp_path, monkeypatch):
    about = Provenance("test", "0" * 64)
    one, two = (Delta.of({"w": torch.full((2, 2), value)}, about) for value in (1.0, 2.0))
    one.save(tmp_path / "d.safetensors")
    with monkeypatch.context() as m:
        m.setattr(store, "save_file", full)
        with pytest.raises(OSError, match=NO_SPACE):
            two.save(tmp_path / "d.safetensors")
    assert Delta.load(tmp_path / "d.safetensors").id == one.id
    assert os.listdir(tmp_path) == ["d.safetensors"]


def test_a_run_folder_goes_on_where_the_disk_was_full(tmp_path, monkeypatch):
    """Points that were kept stay and are not measured again; the one that did not fit is measured when there is room."""
    folder, made = tmp_path / "run", []

    def measure(name):
        made.append(name)
        return {"value": float(len(name))}

    def study():
        begin(folder, {"name": "run"}, ["points.parquet"])
        return [kept(folder, [name], lambda name=name: measure(name))["value"] for name in ("a", "bb", "ccc")]

    with monkeypatch.context() as m:
        real, written = type(folder).write_text, iter(range(100))

        def fills_up(self, text, **options):
            # config.yaml, env.json and the first point fit; half of the second does
            return (real if next(written) < 3 else half_written)(self, text, **options)

        m.setattr("pathlib.Path.write_text", fills_up)
        with pytest.raises(OSError, match=NO_SPACE):
            study()
    points = list((folder / "points").iterdir())
    assert [json.loads(path.read_text()) for path in points] == [{"value": 1.0}]
    assert sorted(os.listdir(folder)) == ["config.yaml", "env.json", "points"]
    assert study() == [1.0, 2.0, 3.0]
    assert made == ["a", "bb", "bb", "ccc"]
    assert len(list((folder / "points").iterdir())) == 3


def test_a_full_disk_at_the_config_leaves_the_old_run(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    begin(folder, {"name": "run", "seeds": [0]}, ["points.parquet"])
    kept(folder, ["a"], lambda: {"value": 1.0})
    with new_file(folder / "points.parquet") as aside:
        aside.write_text("the old table")
    with monkeypatch.context() as m:
        m.setattr("pathlib.Path.write_text", half_written)
        with pytest.raises(OSError, match=NO_SPACE):
            begin(folder, {"name": "run", "seeds": [0, 1]}, ["points.parquet"])
    # the table of the old settings is gone before config.yaml says the new ones: a table never stands beside foreign settings
    assert sorted(os.listdir(folder)) == ["config.yaml", "env.json", "points"]
    assert (folder / "config.yaml").read_text() == "name: run\nseeds:\n- 0\n"
    begin(folder, {"name": "run", "seeds": [0, 1]}, ["points.parquet"])
    assert kept(folder, ["a"], full) == {"value": 1.0}
