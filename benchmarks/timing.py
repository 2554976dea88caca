"""How things are timed: warmed up, alternating with their floor, medians of wall-clock seconds."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def seconds(job: Callable[[], object], device: torch.device) -> float:
    """One run, to its end on the device."""
    begin = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def versus(
    job: Callable[[], object], floor: Callable[[], object], device: torch.device, *, repeats: int = 5
) -> tuple[float, float]:
    """Median seconds of `job` and of `floor`, run in turns after one warm-up each, so that a busy machine hits both."""
    seconds(floor, device)
    seconds(job, device)
    pairs = [(seconds(job, device), seconds(floor, device)) for _ in range(repeats)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """GiB allocated at most inside, on a CUDA device; NaN on the CPU, where nothing counts it."""
    found = [float("nan")]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if device.type == "cuda":
        found[0] = torch.cuda.max_memory_allocated(device) / 2**30
