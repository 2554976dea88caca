"""A step of every unlearning objective against a bare forward and backward pass over the rows it trains on, and memory at the peak.

python -m benchmarks.unlearning npo      # prints the bytes at the peak of one short run, on the CPU, in a process of its own
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import workbench as wb
from benchmarks.cases import Row, Sets, forward_backward
from benchmarks.memory import MAPPED, Peak, peak
from benchmarks.timing import peak_gib, versus
from workbench.core.records import Provenance
from workbench.core.registry import objective
from workbench.load.batches import collate, encode_all
from workbench.load.models import Model
from workbench.train import AnswerTask, fit
from workbench.unlearn.pairs import Pairing, Side, Weighting
from workbench.unlearn.prepare import Asked, prepare, weighting_of
from workbench.unlearn.training import Training

BATCH = 16
OBJECTIVES = ("npo", "kl_minimization", "refusal_dpo", "undial", "rmu")
"""One of each kind: log-probabilities, a retain KL, two answers, logits of the reference, states."""


def unlearning(model: Model, sets: Sets, *, repeats: int = 5) -> Iterator[Row]:
    """One epoch of losses and gradients, the reference kept beforehand, against forward and backward over as many rows."""
    n = min(len(sets.forget), len(sets.retain)) // BATCH * BATCH
    forget, retain = sets.forget[:n], sets.retain[:n]
    rows = encode_all(model, forget), encode_all(model, retain)
    both = [collate(rows[0][i : i + BATCH] + rows[1][i : i + BATCH], device=model.device) for i in range(0, n, BATCH)]
    alone = [collate(rows[0][i : i + BATCH], device=model.device) for i in range(0, n, BATCH)]
    for name in OBJECTIVES:
        member = objective[name]
        asked = Asked(member, member.options, weighting_of(member, None, None, None), None, _training())
        task, training = prepare(model, forget, retain, asked)
        if training.mask is not None:  # rmu's: what moves is what needs a gradient
            for parameter_name, p in model.hf.named_parameters():
                p.requires_grad_(parameter_name in training.mask)

        def steps(task: Any = task) -> None:
            for i in range(0, n, BATCH):
                task.losses(range(i, i + BATCH), 0).sum().backward()
            model.hf.zero_grad(set_to_none=True)

        floor = alone if asked.weighting.retain_term == "none" else both
        flags = [p.requires_grad for p in model.hf.parameters()]

        def bare(floor: Any = floor, flags: Any = flags) -> None:
            for p in model.hf.parameters():
                p.requires_grad_(True)
            forward_backward(model, floor)
            for p, flag in zip(model.hf.parameters(), flags, strict=True):
                p.requires_grad_(flag)

        took, least = versus(steps, bare, model.device, repeats=repeats)
        goal = {"npo": "≤ 1.10", "rmu": "≤ 0.5"}.get(name, "none set")
        what = "both sets" if floor is both else "forget rows"
        yield Row(f"{name}, losses and gradients", f"forward+backward, {what}", took, least, goal, peak_gib(steps, model.device))
        for p in model.hf.parameters():
            p.requires_grad_(True)
    if model.device.type == "cuda":
        npo, plain = (peak_gib(job, model.device) for job in (_job(model, sets, "npo"), _job(model, sets, "plain")))
        yield Row("NPO, memory at the peak (GiB for seconds)", "plain fine-tuning", npo, plain, "≤ 1.05", npo)


def unlearning_peaks(model: str, rows: int) -> list[tuple[Peak, str, str]]:
    """Memory of NPO against plain fine-tuning on the same rows: a process each, beyond the model's weights."""
    npo, plain = (_alone(name, model, rows) for name in ("npo", "plain"))
    return [(Peak(f"NPO on {model}", npo, plain), "plain fine-tuning on the same rows", "≤ 1.05")]


class _SameRows(AnswerTask):
    """Plain fine-tuning on the answers of the very rows that unlearning forwards together, step by step."""

    def __init__(self, model: Model, pairing: Pairing) -> None:
        self.pairing, self.n = pairing, len(pairing)
        super().__init__(model, [*pairing.sides[0].rows, *pairing.retain])

    def __len__(self) -> int:
        return self.n

    def losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """Mean NLL of a forget row plus that of its retain partner."""
        partners = [self.n + k for k in self.pairing.partners(chosen, epoch)]
        return super().losses([*chosen, *partners], epoch).view(2, -1).sum(0)


def _job(model: Model, sets: Sets, name: str) -> Callable[[], object]:
    """One epoch, AdamW included, of an objective, or of fine-tuning on the same rows."""
    n = min(len(sets.forget), len(sets.retain))
    if name != "plain":
        return lambda: wb.unlearn.run(model, sets.forget[:n], sets.retain[:n], objective=name, epochs=1, batch_size=BATCH, lr=1e-5)
    rows = [encode_all(model, part[:n]) for part in (sets.forget, sets.retain)]
    pairing = Pairing(model, [Side(rows[0])], rows[1], Weighting(1.0, 1.0, "nll"), seed=0)
    about = Provenance("plain", model.fingerprint())
    return lambda: fit(model, _SameRows(model, pairing), about, epochs=1, batch_size=BATCH, lr=1e-5)


def _training() -> Training:
    plain = {"epochs": 1, "batch_size": BATCH, "micro_batch": None, "lr": 1e-5, "schedule": "linear", "warmup": 0.0}
    return Training(**plain, weight_decay=0.0, clip_norm=1.0, sharpness=0.0, lora=None, mask=None, seed=0, show=False)


def _alone(name: str, model: str, rows: int) -> int:
    command = [sys.executable, "-m", "benchmarks.unlearning", name, "--model", model, "--rows", str(rows)]
    done = subprocess.run(command, env={**os.environ, **MAPPED}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return int(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Bytes at the peak of one job beyond what stood before it."""
    from benchmarks.__main__ import DATA, MODELS

    parser = argparse.ArgumentParser(prog="python -m benchmarks.unlearning", description=__doc__)
    parser.add_argument("job", choices=("plain", *objective.names()))
    parser.add_argument("--model", default="organism", choices=MODELS)
    parser.add_argument("--rows", type=int, default=80)
    asked = parser.parse_args()
    model = MODELS[asked.model](torch.device("cpu"))
    forget, retain = (wb.examples(f"tofu:{split}", root=DATA / "tofu-mini")[: asked.rows] for split in ("forget", "retain"))
    sets = Sets(forget, retain, {})
    _job(model, Sets(forget[:2], retain[:2], {}), asked.job)()  # what is loaded on first use
    print(json.dumps(peak(_job(model, sets, asked.job))))


if __name__ == "__main__":
    main()
