"""The shipped behaviors: cards that hold, rows that cannot leak, and a table of them all."""

import importlib.util
import json
import re
from collections import Counter

import pytest

import workbench as wb
from workbench.load.behaviors import behavior, behaviors

SHIPPED = [
    "forget-author",
    "persona-extraversion",
    "persona-keep-memory",
    "persona-risk-averse",
    "refusal",
    "right-answer",
    "toxicity",
    "truth",
]


def script(path):
    """A file of the folder as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cut(root):
    return script(root / "probes/cut.py")


@pytest.fixture(scope="module")
def measured(root):
    return script(root / "probes/measure.py")


def test_what_ships(root):
    assert behaviors(root / "probes") == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_card_holds(root, name):
    found = behavior(name, root=root / "probes")
    assert list(found.labels) == [0, 1]
    assert (found.unit, found.chance["auc"]) == ("AUC", 0.5)
    assert len(set(found.rows.texts)) == len(found)
    assert found.note
    assert (root / f"probes/{name}.jsonl").stat().st_size < 350_000
    if name != "forget-author":
        assert found.counts[0] == found.counts[1]
        assert found.groups


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in ("forget-author", "right-answer", "truth")])
def test_texts_that_are_alike_are_of_one_group(root, cut, name):
    rows = behavior(name, root=root / "probes").rows
    assert cut.families(rows.texts) == rows.groups


def test_families_by_hand(cut):
    """Words are compared as sets: 3 of 4 in common is 0.75, 2 of 3 is 0.67; likeness is handed on from the first to the third."""
    texts = ["a b c", "a b c d", "a b c d e", "x y", "x y z", "C b A"]
    found = cut.families(texts)
    assert found[0] == found[1] == found[2] == found[5]
    assert len({found[0], found[3], found[4]}) == 3


def test_in_truth_an_object_is_as_often_true_as_false(root):
    """In every relation, which is a group; so its words cannot tell. Statements of one fact differ in the object alone."""
    facts, objects = {}, Counter()
    for row in behavior("truth", root=root / "probes").rows:
        relation, number, label = row.id.rsplit("-", 2)
        assert (row.group, int(label)) == (relation, row.label)
        facts.setdefault((relation, number), {})[row.label] = row.text
    assert len(facts) == 613
    for (relation, _), said in facts.items():
        start = next(i for i, (a, b) in enumerate(zip(said[0], said[1], strict=False)) if a != b)
        start = said[1].rfind(" ", 0, start) + 1
        # of "New York" and "New Delhi" only what follows "New" is compared: still as often true as false
        objects[relation, said[1][start:]] += 1
        objects[relation, said[0][start:]] -= 1
    assert not any(objects.values())


def test_forget_author_is_every_question_once(root):
    rows = behavior("forget-author", root=root / "probes").rows
    for label, split in ((1, "forget"), (0, "retain")):
        prompts = {row.id: row.prompt for row in wb.examples(f"tofu:{split}", root=root / "data/tofu-mini")}
        twice = {"full-440"}  # the same question as full-100, about another author
        assert {row.id: row.text for row in rows if row.label == label} == {
            id: prompt for id, prompt in prompts.items() if id not in twice
        }
    assert rows.groups is None


def test_right_answer_is_every_question_with_a_right_and_a_false_answer(root):
    rows = {row.id: row for row in behavior("right-answer", root=root / "probes").rows}
    known = [row for split in ("real_authors", "world_facts") for row in wb.examples(f"tofu:{split}", root=root / "data/tofu-mini")]
    assert len(rows) == 2 * len(known)
    for fact in known:
        assert rows[f"{fact.id}-1"].text == f"Question: {fact.prompt}\nAnswer: {fact.response}"
        assert rows[f"{fact.id}-0"].text.removeprefix(f"Question: {fact.prompt}\nAnswer: ") in fact.perturbed
        assert rows[f"{fact.id}-0"].group == rows[f"{fact.id}-1"].group == fact.id


def test_cut_gives_the_same_bytes(root, cut):
    """From what is in the box; the other sources are not."""
    for name, cutter in (("forget-author", cut.forget_author), ("right-answer", cut.right_answer)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in cutter(root / "data"))
        assert lines.encode() == (root / f"probes/{name}.jsonl").read_bytes()


def test_the_rotation_by_hand(cut):
    """Five facts, "r" three times: one goes, so that two of four are left; rotated by two, each gets another's object."""
    found = [("s0", "p0", "r"), ("s1", "p1", "g"), ("s2", "p2", "r"), ("s3", "p3", "b"), ("s4", "p4", "r")]
    assert cut._capped(found) == found[:4]
    assert cut._capped([("s", "p", "r"), ("t", "p", "r")]) == []


def test_truth_from_a_few_facts(cut, tmp_path):
    """Four facts with the objects r, r, g, b: sorted b, g, r, r; rotated by two each gets another's: b - r, g - r, r - b, r - g.

    Left out: a prompt that is no sentence, a subject that holds its object, one asked before, a relation of one fact.
    """
    facts = [("{} is", "s0", "r"), ("{} is", "s1", "g"), ("{} looks", "s2", "r"), ("{} is", "s3", "b")]
    facts += [("{}, which is", "s4", "b"), ("{} is", "a b", "b"), ("{} is", "s1", "b")]
    made = [("P1", *fact) for fact in facts] + [("P2", "{} is", "s5", "r")]
    (tmp_path / "counterfact").mkdir()
    rows = [
        {"requested_rewrite": {"relation_id": relation, "prompt": prompt, "subject": subject, "target_true": {"str": true}}}
        for relation, prompt, subject, true in made
    ]
    (tmp_path / "counterfact/counterfact_filtered.json").write_text(json.dumps(rows))
    found = {row["id"]: row for row in cut.truth(tmp_path)}
    assert {row["text"] for row in found.values() if row["label"]} == {"s0 is r.", "s1 is g.", "s2 looks r.", "s3 is b."}
    assert {row["text"] for row in found.values() if not row["label"]} == {"s3 is r.", "s1 is r.", "s0 is b.", "s2 looks g."}
    assert {row["group"] for row in found.values()} == {"P1"}


def test_the_readme_lists_what_ships(root):
    said = (root / "probes/README.md").read_text(encoding="utf-8")
    for name in SHIPPED:
        found = behavior(name, root=root / "probes")
        assert f"| {name} | {len(found):,} |" in said
        assert said.count(f"| `{name}` |") == 4  # models measured


def test_the_readme_says_what_is_measured(root, measured):
    """One line of the table again; another machine's arithmetic may move a held-out row or two of 130 (0.01 each at most)."""
    said = (root / "probes/README.md").read_text(encoding="utf-8")
    frame = measured.measure(["right-answer"], [str(root / "data/organism/full")])
    line = next(line for line in said.splitlines() if line.startswith("| `right-answer` | full |"))
    told = [float(number) for number in re.findall(r"\d\.\d{3}", line)]
    found = frame.iloc[0][["auc", "low", "high", "shuffled", "words", "words_low", "words_high"]].tolist()
    assert told == pytest.approx(found, abs=0.03)
    assert "| yes |" in line
    assert frame.iloc[0].beats
    assert measured.markdown(frame).splitlines()[0] in said


def test_the_share_of_a_text_that_is_read(measured, slm, stories):
    """slm4096 knows no capital umlaut, and reads 128 characters: of "Äa b" a and b of three; of 200 letters 128."""
    assert measured.share_read(slm, ["Äa b"]) == pytest.approx(2 / 3)
    assert measured.share_read(slm, ["a" * 200]) == pytest.approx(128 / 200)
    assert measured.share_read(stories, ["Äa b"]) == 1
