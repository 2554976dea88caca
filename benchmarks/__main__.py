"""Run the benchmarks and put their table into benchmarks/RESULTS.md, one section a device and model."""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from benchmarks import cases
from benchmarks.concepts import LLAMA_1B, value_vectors, value_vectors_at
from benchmarks.influence import influence
from benchmarks.memory import Peak, alone
from benchmarks.metrics import metrics
from benchmarks.probes import probe_features
from benchmarks.score import ches_scores, real_pairs
from benchmarks.suite import tofu_suite
from benchmarks.surgery import surgery_apply, surgery_selection
from benchmarks.timing import seconds
from benchmarks.unlearning import unlearning, unlearning_peaks
from workbench.core.runtime import environment, pick_device
from workbench.load.models import Model

HERE = Path(__file__).parent
DATA = HERE.parent / "data"


def organism(device: torch.device) -> Model:
    """The bundled 3.4 M model, in float32."""
    return wb.load(DATA / "organism/full", device=str(device), dtype="float32")


def llama_1b(device: torch.device) -> Model:
    """Random weights in the shape of Llama-3.2-1B (with the organism's tokenizer), in bfloat16."""
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=4096, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    with torch.device(device):
        hf = LlamaForCausalLM(config).to(torch.bfloat16)
    return wb.wrap(hf, organism(torch.device("cpu")).tokenizer, name="llama-1b-shape")


MODELS = {"organism": organism, "llama-1b": llama_1b}
PARTS = ("all", "scores", "whole", "directions", "data", "metrics", "unlearning", "suite")
"""Weight scores; unlearning, evaluation, masks and start-up; probes, vectors and surgery; scores of rows and influence."""


class Asked(NamedTuple):
    """What the command line asks for."""

    model: str
    device: torch.device
    scores: int
    tokens: int
    rows: int
    repeats: int
    part: str
    shapes: tuple[int, int, int]

    def has(self, part: str) -> bool:
        """Whether a part of the benchmarks is asked for."""
        return self.part in ("all", part)


def section(asked: Asked) -> str:
    """The tables of one model on one device, as Markdown."""
    device = asked.device
    peaks = _peaks(asked) if device.type != "cuda" else []  # first: a second copy may not fit later
    model = MODELS[asked.model](device)
    every = {
        split: wb.examples(f"tofu:{split}", root=DATA / "tofu-mini")
        for split in ("forget", "retain", "real_authors", "world_facts")
    }
    measured = {**every, "retain": every["retain"][:80]}
    sets = cases.Sets(every["forget"][: asked.rows], every["retain"][: 2 * asked.rows], measured)
    warm = cases.batches(model, cases.encode_all(model, sets.forget), asked.tokens)
    seconds(lambda: cases.forward_only(model, warm), device)
    rows: list[cases.Row] = []
    if asked.has("scores"):
        rows += cases.weight_scores(model, sets, asked.tokens, repeats=asked.repeats, brief=asked.part == "scores")
    if asked.has("whole"):
        rows += [*cases.unlearning_step(model, sets, asked.tokens), *cases.suite(model, sets, asked.tokens)]
        rows += [*cases.mask_selection(device, asked.scores), *cases.start_up()]
    if asked.has("directions"):
        rows += [*probe_features(model, sets, asked.tokens, repeats=asked.repeats), *value_vectors(model)]
        rows += [*surgery_selection(device), *surgery_apply(device), *value_vectors_at(device, shapes=asked.shapes)]
    if asked.has("data"):
        rows += [*ches_scores(model, real_pairs(DATA), repeats=asked.repeats)]
        rows += [*influence(model, sets, asked.tokens, repeats=asked.repeats)]
    if asked.has("unlearning"):
        rows += [*unlearning(model, sets, repeats=asked.repeats)]
    if asked.has("suite"):
        rows += [*tofu_suite(model, sets, asked.tokens)]
    if asked.has("metrics"):
        rows += [*metrics(repeats=asked.repeats)]
    machine = environment()
    where = machine["gpu"] if device.type == "cuda" else f"CPU, {machine['threads']} threads"
    weights = sum(p.numel() for p in model.hf.parameters())
    tokens = sum(len(row.tokens) for row in cases.encode_all(model, sets.forget) + cases.encode_all(model, sets.retain))
    versions = ", ".join(f"{key} {machine[key]}" for key in ("python", "torch", "transformers", "workbench"))
    lines = [
        f"## {asked.model} on {where}{'' if asked.part == 'all' else f', {asked.part}'}",
        "",
        f"{weights / 1e6:,.1f} M weights, {model.dtype}; {tokens:,} tokens in both sets; {datetime.now(UTC):%Y-%m-%d}; {versions}.",
        "",
        "| job | floor | seconds | floor, seconds | ratio | goal | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        high = "" if r.peak_gib != r.peak_gib else f"{r.peak_gib:.1f}"
        ratio = r.seconds / r.floor_seconds
        lines.append(f"| {r.job} | {r.floor} | {r.seconds:.3f} | {r.floor_seconds:.3f} | {ratio:.2f} | {r.goal} | {high} |")
    if peaks:
        lines += ["", "| memory at the peak | compared with | GiB | of it, GiB | ratio | goal |", "|---|---|---|---|---|---|"]
    for found, against, goal in peaks:
        mine, theirs = found.measured / 2**30, found.expected / 2**30
        lines.append(f"| {found.job} | {against} | {mine:.3f} | {theirs:.3f} | {mine / theirs:.3f} | {goal} |")
    return "\n".join(lines) + "\n"


def _peaks(asked: Asked) -> list[tuple[Peak, str, str]]:
    """Memory on the CPU, every job in a process of its own."""
    found = unlearning_peaks(asked.model, asked.rows) if asked.has("unlearning") else []
    if not asked.has("scores"):
        return found
    words = ("--model", asked.model, "--tokens", str(asked.tokens), "--rows", str(asked.rows))
    words += () if asked.part == "scores" else ("--several",)
    found += [(peak, "the plan printed before it", "0.85 to 1.15") for peak in alone("scores", *words)]
    if asked.part == "all":
        found += [(peak, "double argsort", "≤ 0.05") for peak in alone("choose", "--scores", str(asked.scores))]
    return found


def write(text: str) -> None:
    """Put a section into RESULTS.md in place of the one with the same heading."""
    path = HERE / "RESULTS.md"
    head = (
        "# Benchmarks\n\nRatios to a floor measured in the same process, in turns; medians (of start-up times the least). "
        "Written by `make benchmarks`.\n"
    )
    old = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    kept = ["## " + part for part in old if part.split("\n", 1)[0] != text.split("\n", 1)[0].removeprefix("## ")]
    path.write_text("\n".join([head, *(part.rstrip() + "\n" for part in kept), text]), encoding="utf-8")


def main() -> None:
    """Command line of the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--model", default="organism", choices=MODELS)
    parser.add_argument("--scores", type=float, default=1e8, help="how many scores the mask selection is timed on")
    parser.add_argument("--tokens", type=int, default=4096, help="largest padded batch, in tokens")
    parser.add_argument("--rows", type=int, default=80, help="forget rows; there are twice as many retain rows")
    parser.add_argument("--repeats", type=int, default=5, help="how often the weight scores are timed")
    parser.add_argument("--part", default="all", choices=PARTS)
    parser.add_argument("--vectors", type=int, default=8192, help="value vectors of the 1B-shaped case; a whole layer has 8,192")
    given = parser.parse_args()
    device, shapes = pick_device(given.device), (given.vectors, *LLAMA_1B[1:])
    text = section(Asked(given.model, device, int(given.scores), given.tokens, given.rows, given.repeats, given.part, shapes))
    print(text)
    write(text)


if __name__ == "__main__":
    main()
