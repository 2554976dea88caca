"""What study files of all kinds begin with: a name, a model, sources of rows, device and dtype; and checks of single values."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import StudyError
from workbench.core.records import Examples
from workbench.load.datasets import examples
from workbench.load.models import Model, check_source, load
from workbench.study.file import check_head, known, mapping, read_file, relative, resolve, sources

KEYS = ("name", "title", "model", "data", "device", "dtype")
"""What stands beside a study's own mapping."""


@dataclass(frozen=True)
class Head:
    """name: of the run's folder.   model: folder or hub id, "" if the study names its models elsewhere.   data: source by split."""

    name: str
    title: str
    model: str
    data: Mapping[str, str]
    device: str
    dtype: str

    def rows(self, split: str) -> Examples:
        """The rows of a split."""
        return examples(self.data[split], root=self.data.get("root"))

    def load(self, model: str | None = None) -> Model:
        """The study's model, or another one on the same device and in the same dtype."""
        return load(model or self.model, device=self.device, dtype=self.dtype)

    def config(self, folder: Path, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The study as it is written into its run folder, paths relative to that: running it again repeats the run."""
        plain: dict[str, Any] = {"name": self.name, "title": self.title}
        if self.model:
            plain["model"] = relative(self.model, folder)
        if self.data:
            plain["data"] = {key: relative(value, folder) for key, value in self.data.items()}
        return plain | {"device": self.device, "dtype": self.dtype, kind: dict(body)}


def read_head(
    path: str | Path, overrides: Iterable[str], kind: str, *, splits: Sequence[str] = (), model: bool = True
) -> tuple[Head, Mapping[str, Any]]:
    """The head of a study file whose own mapping is called `kind`, and that mapping, unread.

    Args: splits: of rows that `data` must have; without any, there is no `data`.   model: whether the file names one model.
    Raises: StudyError for a file that is no such study; UnknownNameError, with the nearest name, for an unknown key; InputError for
        a missing file.
    """
    raw = read_file(path, overrides)
    needed = ["name", *(["model"] if model else []), *(["data"] if splits else []), kind]
    known(f"key of a study with {kind!r}", raw, [*needed, "title", "device", "dtype"])
    check_head(raw, path, needed)
    name = resolve(str(raw["model"]), Path(path).parent) if model else ""
    if model:
        check_source(name)
    data = sources(raw["data"], path, splits) if splits else {}
    rest = {key: str(raw.get(key, "auto")) for key in ("device", "dtype")}
    return Head(str(raw["name"]), str(raw.get("title", "")), name, data, **rest), mapping(kind, raw[kind])


def below(kind: str, options: Iterable[str]) -> list[str]:
    """Options such as "seeds=[0]" of a command for one kind of study, as overrides of its file: below `kind`, but for KEYS."""
    return [one if one.split("=")[0].split(".")[0].strip() in KEYS else f"{kind}.{one}" for one in options]


def positive(what: str, value: Any) -> float:
    """`value` if it is a finite number above 0; StudyError naming `what` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise StudyError(f"{what} is {value!r}, expected a positive number.")
    return float(value)


def share(what: str, value: Any) -> float:
    """`value` if it is above 0 and at most 1; StudyError otherwise."""
    if positive(what, value) > 1:
        raise StudyError(f"{what} is {value!r}, expected a share, at most 1.")
    return float(value)


def count(what: str, value: Any, *, least: int = 1) -> int:
    """`value` if it is a whole number of at least `least`; StudyError otherwise."""
    if type(value) is not int or value < least:
        raise StudyError(f"{what} is {value!r}, expected a whole number of at least {least}.")
    return value


def listing(what: str, value: Any, kind: type) -> tuple[Any, ...]:
    """`value` as a tuple if it is a list of at least one, none twice, each a `kind`; StudyError otherwise."""
    listed = isinstance(value, list | tuple) and len(value) > 0
    if not listed or len(set(map(str, value))) < len(value) or not all(type(one) is kind for one in value):
        raise StudyError(f"{what} is {value!r}, expected a list, at least one, none twice, each a {kind.__name__}.")
    return tuple(value)
