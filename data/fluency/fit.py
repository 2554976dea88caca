"""Count letters and words in real text for `workbench.evaluate.fluency`; the same texts give the same bytes.

    python data/fluency/fit.py TEXT OUT

TEXT holds wikitext2_valid.txt and wikitext2_test.txt, one paragraph a line. OUT gets fluency.safetensors, which belongs into
workbench/evaluate, and held_out.txt, which belongs here; the card is written by hand from what is printed. Counted are the first
half of the sentences of wikitext2_valid.txt, shuffled, and answers and statements of other folders of `data`; the ends of the ramps
come from the second half.
"""

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from workbench.core.store import save_tensors
from workbench.evaluate import fluency

WORDS = 100
HELD_OUT = 200
UNKNOWN = 1000  # characters that OTHER stands for share its probability
DATA = Path(__file__).parents[1]


def sentences(path: Path) -> list[str]:
    """Sentences of a WikiText file, with its spaced marks joined to the words again; headings are left out."""
    found: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = re.sub(r" @([-.,])@ ", r"\1", line.strip())
        text = re.sub(r" ([,.;:?!)\]%])", r"\1", text)
        text = re.sub(r"([(\[]) ", r"\1", text)
        text = re.sub(r" '(s|t|re|ve|ll|d|m)\b", r"'\1", text)
        text = re.sub(r'" ([^"]*) "', r'"\1"', text)
        if text and not text.startswith("="):
            found += re.split(r'(?<=[.?!]) (?=[A-Z"])', text)
    return found


def rows(name: str) -> list[dict[str, str]]:
    """Rows of a bundled JSONL file."""
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def whole(texts: Sequence[str]) -> list[str]:
    """Sentences of 6 to 50 words without a word that WikiText left out."""
    return [text for text in texts if "<unk>" not in text and 6 <= len(text.split()) <= 50]


def chances(sequences: Sequence[np.ndarray], size: int, order: int) -> np.ndarray:
    """log2 p(last | those before), [size] * order, by Witten and Bell's interpolation of all shorter contexts.

    p_k(c | h) = (n(hc) + t(h) p_(k-1)(c | h')) / (n(h) + t(h)), t(h) the number of different characters after h; p_0 = 1 / size.
    """
    p = np.full(size, 1 / size)
    for k in range(1, order + 1):
        counted = np.zeros((size,) * k)
        for one in sequences:
            np.add.at(counted, tuple(one[i : len(one) - k + 1 + i] for i in range(k)), 1)
        total, kinds = counted.sum(-1, keepdims=True), (counted > 0).sum(-1, keepdims=True)
        shorter = np.broadcast_to(p, counted.shape)
        p = np.where(total > 0, (counted + kinds * shorter) / np.maximum(total + kinds, 1), shorter)
    return np.log2(p)


def inside(text: str, draw: random.Random) -> str:
    """The letters of each word shuffled."""
    return " ".join("".join(draw.sample(word, len(word))) for word in text.split())


def scrambled(text: str, draw: random.Random) -> str:
    """The words shuffled."""
    words = text.split()
    return " ".join(draw.sample(words, len(words)))


def looped(text: str, draw: random.Random) -> str:
    """The first one to six words, over and over until 40 words are full."""
    head = text.split()[: draw.randint(1, 6)]
    return " ".join((head * 40)[:40])


def main(source: Path, out: Path) -> None:
    """Write both files and print what the card says."""
    draw = random.Random(0)
    valid = sentences(source / "wikitext2_valid.txt")
    draw.shuffle(valid)
    counted = [part for text in valid[: len(valid) // 2] for part in text.split("<unk>") if len(part.split()) > 2]
    counted += [row["answer"] for row in rows("tofu-mini/retain.jsonl")]
    counted += [row["chosen"] for row in rows("preferences/instructions.jsonl")]
    counted += [row["prompt"].split('"')[1] for row in rows("preferences/persona.jsonl")]
    tally = Counter(word.lower() for text in counted for word in fluency.WORD.findall(text))
    words = tuple(word for word, _ in sorted(tally.items(), key=lambda item: (-item[1], item[0]))[:WORDS])
    letters = chances([fluency.characters(text) for text in counted], len(fluency.LETTERS), 3)
    letters[..., fluency.OTHER] -= np.log2(UNKNOWN)
    classes = [fluency.classes(text, words) for text in counted]
    order = chances(classes, fluency.n_classes(words), 2) - chances(classes, fluency.n_classes(words), 1)
    real = whole(valid[len(valid) // 2 :])
    known = fluency.Counts(letters, order, words, {}, {})
    means = [{name: values.mean() for name, values in fluency.bits(text, known).items()} for text in real]
    typical = {name: float(np.median([one[name] for one in means])) for name in fluency.PRIOR}
    known = known._replace(typical=typical)

    def measured(spoil: Callable[[str, random.Random], str] | None) -> np.ndarray:
        return np.array([fluency.terms(text if spoil is None else spoil(text, draw), known) for text in real])

    ends = zip(("letters", "order", "repeats"), (inside, scrambled, looped), (0.05, 0.05, 0.95), strict=True)
    plain = measured(None)
    ramps = {
        name: (float(np.median(measured(spoil)[:, i])), float(np.quantile(plain[:, i], edge)))
        for i, (name, spoil, edge) in enumerate(ends)
    }
    path = out / "fluency.safetensors"
    tensors = {"letters": torch.tensor(letters, dtype=torch.float16), "order": torch.tensor(order, dtype=torch.float16)}
    save_tensors(path, tensors, {"kind": "Fluency", "words": list(words), "ramps": ramps, "typical": typical})
    held = out / "held_out.txt"
    held.write_text("\n".join(draw.sample(whole(sentences(source / "wikitext2_test.txt")), HELD_OUT)) + "\n", encoding="utf-8")
    sys.stdout.write(
        f"{len(counted):,} texts counted, {sum(map(len, counted)):,} characters; {len(real):,} sentences for the ramps\n"
        f"ramps {ramps}\nmedians {typical}\n"
    )
    for file in (path, held):
        sys.stdout.write(f"{file.name}: {file.stat().st_size:,} bytes, SHA-256 {sha256(file.read_bytes()).hexdigest()}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
