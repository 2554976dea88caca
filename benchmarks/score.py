"""CHES, its baselines and both log-probabilities against one bare forward pass, and against the loop one pair at a time."""

from collections.abc import Iterator
from pathlib import Path

import torch

import workbench as wb
from benchmarks.cases import Row, forward_only
from benchmarks.timing import peak_gib, versus
from workbench.core.records import PreferencePair, PreferencePairs
from workbench.load.batches import EncodedPair, collate, encode_pairs
from workbench.load.models import Model

BATCH = 16


def real_pairs(data: Path, count: int = 1000) -> PreferencePairs:
    """Preference pairs that ship, and TOFU's true answers against its false ones until there are `count`."""
    found = [pair for name in ("instructions", "persona") for pair in wb.pairs(data / f"preferences/{name}.jsonl")]
    rows = [
        row for split in ("forget", "real_authors", "world_facts") for row in wb.examples(f"tofu:{split}", root=data / "tofu-mini")
    ]
    more = [PreferencePair(f"{row.id}-{j}", row.prompt, row.response, text) for row in rows for j, text in enumerate(row.perturbed)]
    return PreferencePairs([*found, *more][:count], f"{count} pairs")


@torch.no_grad()
def one_by_one(model: Model, coded: list[EncodedPair]) -> list[float]:
    """The loop of the authors' experiments: one answer at a time, its hidden states of every layer, and the last one's sum."""
    found = []
    for pair in coded:
        means = []
        for row in (pair.chosen, pair.rejected):
            out = model.hf(torch.tensor([row.tokens], device=model.device), output_hidden_states=True, use_cache=False)
            means.append(out.hidden_states[-1][0, row.start - 1 : -1].float().mean(0))
        found.append(float(means[0] @ (means[1] - means[0])))
    return found


def ches_scores(model: Model, pairs: PreferencePairs, *, repeats: int = 5) -> Iterator[Row]:
    """`ches` with all its columns; the floor forwards the same padded batches and makes all their logits."""
    coded = encode_pairs(model, pairs)
    order = sorted(coded, key=lambda pair: -max(len(pair.chosen.tokens), len(pair.rejected.tokens)))
    parts = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
    groups = [collate([p.chosen for p in part] + [p.rejected for p in part], device=model.device) for part in parts]

    def job() -> None:
        wb.score.ches(model, pairs, batch_size=BATCH)

    took, bare = versus(job, lambda: forward_only(model, groups), model.device, repeats=repeats)
    name = f"CHES and eight numbers beside it, {len(pairs):,} pairs"
    yield Row(name, "one forward, same batches", took, bare, "≤ 1.10", peak_gib(job, model.device))
    took, loop = versus(job, lambda: one_by_one(model, coded), model.device, repeats=min(repeats, 3))
    yield Row(name, "one pair at a time", took, loop, "none set", float("nan"))
