"""Read and replace activations at named sites of the plain Hugging Face model, with PyTorch hooks.

    with capture(model, ["blocks.2.resid_post"]) as acts:
        model.hf(ids)
    acts["blocks.2.resid_post"]                                   # [batch, pos, d_model]

    with patch(model, {"blocks.2.mlp_out": torch.zeros_like}):    # ablate one MLP
        logits = model.hf(ids).logits

Contexts nest. Where both touch one site, hooks run in the order the contexts were entered: a capture inside a patch
sees the patched activation, a capture around it the original. All hooks are gone on leaving a context, also after an
exception.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.core.activation import hook_tensor
from workbench.core.errors import InputError, ModelError, ShapeError
from workbench.load.sites import Site, Sites


@runtime_checkable
class HasSites(Protocol):
    """What capture and patch need of a model: the Hugging Face model and its sites."""

    @property
    def hf(self) -> PreTrainedModel: ...

    @property
    def sites(self) -> Sites: ...


@contextmanager
def capture(
    model: HasSites,
    sites: Iterable[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    detach: bool = True,
) -> Iterator[dict[str, Float[Tensor, "batch pos features"]]]:
    """Keep the activations at the named sites of the forward passes run inside the context.

    Args:
        model: a `workbench` model (anything with `.hf` and `.sites`).
        sites: site names; the result has exactly these keys, spelled as given.
        dtype, device: of what is kept, always a copy; None for the activation's own.
        detach: cut the autograd graph; False keeps it, e.g. for gradients with respect to an activation.
    Returns: a dict, filled during the forward pass, name → [batch pos features]. After several passes it holds the last
        one; during generation with a cache that is the last token alone.
    Raises: UnknownNameError for an unknown site; InputError for a bare string or a layer that does not exist; during
        the forward pass ModelError where the architecture has no [batch pos features] (OPT flattens it for its MLP).
    """
    if isinstance(sites, str):
        raise InputError(f"capture: sites must be a list of names, got the string {sites!r}. Write [{sites!r}].")
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            # A copy: some models add into this memory later (Falcon adds attention to the MLP's output in place).
            kept[name] = (value.detach() if detach else value).to(dtype=dtype, device=device, copy=True)

        return read

    with _hooked(model, {name: keep(name) for name in sites}):
        yield kept


@contextmanager
def patch(model: HasSites, patches: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Replace activations during the forward passes run inside the context.

    Args:
        model: a `workbench` model (anything with `.hf` and `.sites`).
        patches: site name → function of the activation [batch pos features] that returns the new one, of the same
            shape, or None to leave it. The result is cast to the activation's dtype and device. The function must not
            write in place: the model may still need the original elsewhere.
    Raises: UnknownNameError for an unknown site; during the forward pass ShapeError or InputError, naming the site, if
        a function returns another shape or no tensor.
    """
    with _hooked(model, {name: _checked(name, function) for name, function in patches.items()}):
        yield


@contextmanager
def _hooked(model: HasSites, functions: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Run each function on the activation at its site; a returned tensor replaces it."""
    places = [(model.sites[name], function) for name, function in functions.items()]  # all names before any hook
    with ExitStack() as handles:
        for site, function in places:
            module = model.hf.get_submodule(site.module)
            handles.callback(hook_tensor(module, site.side, partial(_apply, site, function), site.name).remove)
        yield


def _checked(name: str, function: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
    """The user's function, with its result checked and cast."""

    def replace(value: Tensor) -> Tensor | None:
        new = function(value)
        if new is None:
            return None
        if not isinstance(new, Tensor):
            raise InputError(f"patch: the function for {name!r} returned {type(new).__name__}; a tensor or None is needed.")
        if new.shape != value.shape:
            raise ShapeError(
                f"patch: the function for {name!r} returned shape {tuple(new.shape)}, but the activation has "
                f"{tuple(value.shape)}. Use expand or torch.where to keep batch and positions."
            )
        return new.to(value)

    return replace


def _apply(site: Site, function: Callable[[Tensor], Tensor | None], value: Tensor) -> Tensor | None:
    """The function on the site's part of a module's tensor; the whole new tensor, or None if nothing changes."""
    if value.ndim != 3:
        raise ModelError(
            f"site {site.name!r}: {site.module!r} works on shape {tuple(value.shape)}, not [batch pos features] "
            "(OPT flattens batch and positions inside its MLP). Use resid_pre, resid_post or attn_out of this layer."
        )
    if site.part is None:
        return function(value)
    new = function(value[..., site.part])
    if new is None:
        return None
    whole = value.clone()
    whole[..., site.part] = new
    return whole
