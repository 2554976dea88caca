"""Peak memory on the CPU: one job in a process of its own, whose high-water mark the kernel keeps.

    python -m benchmarks.memory scores --model organism --tokens 4096
    python -m benchmarks.memory choose --scores 1e8

Prints JSON: the bytes planned (or, for the choice of a mask, those of the double argsort) and the bytes at the peak.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# Blocks from this size on are mapped and unmapped one by one: freed memory leaves the process, and the mark is what was used.
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536"}


class Peak(NamedTuple):
    """Bytes at the peak of a job beyond what stood before it, and what they are compared with."""

    job: str
    measured: int
    expected: int


def alone(*words: str) -> list[Peak]:
    """Run this module in a new process and read what it measured."""
    command = [sys.executable, "-m", "benchmarks.memory", *words]
    done = subprocess.run(command, env={**os.environ, **MAPPED}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return [Peak(**line) for line in json.loads(done.stdout.splitlines()[-1])]


def peak(job: Callable[[], object]) -> int:
    """Bytes by which the resident set grew at most while `job` ran (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the high-water mark starts again here
    before = _status("VmRSS")
    job()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def scores(name: str, tokens: int, rows: int, *, several: bool) -> list[Peak]:
    """Passes for weight scores against the plan that is printed before them; the model's weights count on both sides."""
    import workbench as wb
    from benchmarks.__main__ import DATA, MODELS
    from benchmarks.cases import TOGETHER
    from workbench.load.batches import encode_all
    from workbench.trace.plan import plan_pass

    model = MODELS[name](torch.device("cpu"))
    forget, retain = (wb.examples(f"tofu:{split}", root=DATA / "tofu-mini")[:rows] for split in ("forget", "retain"))
    names = list(model.shapes())
    together = {method: {} for method in TOGETHER}
    # (method and options, sets of sums, what stands beside them); wagle's own curvature is read before its sums are made
    jobs = [({"snip": {}}, 1, 0), ({"wagle": {}}, 2, 0), (together, 4, len(together) + 1)]
    found = []
    for methods, sums, beside in jobs[: 3 if several else 2]:
        both = encode_all(model, forget) + (encode_all(model, retain) if sums > 1 else [])
        plan = plan_pass(model, both, names, sums=sums, beside=beside, autograd=not beside, batch_tokens=tokens, job="benchmark")

        def job(methods: dict[str, dict[str, Any]] = methods) -> None:
            if len(methods) > 1:
                wb.attribute.several(model, forget, retain, methods, batch_tokens=tokens)
            else:
                for method in methods:
                    getattr(wb.attribute, method)(model, forget, retain, batch_tokens=tokens)

        if not found:
            wb.attribute.snip(model, forget[:1], retain[:1], include="*norm*")  # what is loaded on first use
        told = f"{len(methods)} scores together" if len(methods) > 1 else next(iter(methods))
        found.append(Peak(f"{told} on {name}", peak(job) + plan.weights, plan.total))
    return found


def choose(n: int) -> list[Peak]:
    """The exact top fifth of n scores, to packed bits, against WAGLE's double argsort."""
    from workbench.core.topk import choose as choose_top

    values = {"w": torch.randn(n, generator=torch.Generator().manual_seed(0))}
    dict(choose_top({"w": values["w"][:1000]}, 200))
    ours = peak(lambda: dict(choose_top(values, n // 5)))
    theirs = peak(lambda: values["w"].argsort(descending=True).argsort() < n // 5)
    return [Peak(f"top 20 % of {n:.0e} scores", ours, theirs)]


def main() -> None:
    """Command line of one measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("job", choices=("scores", "choose"))
    parser.add_argument("--model", default="organism")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--scores", type=float, default=1e8)
    parser.add_argument("--several", action="store_true", help="measure several scores together too")
    asked = parser.parse_args()
    found = (
        scores(asked.model, asked.tokens, asked.rows, several=asked.several) if asked.job == "scores" else choose(int(asked.scores))
    )
    print(json.dumps([one._asdict() for one in found]))


if __name__ == "__main__":
    main()
