"""Cut the preference pairs that ship out of the data sets they come from; the same sources give the same bytes.

    python data/preferences/cut.py SOURCES OUT

SOURCES holds preferences/instruction-data-with-preference.json and persona/*.jsonl as published. The corpus of slm4096, and the
models whose tokenizers decide what fits, are bundled (`data/models/slm4096`, `data/organism/full`). OUT gets instructions.jsonl,
persona.jsonl and slm4096.jsonl; this says the counts and SHA-256 that the card must have.
"""

import json
import random
import sys
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import workbench as wb
from workbench.load.batches import encode

DATA = Path(__file__).resolve().parent.parent
LONGEST = 200  # tokens of prompt and answer together
PERSONAS = ("agreeableness", "conscientiousness", "interest-in-science", "openness", "risk-averse")
LETTERS = {" Yes": " A", " No": " B"}  # " No" is two tokens of the organism's, the letters are one each
BLOCKS = 7  # of slm4096's questions
SURE = 0.9  # least confidence of the model that labeled the statement
Pair = dict[str, str]


def length(model: wb.Model, pair: Pair) -> int:
    """Tokens of the longer side."""
    return max(len(encode(model, pair["prompt"], pair[side]).tokens) for side in ("chosen", "rejected"))


def instructions(sources: Path) -> list[Pair]:
    """300 of the pairs that differ and fit, in their order; the id is the row's number in the source."""
    path = sources / "preferences/instruction-data-with-preference.json"
    model = wb.load(DATA / "organism/full")
    pairs = [
        {
            "id": f"instruction-{number}",
            "prompt": "\n".join(filter(None, (row["instruction"], row["input"]))),
            "chosen": row["chosen"],
            "rejected": row["rejected"],
        }
        for number, row in enumerate(json.loads(path.read_text(encoding="utf-8")))
    ]
    fit = [pair for pair in pairs if pair["chosen"] != pair["rejected"] and length(model, pair) <= LONGEST]
    return [fit[i] for i in sorted(random.Random(0).sample(range(len(fit)), 300))]


def persona(sources: Path) -> list[Pair]:
    """30 statements of five personas that one who has the trait would make, and 30 that one would not, answered by a letter."""
    pairs: list[Pair] = []
    for name in PERSONAS:
        lines = (sources / f"persona/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [{**json.loads(line), "id": f"{name}-{number}"} for number, line in enumerate(lines)]
        draw = random.Random(0)
        for answer in (" Yes", " No"):
            sure = [row for row in rows if row["answer_matching_behavior"] == answer and row["label_confidence"] >= SURE]
            pairs += [
                {
                    "id": row["id"],
                    "prompt": f"{row['question']}\nA. Yes\nB. No",
                    "chosen": LETTERS[row["answer_matching_behavior"]],
                    "rejected": LETTERS[row["answer_not_matching_behavior"]],
                }
                for row in draw.sample(sure, 30)
            ]
    random.Random(1).shuffle(pairs)
    return pairs


def slm() -> list[Pair]:
    """Every question that fits with its true answer, against up to four answers to other questions of its block that fit as well.

    Blocks share no question and no answer, so whole blocks can be held out: no held-out answer is a rejected one in training.
    """
    model = wb.load(DATA / "models/slm4096")
    lines = (DATA / "models/slm4096/corpus.txt").read_text(encoding="utf-8").splitlines()
    known = [(q, a.removeprefix("A: ")) for q, a in pairwise(lines) if q.startswith("Q:") and a.startswith("A:")]
    fits = [number for number, (q, a) in enumerate(known) if fitting(model, q, a)]
    order = random.Random(0).sample(fits, len(fits))
    block = {number: place % BLOCKS for place, number in enumerate(order)}
    draw, pairs = random.Random(0), list[Pair]()
    for number in fits:
        question, answer = known[number]
        others = [known[i][1] for i in fits if i != number and block[i] == block[number] and fitting(model, question, known[i][1])]
        for place, other in enumerate(draw.sample(others, min(4, len(others)))):
            pairs.append({"id": f"slm-{number}-{place}", "prompt": f"{question}\nA:", "chosen": answer, "rejected": other})
    return pairs


def fitting(model: wb.Model, question: str, answer: str) -> bool:
    """Whether a question with an answer fits the context of slm4096, whose tokens are characters."""
    return len(f"{question}\nA: {answer}") <= model.context


def main(sources: Path, out: Path) -> None:
    """Write the three files and print what the card must say."""
    for name, pairs in (("instructions", instructions(sources)), ("persona", persona(sources)), ("slm4096", slm())):
        text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        sys.stdout.write(f"{name}.jsonl: {len(pairs)} pairs, {len(text.encode()):,} bytes, `{sha256(text.encode()).hexdigest()}`\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
