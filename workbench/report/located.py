"""Where the masks of a run lie: the pictures that Scores and Mask show in a notebook."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from workbench.core.mask import Mask
from workbench.core.scores import Scores
from workbench.report.folder import Arm, Run


class Located(NamedTuple):
    """Pictures of one thing that was located, under its title."""

    title: str
    pictures: list[Markup]


def located(run: Run) -> list[Located]:
    """The scores that masks were cut from, each once, then the mask of every arm that has one."""
    masks = [(arm, Mask.load(path)) for arm in run.arms if (path := _mask(run, arm)).exists()]
    used = [source for _, mask in masks for source in _sources(mask.provenance.options)]
    scores = [Scores.load(path) for path in sorted((run.path / "scores").glob("*.safetensors"))]
    shown = [Located(f"{s.provenance.method} scores", [s.picture()]) for s in scores if s.provenance.as_dict() in used]
    return shown + [Located(f"{arm.title}: {mask!r}", mask.pictures()) for arm, mask in masks]


def _mask(run: Run, arm: Arm) -> Path:
    return run.path / "arms" / arm.name / "mask.safetensors"


def _sources(options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The provenances of scores that a mask's own speaks of, at any depth: a control's stand inside its mask's."""
    for key, value in options.items():
        if key == "scores":
            yield value
        elif isinstance(value, Mapping):
            yield from _sources(value)
