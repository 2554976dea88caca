"""How things are timed: warmed up, alternating with their floor, medians of wall-clock seconds."""

import statistics
import time
from collections.abc import Callable

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


def peak_gib(job: Callable[[], object], device: torch.device) -> float:
    """GiB allocated at most during one run of `job` on a CUDA device; NaN on the CPU, where nothing counts it."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats(device)
    seconds(job, device)
    return torch.cuda.max_memory_allocated(device) / 2**30
