"""The kinds of method, and how one is found by name.

A method is a plain function with a decorator above it. Its keyword-only parameters are its options; there is no second
place to declare them. The command line, the documentation table and the contract tests all read these registries.

    @attribution
    def magnitude(model, forget, retain): ...

    attribution.names()   # every member, found by importing the package it lives in
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from workbench.core.errors import InputError, unknown


@dataclass(frozen=True)
class Member:
    """One registered function with what its decorator said about it."""

    name: str
    function: Callable[..., Any]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword-only parameters and their defaults: the method's whole configuration."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def check_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """`given` unchanged if every key is an option of this method and every value of its type.

        Raises: UnknownNameError for a key; InputError for a value.
        """
        parameters = inspect.signature(self.function).parameters
        for key, value in given.items():
            if key not in self.options:
                raise unknown(f"option of {self.name}", key, self.options)
            if not _fits(value, parameters[key].annotation):
                wanted = inspect.formatannotation(parameters[key].annotation)
                raise InputError(f"option {key} of {self.name} is {value!r}, expected {wanted}.")
        return given


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value read from a file or a command line can stand for an option of this annotation."""
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(annotation))
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    bare = get_origin(annotation) or annotation
    return isinstance(value, bare) if isinstance(bare, type) else True


class Registry:
    """Functions of one kind by name. Members live in `package` and are found by importing it.

    Args:
        kind: what a member is called in messages ("objective").
        package: dotted package whose modules register the members.
        about: keyword arguments the decorator requires, with their defaults; `...` marks one without default.
    """

    def __init__(self, kind: str, package: str, **about: Any) -> None:
        self.kind = kind
        self.package = package
        self._about = about
        self._members: dict[str, Member] = {}

    def __call__(self, function: Callable[..., Any] | None = None, **about: Any) -> Any:
        if function is None:
            return lambda f: self._add(f, about)
        return self._add(function, about)

    def _add(self, function: Callable[..., Any], about: dict[str, Any]) -> Callable[..., Any]:
        for key in about:
            if key not in self._about:
                raise unknown(f"keyword of @{self.kind}", key, self._about)
        full = {**self._about, **about}
        absent = [key for key, value in full.items() if value is ...]
        if absent:
            raise InputError(f"@{self.kind} on {function.__name__} needs {', '.join(absent)}")
        self._members[function.__name__] = Member(function.__name__, function, full)
        return function

    def _import_members(self) -> None:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, self.package + "."):
            importlib.import_module(module.name)

    def __getitem__(self, name: str) -> Member:
        self._import_members()
        key = name.replace("-", "_")
        if key not in self._members:
            raise unknown(self.kind, name, self._members)
        return self._members[key]

    def __iter__(self) -> Iterator[Member]:
        self._import_members()
        return iter(sorted(self._members.values(), key=lambda member: member.name))

    def names(self) -> list[str]:
        """Every member's name, sorted."""
        return [member.name for member in self]


attribution = Registry("attribution", "workbench.attribute", needs=())
influence = Registry("influence", "workbench.attribute.data")
example_score = Registry("example_score", "workbench.score", rows="examples")
probe = Registry("probe", "workbench.probe", targets="classes")
edit = Registry("edit", "workbench.edit", where="sets", unit="")  # unit: what places are, see `study.locate`
objective = Registry(
    "objective",
    "workbench.unlearn",
    retain="nll",  # what is added on retain rows: none, nll, kl, states
    forget_weight=1.0,
    retain_weight=1.0,
    needs_reference=False,
    answers="own",  # what the forget prompts are answered with: own, refusal, both (own and refusal), random
    reads="logprob",  # what the loss is computed from: logprob, logits, states
    procedure="descent",  # descent, or what stands around it: dual, reinforced, negated
)
preference = Registry("preference", "workbench.unlearn", needs_reference=True)
metric = Registry("metric", "workbench.evaluate", unit=..., better=...)

KINDS = (attribution, influence, probe, example_score, edit, objective, preference, metric)
