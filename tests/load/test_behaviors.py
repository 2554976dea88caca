"""Behaviors: what a card must say, that the rows are those it is about, and what is read from one's own files."""

import json
import re

import pytest
import yaml

from workbench.core.errors import DataError, InputError, UnknownNameError
from workbench.core.store import file_sha256
from workbench.load.behaviors import behavior, behaviors
from workbench.load.labelled import LabelledText, LabelledTexts, labelled

ROWS = [
    {"id": "a", "text": "I am <i>glad</i>", "label": 1, "group": "x"},
    {"id": "b", "text": "I am sad", "label": 0},
    {"id": "c", "text": "so very glad", "label": 1, "group": "x"},
]


def write(folder, *, rows=ROWS, raw=None, name="mood", **changes):
    """A card and its rows; a change of None takes the key away."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    card = {
        "question": "Is the writer glad?",
        "labels": {0: "not glad", 1: "glad"},
        "source": "made up for this test",
        "licence": "CC0",
        "unit": "AUC",
        "chance": {"auc": 0.5, "accuracy": 0.667},
        "n": len(rows),
        "sha256": file_sha256(folder / f"{name}.jsonl"),
    } | changes
    said = yaml.safe_dump({key: value for key, value in card.items() if value is not None}) if raw is None else raw
    (folder / f"{name}.yaml").write_text(said, encoding="utf-8")
    return folder / f"{name}.yaml"


def test_a_behavior_by_name_and_by_path(tmp_path):
    path = write(tmp_path, chat=True, pool="last", note="short", groups="one writer")
    found = behavior("mood", root=tmp_path)
    assert (found.name, found.question, found.chat, found.pool) == ("mood", "Is the writer glad?", True, "last")
    assert (found.unit, found.chance) == ("AUC", {"auc": 0.5, "accuracy": 0.667})
    assert (found.labels, found.counts) == ({0: "not glad", 1: "glad"}, {0: 1, 1: 2})
    assert (found.source, found.licence, found.note, found.groups) == ("made up for this test", "CC0", "short", "one writer")
    assert found.rows.texts == ["I am <i>glad</i>", "I am sad", "so very glad"]
    assert found.rows.labels == [1, 0, 1]
    assert found.rows.groups == ["x", "row b", "x"]
    assert behavior(path).rows.fingerprint() == found.rows.fingerprint()
    assert repr(found) == "Behavior('mood', 3 turns: Is the writer glad?)"
    assert behaviors(tmp_path) == ["mood"]
    assert len(found) == 3


def test_rows_without_groups_have_none():
    rows = LabelledTexts([LabelledText("0", "a", "x"), LabelledText("1", "b", "y")], "rows")
    assert rows.groups is None
    assert rows[:1].labels == ["x"]


def test_the_card_is_escaped(tmp_path):
    wicked = "<script>alert(1)</script>"
    write(tmp_path, question=wicked, source=wicked, licence=wicked, note=wicked, groups=wicked, labels={0: wicked, 1: "glad\x1b"})
    html = behavior("mood", root=tmp_path)._repr_html_()
    assert "<script" not in html
    assert "<i>" not in html
    assert "\x1b" not in html
    assert html.count("&lt;script&gt;") == 6
    assert "I am &lt;i&gt;glad" in html
    assert "AUC 0.5, accuracy 66.7 %" in html


def test_unknown_behaviors_list_the_known(tmp_path):
    write(tmp_path)
    with pytest.raises(UnknownNameError, match=re.escape("unknown behavior 'moods'. Did you mean 'mood'? Known: mood.")):
        behavior("moods", root=tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        behavior("mood", root=tmp_path / "nowhere")
    with pytest.raises(InputError, match="no such file or folder"):
        behavior(tmp_path / "other.yaml")
    with pytest.raises(InputError, match=r"mood.jsonl holds rows, not a card; give the .yaml beside it"):
        behavior(tmp_path / "mood.jsonl")
    (tmp_path / "mood.jsonl").unlink()
    with pytest.raises(InputError, match=r"mood.jsonl: no such file"):
        behavior("mood", root=tmp_path)


def test_changed_rows_are_noticed(tmp_path):
    write(tmp_path)
    with open(tmp_path / "mood.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"SHA-256 is [0-9a-f]{64}, and its card says [0-9a-f]{64}. If you changed the rows, write"):
        behavior("mood", root=tmp_path)


@pytest.mark.parametrize("key", ["question", "labels", "source", "licence", "unit", "chance", "n", "sha256"])
def test_a_missing_key(tmp_path, key):
    write(tmp_path, **{key: None})
    with pytest.raises(DataError, match=rf"mood.yaml: there is no '{key}'; a card needs question, labels"):
        behavior("mood", root=tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"license": "MIT"}, r"unknown key in .*mood.yaml 'license'. Did you mean 'licence'"),
        ({"question": 3}, r"'question' is 3, expected a text"),
        ({"labels": ["glad"]}, r"'labels' is \['glad'\], expected a mapping"),
        ({"labels": {True: "glad", 0: "not"}}, r"labels has True: 'glad'; expected a number or text .* quotation marks"),
        ({"labels": {0: False, 1: "glad"}}, r"labels has 0: False; expected a number or text and its meaning. YAML reads"),
        ({"labels": {1: "glad"}}, r"the rows have the label 0, which labels does not explain"),
        ({"labels": {0: "a", 1: "b", 2: "c"}}, r"\{0: 1, 1: 2, 2: 0\} rows by label; a probe needs at least two labels, each"),
        ({"n": 4}, r"n is 4, but there are 3 rows"),
        ({"n": True}, r"'n' is True, expected a whole number"),
        ({"pool": "least"}, r"unknown pool in .*mood.yaml 'least'. Did you mean 'last'"),
        ({"chat": "yes"}, r"'chat' is 'yes', expected true or false"),
        ({"chance": {"auc": 0.5}}, r"chance is \{'auc': 0.5\}, expected auc and accuracy"),
        ({"chance": {"auc": 0.5, "accuracy": 60}}, r"expected auc and accuracy, each above 0 and at most 1"),
        ({"chance": {"auc": 0.5, "accuracy": 0.5}}, r"chance.accuracy is 0.5; always saying the commonest label is right in 0.667"),
        ({"rows": [ROWS[0]]}, r"\{0: 0, 1: 1\} rows by label"),
        ({"raw": "- a"}, "expected a mapping with question, labels"),
        ({"raw": "a: [1"}, r"mood.yaml: not valid YAML: .* in line 1"),
        ({"raw": "n: 1\nn: 2"}, r"mood.yaml: not valid YAML: the key 'n' stands twice in one mapping, again in line 2"),
        ({"raw": "labels: {1: a, 1: b}"}, r"the key 1 stands twice"),
    ],
)
def test_cards_that_are_wrong(tmp_path, changes, match):
    write(tmp_path, **changes)
    with pytest.raises(InputError, match=match):
        behavior("mood", root=tmp_path)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"text": "a"}, r"rows.jsonl, line 1: 'label' is None, expected a number or a text"),
        ({"text": "a", "label": True}, r"'label' is True"),
        ({"text": "a", "label": [1]}, r"'label' is \[1\]"),
        ({"text": "", "label": 1}, r"no text under 'text'"),
        ({"label": 1}, r"no text under 'text'"),
        ({"text": "a", "label": 1, "group": 1.5}, r"'group' is 1.5, expected a text or a whole number"),
    ],
)
def test_broken_rows(tmp_path, row, match):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=match):
        labelled(tmp_path / "rows.jsonl")


def test_own_files(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "x"}\n\n{"text": "b", "label": 0.5, "id": 7, "group": 3}\n')
    assert list(labelled(tmp_path / "rows.jsonl")) == [LabelledText("0", "a", "x"), LabelledText("7", "b", 0.5, "3")]
    for column, labels in (("1\n0", [1, 0]), ("1\n0.5", [1.0, 0.5]), ("1\nx", ["1", "x"])):
        first, second = column.split("\n")
        (tmp_path / "rows.csv").write_text(f'\ufefflabel,text,more\n{first},"a, b",z\n{second},"c\nd",\n', encoding="utf-8")
        found = labelled(tmp_path / "rows.csv")
        assert found.texts == ["a, b", "c\nd"]
        assert found.labels == labels
        assert [type(label) for label in found.labels] == [type(label) for label in labels]
    (tmp_path / "rows.csv").write_text("text,label,group\na,1,g\nb,,\n")
    with pytest.raises(DataError, match=r"rows.csv, line 3: 'label' is None"):
        labelled(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text("text,mood\na,1\n")
    with pytest.raises(InputError, match="has the columns text, mood; expected text and label"):
        labelled(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text("")
    with pytest.raises(InputError, match="has the columns none; expected text and label"):
        labelled(tmp_path / "rows.csv")
    (tmp_path / "rows.txt").write_text("a")
    with pytest.raises(InputError, match="expected a .jsonl or .csv file of texts and labels"):
        labelled(tmp_path / "rows.txt")
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(DataError, match="the set is empty"):
        labelled(tmp_path / "rows.jsonl")
