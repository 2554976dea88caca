"""Every exception `workbench` raises on purpose.

WorkbenchError
├── InputError (ValueError)          what came in is wrong; the command line exits with status 2
│   ├── UnknownNameError             a method, option, split or site nobody registered; names the nearest
│   ├── DataError                    a row, a file of rows, or two sets that must not overlap
│   │   └── TooLongError             a row with more tokens than the model's context
│   ├── ModelError                   not a model folder, a pickle, an architecture without an adapter
│   ├── ShapeError                   two records that must agree in shape do not
│   ├── MismatchError                a Mask, Scores or Delta that belongs to another model
│   └── StudyError                   a study file that does not say what to do
├── UndoError                        an edit that cannot be undone now; says which one lies on top
├── NumericsError (ArithmeticError)  NaN or infinity; names the first place
│   └── TrainingStopped              in a loss or gradient of training; has what was trained up to the last good state
├── MemoryPlanError (MemoryError)    the job would not fit; says how many bytes and what to lower
└── MissingPackageError (ImportError) an optional dependency; says the install command

Messages follow one form: who complains, what came, what was expected, the likely cure.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class WorkbenchError(Exception):
    """Base of every error raised on purpose."""


class InputError(WorkbenchError, ValueError):
    """The user's input is wrong."""


class UnknownNameError(InputError):
    """A name that is not registered; build it with `unknown`."""


class DataError(InputError):
    """Rows that cannot be used."""


class TooLongError(DataError):
    """Rows with more tokens than the model's context."""


class ModelError(InputError):
    """A model that cannot be loaded or is not supported."""


class ShapeError(InputError):
    """Records that must agree in shape do not."""


class MismatchError(InputError):
    """A record that belongs to another model."""


class StudyError(InputError):
    """A study file that cannot be run."""


class UndoError(WorkbenchError):
    """An edit cannot be undone in this order."""


class NumericsError(WorkbenchError, ArithmeticError):
    """NaN or infinity where a finite number is required."""


class TrainingStopped(NumericsError):
    """Training met NaN or infinity.

    kept: a `train.Trained` of the last state whose loss and gradient were finite, without the update that broke it; where training
    was checked, of the last state within the limit.
    """

    def __init__(self, message: str, kept: Any) -> None:
        super().__init__(message)
        self.kept = kept


class MemoryPlanError(WorkbenchError, MemoryError):
    """The job would not fit into memory."""


class MissingPackageError(WorkbenchError, ImportError):
    """An optional package is not installed."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not among `known`: lists them all and suggests the nearest."""
    names = sorted(known)
    near = get_close_matches(name.replace("-", "_"), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(names) if names else "none"
    return UnknownNameError(f"unknown {kind} {name!r}.{hint} Known: {listed}.")


def missing_package(package: str, needed_for: str, extra: str | None = None) -> MissingPackageError:
    """The error for an optional package, with the command that installs it."""
    target = f"'mechanistic-workbench[{extra}]'" if extra else package
    return MissingPackageError(f"{needed_for} needs the package {package!r}: pip install {target}")
