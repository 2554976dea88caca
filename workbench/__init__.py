"""workbench: find the weights and the data that carry a behavior, change exactly those, prove what the change did."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.5.0"

# Public name -> where it lives. Imported on first use: `import workbench` loads neither torch nor transformers.
_HOME = {
    "load": "workbench.load.models",
    "wrap": "workbench.load.models",
    "Model": "workbench.load.models",
    "examples": "workbench.load.datasets",
    "pairs": "workbench.load.datasets",
    "contrasts": "workbench.load.contrasts",
    "behavior": "workbench.load.behaviors",
    "concepts": "workbench.load.concepts",
    "Examples": "workbench.core.records",
    "PreferencePairs": "workbench.core.records",
    "Direction": "workbench.core.direction",
    "Scores": "workbench.core.scores",
    "Mask": "workbench.core.mask",
    "Delta": "workbench.core.delta",
    "Measurements": "workbench.core.measurements",
    "Contrasts": "workbench.load.contrasts",
    "Components": "workbench.core.components",
    "Place": "workbench.core.components",
    "Behavior": "workbench.load.behaviors",
}
_STAGES = ("attribute", "probe", "score", "edit", "unlearn", "evaluate", "study", "report", "train", "trace")

__all__ = [*_HOME, *_STAGES]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from workbench import attribute, edit, evaluate, probe, report, score, study, trace, train, unlearn
    from workbench.core.components import Components, Place
    from workbench.core.delta import Delta
    from workbench.core.direction import Direction
    from workbench.core.mask import Mask
    from workbench.core.measurements import Measurements
    from workbench.core.records import Examples, PreferencePairs
    from workbench.core.scores import Scores
    from workbench.load.behaviors import Behavior, behavior
    from workbench.load.concepts import concepts
    from workbench.load.contrasts import Contrasts, contrasts
    from workbench.load.datasets import examples, pairs
    from workbench.load.models import Model, load, wrap


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _STAGES:
        return importlib.import_module(f"workbench.{name}")
    raise AttributeError(f"module 'workbench' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
