"""Hooks that hand over what gradients are made of: a module's input x, and the gradient s of its output.

`moments.py` makes sums over sets of it, `dots.py` products and norms row by row. What they do with x and s is a `Watcher`; which
modules are hooked, and which cannot be, is said here, once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, is_grad_enabled, nn
from transformers.pytorch_utils import Conv1D

from workbench.core.errors import ModelError
from workbench.load.batches import Batch
from workbench.load.models import Model


class Unsupported(ModelError):
    """A parameter's gradient cannot be put together from its module's input and output."""


class Watcher(ABC):
    """What is done at every hooked module.

    names: parameters of interest by identity.   batch: the one at hand, set before every forward pass.
    arrived: called as the module has run, with its path, its parameters of interest by attribute, and its input.
    returned: called as the gradient of its output is known, where gradients are on.
    """

    names: Mapping[int, str]
    batch: Batch

    @abstractmethod
    def arrived(self, module: nn.Module, path: str, owned: dict[str, str], x: Tensor) -> None: ...

    @abstractmethod
    def returned(self, module: nn.Module, path: str, owned: dict[str, str], x: Tensor, s: Tensor) -> None: ...


@contextmanager
def watched(model: Model, watcher: Watcher) -> Iterator[None]:
    """Hooks on every module that owns a parameter of interest; gone on exit.

    Raises: Unsupported for a module that has weights and modules of its own, and, as it runs, for one that does not map one
        [batch pos ...] tensor to another.
    """
    with ExitStack() as handles:
        for path, module in model.hf.named_modules():
            owned = {key: watcher.names[id(p)] for key, p in module._parameters.items() if id(p) in watcher.names}
            if owned:
                if next(module.children(), None) is not None:
                    raise Unsupported(f"{path} has weights and modules of its own.")
                handles.callback(module.register_forward_hook(_hook(watcher, path, owned), with_kwargs=True).remove)
        yield


def shared(model: Model, names: Mapping[int, str]) -> dict[str, list[nn.Module]]:
    """The modules of every parameter of interest that has more than one, such as an embedding that unembeds too."""
    owners: dict[str, list[nn.Module]] = {}
    for module in model.hf.modules():
        for p in module._parameters.values():
            if id(p) in names:
                owners.setdefault(names[id(p)], []).append(module)
    return {name: mine for name, mine in owners.items() if len(mine) > 1}


def check_shared(modules: Mapping[str, list[nn.Module]]) -> None:
    """Unsupported unless what is shared is shared by one embedding and one unembedding: squares of a sum need both summands."""
    for name, mine in modules.items():
        if sorted(type(module).__name__ for module in mine) != ["Embedding", "Linear"]:
            raise Unsupported(f"{name} is shared by several modules.")


def _hook(watcher: Watcher, path: str, owned: dict[str, str]) -> Any:
    """Note the module's input, and wait for the gradient of its output."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
        n = len(watcher.batch.tokens)
        plain = len(args) == 1 and not kwargs and all(isinstance(t, Tensor) and len(t) == n for t in (args[0], output))
        if not plain or (isinstance(module, nn.Linear | Conv1D) and args[0].ndim != 3):
            raise Unsupported(f"{path} does not map one [batch pos ...] tensor to another, so rows cannot be told apart in it.")
        x = args[0].detach()
        watcher.arrived(module, path, owned, x)
        if not is_grad_enabled():
            return output
        if not output.requires_grad:  # nothing before it is differentiated: the graph begins here
            output = output.detach().requires_grad_(True).clone()
        output.register_hook(lambda s: watcher.returned(module, path, owned, x, s))
        return output

    return hook
