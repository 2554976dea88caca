"""Files: safetensors, JSON, parquet. A folder or file is complete or absent, never half written.

Everything is written beside its destination and renamed into place, so a process killed at any moment leaves either the old
state or the new one.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.core.errors import InputError


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A path to write to; renamed to `path` on success, removed on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill; renamed to `path` on success, removed on failure. An existing `path` is replaced at the very end."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # what a killed process left
    aside.mkdir()
    old = path.with_name(f".{path.name}.old.partial")
    try:
        yield aside
        if path.exists():
            os.replace(path, old)
        os.replace(aside, path)
    finally:
        if old.exists() and not path.exists():  # the disk was full between the two renames, or a process was killed there
            os.replace(old, path)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_vacant(path: str | Path) -> None:
    """InputError if a user's output folder is a file or a folder with something in it: nothing of theirs is overwritten."""
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path}: exists already and is not an empty folder; give another place, or remove it first.")


def write_json(path: str | Path, value: Any) -> None:
    """`value` as indented JSON with sorted keys; NaN is refused, for JSON has none."""
    with new_file(path) as aside:
        aside.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The JSON in `path`; InputError naming file, line and column if it is broken."""
    path = existing(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Tensors as safetensors, with `about` as JSON in the header."""
    with new_file(path) as aside:
        flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {**about, "order": list(flat)}  # safetensors sorts the names; a record's order breaks ties
        save_file(flat, aside, metadata={"workbench": json.dumps(header, sort_keys=True, allow_nan=False)})


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and `about` of a file written by `save_tensors`; the tensors are memory-mapped until touched.

    Raises: InputError if the file is missing, is not safetensors, or holds something else than a `kind`.
    """
    path = existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("workbench", "{}"))
            if about.get("kind") != kind:
                raise InputError(f"{path}: holds {about.get('kind') or 'no workbench record'}, expected a {kind}.")
            return {name: file.get_tensor(name) for name in about["order"]}, about
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}). A pickle cannot be loaded here.") from error


def existing(path: str | Path) -> Path:
    """`path` if it exists; InputError naming the nearest existing parent otherwise."""
    path = Path(path)
    if not path.exists():
        parent = next((p for p in path.parents if p.exists()), Path("."))
        raise InputError(f"{path}: no such file or folder (there is {parent}, but not below it).")
    return path


@contextmanager
def open_text(path: str | Path, *, encoding: str = "utf-8", newline: str | None = None) -> Iterator[TextIO]:
    """A text file to read.

    Raises: InputError if it is missing, or, while it is read, if it is not in this encoding.
    """
    with open(existing(path), encoding=encoding, newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not a text in {encoding.removesuffix('-sig').upper()} (byte {error.object[error.start]:#04x}). "
                "If it is a text, save it in this encoding."
            ) from error


def read_text(path: str | Path) -> str:
    """The whole text in a file; InputError as `open_text`."""
    with open_text(path) as file:
        return file.read()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def text_sha256(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form: the same rows or options always give the same hash."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values: halves are hashed as the float32 they equal, so a checkpoint loaded in bfloat16 and
    the same one loaded in float32 have one hash."""
    digest = sha256(str(tuple(tensor.shape)).encode())
    for chunk in tensor.detach().reshape(-1).split(1 << 24):
        wide = chunk.float() if chunk.dtype in (torch.bfloat16, torch.float16) else chunk
        digest.update(wide.cpu().numpy().data)
    return digest.hexdigest()
