"""Files of rows that are no text in UTF-8, as a spreadsheet may write them: one error that names the byte and the cure."""

import pytest

from workbench.core.errors import InputError
from workbench.core.store import read_text
from workbench.load.behaviors import behavior
from workbench.load.contrasts import contrasts
from workbench.load.datasets import examples, pairs
from workbench.load.labelled import labelled
from workbench.load.passages import passages
from workbench.study.file import read_file


def test_what_is_no_text_says_so_wherever_rows_are_read(tmp_path):
    readers = {
        "rows.jsonl": (examples, pairs, contrasts, labelled, passages),
        "rows.csv": (contrasts, labelled),
        "rows.txt": (passages,),
        "card.yaml": (read_file, behavior),
    }
    for name, functions in readers.items():
        (tmp_path / name).write_bytes("text,label\nSão Paulo,1\n".encode("latin-1"))
        for read in functions:
            with pytest.raises(InputError, match=rf"{name}: not a text in UTF-8 \(byte 0xe3\).*save it in this encoding"):
                read(tmp_path / name)
    (tmp_path / "rows.txt").write_text("São Paulo", encoding="utf-8")
    assert read_text(tmp_path / "rows.txt") == "São Paulo"
    with pytest.raises(InputError, match="no such file"):
        read_text(tmp_path / "absent.txt")
