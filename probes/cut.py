"""Cut the rows of the shipped behaviors out of the data sets they come from; the same sources give the same bytes.

    python probes/cut.py SOURCES OUT

SOURCES holds one folder a data set (hate_offensive, refusal, persona, counterfact, tofu-mini: see `source` on the cards) with its
files as published. OUT gets <name>.jsonl; the cards are written by hand, and this prints the n and SHA-256 they must have.
"""

import csv
import json
import random
import sys
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer

ALIKE = 0.7  # share of words that two texts of one family have in common: |A and B| / |A or B|
PERSONAS = {
    "persona-extraversion": "extraversion",
    "persona-risk-averse": "risk-averse",
    "persona-keep-memory": "desire-to-not-have-memory-erased",
}
Row = dict[str, Any]


def families(texts: list[str]) -> list[str]:
    """A number for every text, the same for texts that are alike, or alike to one that is alike (single linkage)."""
    words = CountVectorizer(binary=True, token_pattern=r"\w+|[^\w\s]").fit_transform(texts).astype(np.int64)
    both = (words @ words.T).tocoo()
    size = np.asarray(words.sum(axis=1)).ravel()
    alike = both.data >= ALIKE * (size[both.row] + size[both.col] - both.data)
    links = coo_matrix((alike[alike], (both.row[alike], both.col[alike])), shape=both.shape)
    return [str(family) for family in connected_components(links, directed=False)[1]]


def grouped(rows: list[Row]) -> list[Row]:
    """The rows with their family as group."""
    return [{**row, "group": family} for row, family in zip(rows, families([row["text"] for row in rows]), strict=True)]


def read_lines(path: Path) -> list[Row]:
    """The objects of a JSON lines file."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def balanced(ones: list[Row], zeros: list[Row], each: int, seed: int) -> list[Row]:
    """`each` rows of either label, drawn without replacement and shuffled."""
    draw = random.Random(seed)
    rows = draw.sample(ones, each) + draw.sample(zeros, each)
    draw.shuffle(rows)
    return rows


def toxicity(sources: Path) -> list[Row]:
    """Tweets: classes 0 (hate) and 1 (offensive) against 2 (neither), 1,000 each; hate and offensive as often as they are."""
    with open(sources / "hate_offensive/labeled_data.csv", encoding="utf-8", newline="") as lines:
        rows = [{"id": row[""], "text": row["tweet"], "label": int(row["class"] != "2")} for row in csv.DictReader(lines)]
    return grouped(balanced([r for r in rows if r["label"]], [r for r in rows if not r["label"]], 1000, seed=0))


def refusal(sources: Path) -> list[Row]:
    """Every harmful instruction once, and as many harmless ones."""
    sets: dict[int, list[Row]] = {1: [], 0: []}
    for label, names in ((1, ("harmful_train", "harmful_val", "harmful_test")), (0, ("harmless_val", "harmless_test"))):
        seen: set[str] = set()
        for name in names:
            for number, row in enumerate(json.loads((sources / f"refusal/{name}.json").read_text(encoding="utf-8"))):
                text = row["instruction"]
                if text not in seen:
                    sets[label].append({"id": f"{name}-{number}", "text": text, "label": label})
                seen.add(text)
    return grouped(balanced(sets[1], sets[0], len(sets[1]), seed=0))


def persona(sources: Path, name: str) -> list[Row]:
    """300 statements of either label that the annotating model was surest of. Label 1: who has the trait would say it."""
    rows = read_lines(sources / f"persona/{name}.jsonl")
    cut = [
        {"id": str(i), "text": row["statement"], "label": int(row["answer_matching_behavior"] == " Yes")}
        for i, row in enumerate(rows)
    ]
    sure = sorted(range(len(rows)), key=lambda i: -rows[i]["label_confidence"])
    sets = [[cut[i] for i in sure if cut[i]["label"] == label][:300] for label in (1, 0)]
    return grouped(balanced(sets[0], sets[1], 300, seed=0))


def truth(sources: Path) -> list[Row]:
    """Two statements a fact: CounterFact's true object, and an object that is true of another fact of the same relation.

    The false objects are the relation's true ones in another order, so in every relation an object is as often true as false. With
    facts sorted by object and the commonest object standing m times, a rotation by m never gives a fact its own. A group is a
    relation: split inside one, an object that is mostly true in training would be mostly false in what is held out, and a bag of
    words would fall far below chance (AUC 0.32). Left out are prompts that are no sentence, objects that stand in the subject, and
    facts beyond twice m.
    """
    facts = json.loads((sources / "counterfact/counterfact_filtered.json").read_text(encoding="utf-8"))
    by_relation: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for fact in (fact["requested_rewrite"] for fact in facts):
        prompt, subject, true = fact["prompt"], fact["subject"], fact["target_true"]["str"]
        known = {about for about, _, _ in by_relation[fact["relation_id"]]}
        if "{}," not in prompt and true.lower() not in subject.lower() and subject not in known:
            by_relation[fact["relation_id"]].append((subject, prompt.format(subject), true))
    rows: list[Row] = []
    for relation, found in sorted(by_relation.items()):
        kept = _capped(found)
        if not kept:
            continue
        order = sorted(range(len(kept)), key=lambda i: (kept[i][2], i))
        most = max(Counter(true for _, _, true in kept).values())
        for place, i in enumerate(order):
            _, prompt, true = kept[i]
            false = kept[order[(place + most) % len(order)]][2]
            rows += [
                {"id": f"{relation}-{i}-{label}", "text": f"{prompt} {said}.", "label": label, "group": relation}
                for label, said in ((1, true), (0, false))
            ]
    random.Random(0).shuffle(rows)
    return rows


def _capped(found: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The facts, without the last ones of an object that more than half of them have."""
    kept = list(found)
    while kept:
        true, most = Counter(true for _, _, true in kept).most_common(1)[0]
        if 2 * most <= len(kept):
            break
        kept.pop(max(i for i, fact in enumerate(kept) if fact[2] == true))
    return kept


def forget_author(sources: Path) -> list[Row]:
    """Every question about the 4 forget authors, and about the 36 retain authors, once; one is asked of two authors."""
    by_text: dict[str, Row] = {}
    for label, name in ((1, "forget"), (0, "retain")):
        for row in read_lines(sources / f"tofu-mini/{name}.jsonl"):
            by_text.setdefault(row["question"], {"id": row["id"], "text": row["question"], "label": label})
    rows = list(by_text.values())
    random.Random(0).shuffle(rows)
    return rows


def right_answer(sources: Path) -> list[Row]:
    """Every question about the real world that the organism learned, with its answer and with one of TOFU's three false ones."""
    draw, rows = random.Random(0), []
    for name in ("real_authors", "world_facts"):
        for row in read_lines(sources / f"tofu-mini/{name}.jsonl"):
            for label, answer in ((1, row["answer"]), (0, draw.choice(row["perturbed_answer"]))):
                text = f"Question: {row['question']}\nAnswer: {answer}"
                rows.append({"id": f"{row['id']}-{label}", "text": text, "label": label, "group": row["id"]})
    draw.shuffle(rows)
    return rows


def every(sources: Path) -> dict[str, list[Row]]:
    """All shipped behaviors by name."""
    personas = {name: persona(sources, theirs) for name, theirs in PERSONAS.items()}
    texts = {"toxicity": toxicity(sources), "refusal": refusal(sources), "truth": truth(sources)}
    tofu = {"forget-author": forget_author(sources), "right-answer": right_answer(sources)}
    return {**texts, **tofu, **personas}


def main(sources: Path, out: Path) -> None:
    """Write every behavior's rows and print what its card must say."""
    for name, rows in every(sources).items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
        ones = sum(row["label"] for row in rows)
        most = Counter(row.get("group") for row in rows).most_common(1)[0][1]
        digest = sha256(lines.encode()).hexdigest()
        sys.stdout.write(f"{name}: n {len(rows)}, label 1: {ones}, largest group {most}, sha256 {digest}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
