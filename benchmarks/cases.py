"""What is measured, each against the bare work it cannot do without, on the same rows."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

import workbench as wb
from benchmarks.timing import peak_gib, versus
from workbench.core.records import Example
from workbench.core.topk import choose
from workbench.load.batches import Batch, Encoded, by_length, collate, encode_all
from workbench.load.models import Model
from workbench.trace.forward import logits

TOGETHER = ("wagle", "snip", "saliency", "fisher", "fisher_ratio", "forget_retain_cosine", "wanda", "magnitude")


class Row(NamedTuple):
    """One line of the table: seconds of the job, of its floor, and the goal for their ratio."""

    job: str
    floor: str
    seconds: float
    floor_seconds: float
    goal: str
    peak_gib: float


class Sets(NamedTuple):
    """The rows every case works on."""

    forget: wb.Examples
    retain: wb.Examples
    measured: dict[str, wb.Examples]


def batches(model: Model, rows: list[Encoded], tokens: int) -> list[Batch]:
    """The batches a whole set is forwarded in."""
    return [collate([rows[i] for i in chosen], device=model.device) for chosen in by_length(rows, max_tokens=tokens)]


def forward_backward(model: Model, groups: list[Batch]) -> None:
    """The floor of everything that needs gradients: Hugging Face's own loss on the answers, and its backward pass."""
    for batch in groups:
        labels = batch.tokens.masked_fill(~batch.answer, -100)
        out = model.hf(input_ids=batch.tokens, attention_mask=batch.attention.long(), labels=labels, use_cache=False)
        out.loss.backward()
    model.hf.zero_grad(set_to_none=True)


@torch.no_grad()
def forward_only(model: Model, groups: list[Batch]) -> None:
    """The floor of everything that only reads."""
    for batch in groups:
        logits(model, batch)


def weight_scores(model: Model, sets: Sets, tokens: int, *, repeats: int = 5, brief: bool = False) -> Iterator[Row]:
    """Scores (`brief`: WAGLE alone) against a bare forward and backward pass on the rows they look at."""
    forget, retain = (encode_all(model, rows) for rows in (sets.forget, sets.retain))
    one, both = batches(model, forget, tokens), batches(model, forget + retain, tokens)
    jobs: list[tuple[str, list[Batch], dict[str, dict[str, Any]]]] = [
        ("SNIP", one, {"snip": {}}),
        ("WAGLE, gamma given", both, {"wagle": {"gamma": 1.0}}),
        ("WAGLE, gamma from the curvature", both, {"wagle": {}}),
        ("Fisher ratio, example by example", both, {"fisher_ratio": {}}),
        ("eight scores together", both, {name: {"gamma": 1.0} if name == "wagle" else {} for name in TOGETHER}),
    ]
    for name, groups, methods in jobs[2:3] if brief else jobs:

        def job(methods: dict[str, dict[str, Any]] = methods) -> None:
            if len(methods) > 1:
                wb.attribute.several(model, sets.forget, sets.retain, methods, batch_tokens=tokens)
                return
            for method, options in methods.items():
                getattr(wb.attribute, method)(model, sets.forget, sets.retain, batch_tokens=tokens, **options)

        took, bare = versus(job, lambda groups=groups: forward_backward(model, groups), model.device, repeats=repeats)
        rows = "forget rows" if groups is one else "both sets"
        yield Row(name, f"forward+backward, {rows}", took, bare, "≤ 1.15", peak_gib(job, model.device))


def unlearning_step(model: Model, sets: Sets, tokens: int) -> Iterator[Row]:
    """Three epochs of NPO with its reference and retain term against forward and backward on as many pairs."""
    del tokens
    rows = encode_all(model, sets.forget), encode_all(model, sets.retain)
    n = min(len(sets.forget), len(sets.retain))
    pairs = [collate(rows[0][i : i + 16] + rows[1][i : i + 16], device=model.device) for i in range(0, n, 16)]

    def npo() -> None:
        wb.unlearn.run(model, sets.forget[:n], sets.retain[:n], objective="npo", epochs=3, batch_size=16, lr=1e-5)

    def floor() -> None:
        for _ in range(3):
            forward_backward(model, pairs)

    took, bare = versus(npo, floor, model.device, repeats=3)
    name = "NPO, three epochs, AdamW and reference included"
    yield Row(name, "forward+backward on as many pairs", took, bare, "≤ 1.10 a step", peak_gib(npo, model.device))


def suite(model: Model, sets: Sets, tokens: int) -> Iterator[Row]:
    """The TOFU suite's token table against a bare forward pass over every prompt with every one of its answers."""
    every = [encoded for rows in sets.measured.values() for row in rows for encoded in encode_all(model, _variants(row))]
    groups = batches(model, every, tokens)
    for name, generate in (("token table", None), ("token table and greedy answers", 48)):

        def job(generate: int | None = generate) -> None:
            wb.evaluate.read(model, sets.measured, generate=generate)

        took, bare = versus(job, lambda: forward_only(model, groups), model.device, repeats=3)
        peak = peak_gib(job, model.device)
        yield Row(f"TOFU suite: {name}", "one forward for each answer", took, bare, "none set", peak)


def _variants(row: Example) -> wb.Examples:
    texts = [row.response, *([row.paraphrase] if row.paraphrase else []), *row.perturbed]
    return wb.Examples([type(row)(str(i), row.prompt, text) for i, text in enumerate(texts)], row.id)


def mask_selection(device: torch.device, n: int) -> Iterator[Row]:
    """The exact top fifth of n scores against WAGLE's double argsort."""
    scores = {"w": torch.randn(n, generator=torch.Generator().manual_seed(0)).to(device)}
    job, floor = versus(
        lambda: dict(choose(scores, n // 5)),
        lambda: scores["w"].argsort(descending=True).argsort() < n // 5,
        device,
        repeats=1,
    )
    yield Row(f"top 20 % of {n:.0e} scores", "double argsort", job, floor, "≤ 0.125", float("nan"))


def start_up() -> Iterator[Row]:
    """`import workbench` and `workbench --help` against starting Python."""

    def run(*words: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        return time.perf_counter() - begin

    bare = min(run("-c", "pass") for _ in range(3))
    for name, words in (("import workbench", ("-c", "import workbench")), ("workbench --help", ("-m", "workbench", "--help"))):
        yield Row(name, "starting Python", min(run(*words) for _ in range(3)), bare, "< 1 s", float("nan"))
