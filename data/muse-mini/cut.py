"""Cut the passages that ship out of WikiText-2; the same sources give the same bytes.

    python data/muse-mini/cut.py SOURCES OUT

SOURCES holds wikitext2_valid.txt and wikitext2_test.txt as published (tokens with spaces between, "<unk>" for rare words). OUT gets
forget_text.jsonl, retain_text.jsonl and holdout_text.jsonl; this says the counts and SHA-256 that the card must have.
"""

import json
import random
import re
import sys
from hashlib import sha256
from pathlib import Path

SPLITS = ("forget_text", "retain_text", "holdout_text")
EACH = 40
WORDS = (90, 120)  # of a passage
UNKNOWN = 2  # "<unk>" in a passage at most
TITLE = re.compile(r"= ([^=]+) =")
GLUED = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), (" n't", "n't"), (" 's", "'s"), ("s ' ", "s' "), ("( ", "("), ("[ ", "["))
BEFORE = re.compile(r" ([,.;:!?%)\]])")
QUOTED = re.compile(r'" ([^"]*) "')


def articles(path: Path) -> list[tuple[str, list[str]]]:
    """Every article's title and paragraphs."""
    found: list[tuple[str, list[str]]] = []
    for line in map(str.strip, path.read_text(encoding="utf-8").split("\n")):
        title = TITLE.fullmatch(line)
        if title:
            found.append((title[1], []))
        elif line and not line.startswith("=") and found:
            found[-1][1].append(line)
    return found


def plain(text: str) -> str:
    """A paragraph as it would be written: WikiText's spaces around punctuation taken out. Words stay as they are."""
    for apart, joined in GLUED:
        text = text.replace(apart, joined)
    return QUOTED.sub(r'"\1"', BEFORE.sub(r"\1", text))


def usable(paragraphs: list[str]) -> list[str]:
    """Beginnings of paragraphs, whole sentences of the right length with few unknown words; those with the fewest first."""
    fit = []
    for paragraph in paragraphs:
        beginning = ""
        for sentence in paragraph.replace(" . ", " .\n").split("\n"):
            beginning = f"{beginning} {sentence}".strip()
            words = len(plain(beginning).split())
            if words >= WORDS[0]:
                if words <= WORDS[1] and beginning.count("<unk>") <= UNKNOWN and beginning.endswith(" ."):
                    fit.append(plain(beginning))
                break
    return sorted(fit, key=lambda passage: passage.count("<unk>"))


def main(sources: Path, out: Path) -> None:
    """Deal whole articles to the splits, shuffled with seed 0; a split takes a passage of each of its articles, then a second."""
    every = [
        (f"{name}-{number}", title, passages)
        for name in ("valid", "test")
        for number, (title, paragraphs) in enumerate(articles(sources / f"wikitext2_{name}.txt"))
        if (passages := usable(paragraphs))
    ]
    random.Random(0).shuffle(every)
    for k, split in enumerate(SPLITS):
        dealt = every[k :: len(SPLITS)]
        rows = [
            {"id": f"{id}.{turn}", "title": title, "text": passages[turn]}
            for turn in range(8)
            for id, title, passages in dealt
            if len(passages) > turn
        ][:EACH]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{split}.jsonl").write_text(text, encoding="utf-8")
        words = [len(str(row["text"]).split()) for row in rows]
        dealt_from = len({row["id"].split(".")[0] for row in rows})
        sys.stdout.write(
            f"{split}: {len(rows)} passages of {dealt_from} articles, {min(words)} to {max(words)} words, {sum(words)} in all, "
            f"{sum(row['text'].count('<unk>') for row in rows)} unknown, sha256 {sha256(text.encode()).hexdigest()}\n"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
