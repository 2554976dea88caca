"""What study files of all kinds begin with: read, resolved, written again, and refused."""

from pathlib import Path

import pytest
import yaml

from workbench.core.errors import InputError, StudyError, UnknownNameError
from workbench.study.head import below, count, listing, positive, read_head, share

TEXT = """
name: mine
model: {root}/data/models/stories260K
data: {{root: "{root}/data/tofu-mini", forget: "tofu:forget"}}
kind: {{a: 1}}
"""


@pytest.fixture
def file(tmp_path, root):
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT.format(root=root), encoding="utf-8")
    return path


def test_a_head_and_its_own_mapping(file):
    head, body = read_head(file, ["kind.b=2", "device=cpu"], "kind", splits=("forget",))
    assert body == {"a": 1, "b": 2}
    assert (head.name, head.title, head.device, head.dtype) == ("mine", "", "cpu", "auto")
    assert len(head.rows("forget")) == 80
    assert head.load().n_layers == 5


def test_what_is_written_reads_back_the_same(file, tmp_path):
    head, body = read_head(file, [], "kind", splits=("forget",))
    folder = tmp_path / "runs/mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(head.config(folder, "kind", body)), encoding="utf-8")
    assert "tofu-mini" in (folder / "config.yaml").read_text(encoding="utf-8")
    again, same = read_head(folder / "config.yaml", [], "kind", splits=("forget",))
    assert same == body
    assert Path(again.model).resolve() == Path(head.model).resolve()
    assert again.rows("forget").fingerprint() == head.rows("forget").fingerprint()


def test_a_study_without_a_model_and_data(tmp_path):
    path = tmp_path / "bare.yaml"
    path.write_text("name: bare\nkind: {a: 1}\n", encoding="utf-8")
    head, _ = read_head(path, [], "kind", model=False)
    assert set(head.config(tmp_path, "kind", {})) == {"name", "title", "device", "dtype", "kind"}
    with pytest.raises(UnknownNameError, match="unknown key of a study with 'kind' 'model'"):
        read_head(path, ["model=x"], "kind", model=False)


@pytest.mark.parametrize(
    ("error", "match", "override"),
    [
        (UnknownNameError, "Did you mean 'title'", "titel=x"),
        (StudyError, "there is no 'data'", "data="),
        (StudyError, "data has no source for forget", "data={root: x}"),
        (StudyError, "kind: expected a mapping, got 3", "kind=3"),
        (StudyError, "it names a folder", "name=a/b"),
        (InputError, "nowhere", "model=./nowhere"),
    ],
)
def test_refused(file, error, match, override):
    with pytest.raises(error, match=match):
        read_head(file, [override], "kind", splits=("forget",))


def test_single_values():
    assert positive("x", 2) == 2.0
    assert share("x", 1) == 1.0
    assert count("x", 0, least=0) == 0
    assert listing("x", [2, 1], int) == (2, 1)
    for check, value in (
        (positive, 0),
        (positive, True),
        (positive, float("inf")),
        (positive, "1"),
        (share, 1.5),
        (count, 0),
        (count, 1.0),
    ):
        with pytest.raises(StudyError, match="x is"):
            check("x", value)
    for value in ([], [1, 1], [1, "a"], "ab", 3):
        with pytest.raises(StudyError, match="expected a list"):
            listing("x", value, int)


def test_options_of_a_command_go_below_its_kind():
    assert below("judge", ["seeds=[0]", "name=x", "data.root=y", "scores.a.b=1"]) == [
        "judge.seeds=[0]",
        "name=x",
        "data.root=y",
        "judge.scores.a.b=1",
    ]
