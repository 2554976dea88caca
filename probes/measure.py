"""What a probe of each behavior reaches on a model, beside chance, shuffled labels and a bag of words; as a Markdown table.

    python probes/measure.py data/organism/full data/models/stories260K data/models/slm4096

The layer is the one that `ProbeSweep.best` chooses on the training rows, so the held-out AUC was not picked by itself.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import workbench as wb
from workbench.load.behaviors import behavior, behaviors
from workbench.probe.behavior import fit

ROOT = Path(__file__).resolve().parent
_INTERVALS = (("auc", "low", "high"), ("words", "words_low", "words_high"))


def measure(names: Sequence[str], models: Sequence[str], *, root: str | Path = ROOT, seed: int = 0) -> pd.DataFrame:
    """One line a behavior and model: the held-out AUC of logistic regression on the residual stream, and its controls.

    Args: names: behaviors under `root`.   models: folders or hub ids.   seed: of split, permutations and bootstrap.
    Returns: behavior, model, layer, n (rows held out), auc, low, high; shuffled (mean over permutations of the training labels);
        words, words_low, words_high; beats (the paired interval of probe minus words lies above 0, and the AUC's above chance);
        read: share of the texts' characters, white space aside, that reach the model through its tokenizer and context.
    """
    lines = []
    for model in map(wb.load, models):
        for name in names:
            found = behavior(name, root=root)
            rows = found.rows
            sweep = fit(model, rows.texts, rows.labels, groups=rows.groups, chat=found.chat, pool=found.pool, seed=seed)
            best = sweep.index()
            auc, low, high = (float(part[best, 0]) for part in (sweep.value, sweep.low, sweep.high))
            words = dict(zip(("words", "words_low", "words_high"), sweep.words[0].tolist(), strict=True))
            beats = bool(sweep.beats_words[best]) and low > found.chance["auc"]
            line = {"behavior": name, "model": model.name, "layer": sweep.places[best].layer, "n": sweep.n}
            line |= {"auc": auc, "low": low, "high": high, "shuffled": float(sweep.shuffled[best, 0].mean()), **words}
            lines.append(line | {"beats": beats, "read": share_read(model, rows.texts)})
    return pd.DataFrame(lines)


def share_read(model: wb.Model, texts: Sequence[str]) -> float:
    """Share of the characters that are not white space which stand in some token within the model's context."""
    seen = total = 0
    for text in texts:
        offsets = model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"][: model.context]
        read = {at for first, stop in offsets for at in range(first, stop)}
        real = [at for at, character in enumerate(text) if not character.isspace()]
        seen, total = seen + len(read.intersection(real)), total + len(real)
    return seen / total


def markdown(frame: pd.DataFrame) -> str:
    """The table in the README."""
    head = ["behavior", "model", "layer", "held out", "AUC", "shuffled labels", "bag of words", "beats words", "text read"]
    lines = [head, ["---"] * len(head)]
    for row in frame.to_dict("records"):
        auc, words = (f"{row[one]:.3f} [{row[low]:.3f}, {row[high]:.3f}]" for one, low, high in _INTERVALS)
        verdict = "yes" if row["beats"] else "no"
        shown = [f"`{row['behavior']}`", Path(row["model"]).name, row["layer"], row["n"], auc, f"{row['shuffled']:.3f}"]
        shown += [words, verdict, f"{row['read']:.0%}"]
        lines.append([str(part) for part in shown])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(models: Sequence[str]) -> None:
    """Measure every shipped behavior and print the table."""
    sys.stdout.write(markdown(measure(behaviors(ROOT), models).sort_values("behavior", kind="stable")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
