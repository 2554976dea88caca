"""Where the work runs: device, dtype, memory plan, progress bar, and a record of the machine."""

import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil
import torch

from workbench.core.errors import InputError, MemoryPlanError

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "numpy", "scipy", "safetensors", "rouge-score")


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU; anything else is taken at its word."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: this machine has no CUDA device torch can use; try device='cpu'.")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r}: {error}") from error


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A torch dtype by name: float32, bfloat16, float16 or float64."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def plan_memory(job: str, needed: int, device: torch.device, *, cure: str) -> None:
    """MemoryPlanError before a long job starts, if it needs more than nine tenths of the free memory."""
    free = free_bytes(device)
    if needed > 0.9 * free:
        raise MemoryPlanError(
            f"{job} needs about {needed / 2**30:.1f} GiB on {device}, and {free / 2**30:.1f} GiB are free. {cure}"
        )


def progress(items: Sequence[T] | Iterable[T], *, label: str, total: int | None = None, show: bool = True) -> Iterable[T]:
    """Iterate with a bar that shows the time left; nothing is drawn where the output is no terminal."""
    with progress_bar(show=show) as bar:
        yield from bar.track(items, description=label, total=total)


def announce(text: str, *, show: bool = True) -> None:
    """Say one line on standard error; nothing without `show`."""
    if show:
        from rich.console import Console

        Console(stderr=True).print(text, markup=False, highlight=False)


@contextmanager
def progress_bar(*, show: bool = True) -> Iterator[Any]:
    """A rich progress bar on standard error with elapsed time and time left; silent without `show`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not show) as bar:
        yield bar


def environment() -> dict[str, str]:
    """Machine, Python and package versions, for the record of a run."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
        "workbench": importlib.metadata.version("mechanistic-workbench"),
        **versions,
    }
