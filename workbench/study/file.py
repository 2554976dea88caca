"""Study files: YAML that reads numbers as numbers, overrides from a command line, strict keys, paths relative to the file."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workbench.core.errors import InputError, StudyError, unknown
from workbench.core.store import read_text
from workbench.core.strict_yaml import StrictLoader


class _Loader(StrictLoader):
    """YAML that reads 1e-3 as the number and 2:4 as the text that they are; to YAML 1.1 they are a text and a number."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
for _first in "0123456789":  # the scope 2:4 is a text; to YAML 1.1 it is two minutes and four seconds, 124
    _Loader.yaml_implicit_resolvers[_first].insert(0, ("tag:yaml.org,2002:str", re.compile(r"^\d+:\d+$")))


def parse_value(text: str) -> Any:
    """A value as it would be read in a study file; a text that begins with a star is a pattern, not YAML's alias."""
    if text.startswith("*"):
        return text
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise StudyError(f"the value {text!r} is not valid YAML: {_problem(error)}.") from error


def _problem(error: yaml.YAMLError) -> str:
    """PyYAML's many lines in one: what is wrong, and where."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).splitlines()[0]
    return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"


def parse_options(given: Iterable[str]) -> dict[str, Any]:
    """["lr=1e-3", "mask.fraction=0.1"] as {"lr": 0.001, "mask.fraction": 0.1}."""
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"option {text!r}: expected key=value.")
        options[key.strip()] = parse_value(value)
    return options


def read_file(
    path: str | Path, overrides: Iterable[str] = (), *, keys: str = "name, model, data, and arms or judge"
) -> dict[str, Any]:
    """The mapping in a study file, with overrides such as "arms.npo.unlearn.lr=1e-3" put in.

    Args: keys: what such a file holds, named in messages.
    Raises: StudyError for a file that is no mapping, or an override below something that is none; InputError for a file that is
        missing, or no text.
    """
    try:
        raw = yaml.load(read_text(path), Loader=_Loader)
    except yaml.YAMLError as error:
        raise StudyError(f"{path}: not valid YAML: {_problem(error)}.") from error
    if not isinstance(raw, dict):
        raise StudyError(f"{path}: expected a mapping with {keys}.")
    for key, value in parse_options(overrides).items():
        _override(raw, key.split("."), value)
    return raw


def has(path: str | Path, key: str) -> bool:
    """Whether a study file, or a run's config.yaml, is of the kind that has a mapping `key`."""
    return isinstance(read_file(path).get(key), Mapping)


def _override(raw: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = raw.setdefault(key, {})
        if not isinstance(inner, dict):
            raise StudyError(f"override {'.'.join(keys)}: {key} is not a mapping.")
        raw = inner
    raw[keys[-1]] = value


def check_head(raw: Mapping[str, Any], path: str | Path, keys: Sequence[str]) -> None:
    """StudyError if one of `keys` is absent or the study's name cannot name a folder."""
    for key in keys:
        if not raw.get(key):
            raise StudyError(f"{path}: there is no {key!r}.")
    check_name(raw["name"], path)


def check_name(name: object, path: str | Path) -> None:
    """StudyError if `name` cannot name a folder."""
    if not re.fullmatch(r"\w[\w.-]*", str(name)):
        raise StudyError(f"{path}: name {name!r} must be letters, digits, '.', '_' and '-': it names a folder.")


def sources(raw: Any, path: str | Path, splits: Sequence[str]) -> dict[str, str]:
    """The mapping `data`: a source for each of `splits`, and a root if given; paths made relative to the working directory."""
    known("key of data", raw, [*splits, "root"])
    absent = [split for split in splits if split not in raw]
    if absent:
        raise StudyError(f"{path}: data has no source for {', '.join(absent)}.")
    return {key: resolve(str(value), Path(path).parent) for key, value in raw.items()}


def mapping(what: str, value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping; StudyError naming `what` otherwise."""
    if not isinstance(value, Mapping):
        raise StudyError(f"{what}: expected a mapping, got {value!r}.")
    return value


def known(kind: str, given: Any, names: Sequence[str]) -> None:
    """StudyError unless `given` is a mapping; UnknownNameError, with the nearest name, for a key that is not in `names`."""
    if not isinstance(given, Mapping):
        raise StudyError(f"{kind}: expected a mapping, got {given!r}.")
    for key in given:
        if key not in names:
            raise unknown(kind, str(key), names)


def resolve(value: str, folder: Path) -> str:
    """A path relative to the study file as one relative to the working directory; anything else as it stands."""
    there = folder / value
    return os.path.relpath(there) if there.exists() else value


def relative(value: str, folder: Path) -> str:
    """A path relative to the working directory as one relative to `folder`; anything else as it stands."""
    return os.path.relpath(value, folder) if Path(value).exists() else value
