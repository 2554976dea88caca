"""Changes of activations: the part of an edit that no weight can hold, done by hooks while it is applied.

    add       x[..., index] += values            steering: a vector added to the residual stream
    set       x[..., index]  = values            mean ablation: a head's or a neuron's output held at a constant
    project   x -= (x . values) values           directional ablation: a direction removed (values of norm 1; less, in part)

Each acts on every position of every pass alike, so a batch, its padding, a cache and generation change nothing about it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.core.errors import InputError, ModelError, ShapeError, unknown
from workbench.core.numerics import check_finite, wide

Kind = Literal["add", "set", "project"]

_ROUNDED = 1e-4  # how far above 1 the norm of a unit vector may be that was computed in float32


@dataclass(frozen=True, eq=False)
class ActivationChange:
    """What happens at one site.

    site: canonical name, such as "blocks.2.resid_post".   module: its Hugging Face module.   side: "input" or "output" of it.
    part: first, last (exclusive) and step of the module's features that are the site's, None for all of them.
    kind: add, set or project.   index: features of the site, int64 [k].   values: float32 [k], one a feature.
    """

    kind: str
    site: str
    module: str
    side: str
    part: tuple[int, int, int] | None
    index: Int[Tensor, "..."]
    values: Float[Tensor, "..."]

    def __post_init__(self) -> None:
        what = f"ActivationChange at {self.site}"
        if self.kind not in get_args(Kind):
            raise unknown("kind of activation change", self.kind, get_args(Kind))
        if self.index.ndim != 1 or self.values.shape != self.index.shape or len(self.index.unique()) != len(self.index):
            raise ShapeError(
                f"{what}: {tuple(self.values.shape)} values for {tuple(self.index.shape)} features; expected one each, no repeats."
            )
        if not len(self.index):
            raise InputError(
                f"{what}: there is no feature to change. Name one or more; in activation_change, index=None means all."
            )
        if int(self.index.min()) < 0:
            raise InputError(f"{what}: feature {int(self.index.min())} does not exist; features are counted from 0.")
        object.__setattr__(self, "index", self.index.detach().cpu().long())
        object.__setattr__(self, "values", self.values.detach().cpu().float())
        check_finite(what, self.values)
        norm = float(self.values.double().norm())
        if self.kind == "project" and norm > 1 + _ROUNDED:
            raise InputError(
                f"{what}: 'project' got values of norm {norm:.6g}; expected 1, or less to remove the direction in part. "
                "Is it not a unit vector? Then divide by the norm."
            )

    def scaled(self, factor: float) -> "ActivationChange":
        """The same addition times `factor`.

        Raises: InputError for another kind: half of "set to" or "remove" is another change than this one.
        """
        if self.kind != "add" and factor != 1:
            raise InputError(f"Delta: it holds {self.site} by {self.kind!r}, which cannot be scaled by {factor:g}; make it anew.")
        return replace(self, values=self.values * factor)

    def apply(self, x: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """The changed activation, computed in float32 or wider and rounded once to x's dtype."""
        whole = x if self.part is None else x[..., slice(*self.part)]
        if int(self.index.max()) >= whole.shape[-1]:
            raise ShapeError(f"{self.site} has {whole.shape[-1]} features, but the edit changes number {int(self.index.max())}.")
        index, values = self.index.to(x.device), self.values.to(x.device, wide(whole).dtype)
        used = wide(whole[..., index])
        match self.kind:
            case "add":
                new = used + values
            case "set":
                new = values.expand_as(used)
            case _:
                new = used - (used * values).sum(-1, keepdim=True) * values
        out = x.clone()
        target = out if self.part is None else out[..., slice(*self.part)]
        target[..., index] = new.to(x.dtype)
        return out


def attach(module: nn.Module, change: ActivationChange) -> RemovableHandle:
    """Do `change` in every pass through `module`, until the handle is removed."""
    return hook_tensor(module, change.side, change.apply, change.site)


def detach_copies(root: nn.Module) -> None:
    """Take the hooks of `hook_tensor` out of a module tree that was copied with them: their handles are the original's.

    Those of edits as well as of captures and patches, which would stay for ever; hooks of other libraries are left alone.
    """
    for module in root.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, (_OutputHook, _InputHook))]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def hook_tensor(module: nn.Module, side: str, function: Callable[[Tensor], Tensor | None], site: str) -> RemovableHandle:
    """Run `function` on what goes into ("input") or comes out of ("output") a module; a returned tensor takes its place.

    The output is the tensor, or the first of a tuple (decoder layers, attention); the input the first argument, or
    `hidden_states` where the model passes it by keyword.
    """
    if side == "output":
        return module.register_forward_hook(_OutputHook(function, site))
    return module.register_forward_pre_hook(_InputHook(function, site), with_kwargs=True)


@dataclass(frozen=True, eq=False)
class _OutputHook:
    function: Callable[[Tensor], Tensor | None]
    site: str

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(value, Tensor):
            raise ModelError(
                f"site {self.site!r}: its {type(module).__name__} returns {type(output).__name__}, which holds no tensor first."
            )
        new = self.function(value)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new


@dataclass(frozen=True, eq=False)
class _InputHook:
    function: Callable[[Tensor], Tensor | None]
    site: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(value, Tensor):
            raise ModelError(
                f"site {self.site!r}: its {type(module).__name__} was called without hidden states; there is no such input here."
            )
        new = self.function(value)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})
