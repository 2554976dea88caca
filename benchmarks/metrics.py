"""Metrics from a stored token table, without the model: all of them together in less than a second."""

import statistics
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import Row
from benchmarks.timing import seconds
from workbench.core.records import Provenance
from workbench.evaluate.exact_memorization import exact_memorization
from workbench.evaluate.extraction_strength import extraction_strength
from workbench.evaluate.gibberish import gibberish
from workbench.evaluate.min_k import min_k
from workbench.evaluate.min_k_plus_plus import min_k_plus_plus
from workbench.evaluate.nll import nll
from workbench.evaluate.perplexity import perplexity
from workbench.evaluate.probability import probability
from workbench.evaluate.reference_nll_difference import reference_nll_difference
from workbench.evaluate.table import TokenTable
from workbench.evaluate.zlib_ratio import zlib_ratio

ROWS, TOKENS, VARIANTS = 1000, 40, 3
END = 2
GOAL = "≤ 1.00"
METRICS: tuple[Callable[..., object], ...] = (
    exact_memorization, extraction_strength, min_k, min_k_plus_plus, nll, zlib_ratio, reference_nll_difference, perplexity,
    probability, gibberish,
)  # fmt: skip


def metrics(*, rows: int = ROWS, repeats: int = 5) -> Iterator[Row]:
    """Every metric by itself and all together, of two tables read from disk, against one second."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{seed}.parquet" for seed in (0, 1)]
        for seed, path in enumerate(paths):
            synthetic(rows, seed=seed).save(path)
        mine, other = (TokenTable.load(path) for path in paths)
        cpu = torch.device("cpu")

        def every() -> None:
            one, two = (TokenTable.load(path) for path in paths)
            for metric in METRICS:
                metric(one, two)

        each = [(metric.__name__, lambda metric=metric: metric(mine, other)) for metric in METRICS]
        jobs = [*each, (f"{len(METRICS)} metrics, two tables read from disk", every)]
        for name, job in jobs:
            seconds(job, cpu)
            took = statistics.median(seconds(job, cpu) for _ in range(repeats))
            yield Row(f"{name}, {rows:,} rows x {VARIANTS} answers", "one second", took, 1.0, GOAL, float("nan"))


def synthetic(rows: int = ROWS, *, seed: int = 0) -> TokenTable:
    """A table of random numbers: `rows` examples with three answers of about 40 tokens, and texts of as many words."""
    draw = np.random.default_rng(seed)
    size = draw.integers(TOKENS // 2, TOKENS + TOKENS // 2, size=rows * VARIANTS)
    owner = np.repeat(np.arange(rows * VARIANTS), size)
    first = size.cumsum() - size
    n = int(size.sum())
    token = draw.integers(3, 2048, size=n)
    token[first + size - 1] = END
    words = [f"{zlib.crc32(bytes([i])):x}"[:5] for i in range(256)]
    texts = np.random.default_rng(0).integers(0, 256, size=(rows, TOKENS))
    said = tuple(" ".join(words[i] for i in row) for row in texts)
    return TokenTable(
        name="synthetic",
        ids=tuple(f"r{i}" for i in range(rows)),
        truth=said,
        generated=said,
        variants=("response", "paraphrase", "perturbed.0"),
        row=(owner // VARIANTS).astype(np.int32),
        variant=(owner % VARIANTS).astype(np.int32),
        position=(np.arange(n) - np.repeat(first, size)).astype(np.int32),
        token=token.astype(np.int32),
        logprob=-draw.exponential(1, size=n).astype(np.float32),
        top=np.where(draw.random(n) < 0.7, token, 0).astype(np.int32),
        rank=draw.integers(0, 50, size=n).astype(np.int32),
        mean=-draw.exponential(2, size=n).astype(np.float32),
        variance=draw.exponential(1, size=n).astype(np.float32),
        prompt_tokens=0,
        provenance=Provenance("synthetic", "none", seed=seed),
        end=END,
    )
