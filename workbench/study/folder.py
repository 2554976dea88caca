"""What the run folders of all kinds of study have in common: config.yaml, env.json, and points that are kept.

runs/NAME/config.yaml       the study, resolved; running it again repeats the run
runs/NAME/env.json          machine and versions
runs/NAME/points/KEY.json   one measurement, complete or absent; KEY is a hash of all that decides it
"""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workbench import __version__
from workbench.core.runtime import environment
from workbench.core.store import new_file, read_json, text_sha256, write_json
from workbench.load.models import Model


def begin(folder: Path, config: Mapping[str, Any], results: Sequence[str]) -> None:
    """Make the run folder and write config.yaml and env.json; `results` of other settings are taken away first."""
    folder.mkdir(parents=True, exist_ok=True)
    text, path = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), folder / "config.yaml"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        for name in results:
            (folder / name).unlink(missing_ok=True)
        with new_file(path) as aside:
            aside.write_text(text, encoding="utf-8")
    write_json(folder / "env.json", environment())


def state(model: Model) -> list[str]:
    """What of a model, of this version, and of the packages that compute, decides a measurement."""
    packages = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    return [__version__, *packages, str(model.device), str(model.dtype), model.text_key(), model.base_fingerprint()]


def point(folder: Path, about: Sequence[Any]) -> Path:
    """The file of the measurement with these causes.

    Args: about: JSON values, all that decides it.
    """
    return folder / "points" / f"{text_sha256(list(about))}.json"


def kept(folder: Path, about: Sequence[Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The measurement with these causes from its file, or made and kept."""
    path = point(folder, about)
    if not path.exists():
        write_json(path, dict(make()))
    return read_json(path)
