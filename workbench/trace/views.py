"""The model as a TransformerLens bridge or in nnsight, with shared weights and the user's own model left alone.

Both libraries write into the module tree they are given. `TransformerBridge` renames every parameter, makes
`save_pretrained` raise and turns attention eager; nnsight 0.8 puts its own `forward` and an `__nnsight__` attribute
into every module and sets the tokenizer's pad token and side. Neither can be undone. So both get a clone of the
structure that holds the same Parameter objects: no weight is copied, and an edit in place is seen on both sides.
A backward pass through a view adds to the `.grad` of the model's own parameters. The hooks of edits that steer or ablate
activations are placed on a view's modules as on the model's own, for as long as the edit is applied. A bridge computes some
modules itself and never runs them; an edit with a hook there is refused while there is such a bridge, since it would be lost.
"""

import copy
import warnings
from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable
from weakref import WeakValueDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.core.activation import detach_copies
from workbench.core.delta import HasWeights, follow
from workbench.core.errors import ModelError, missing_package


@runtime_checkable
class HasTokenizer(Protocol):
    """What a view needs of a model: the Hugging Face model and its tokenizer."""

    @property
    def hf(self) -> PreTrainedModel: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


def clone_structure(hf: PreTrainedModel) -> PreTrainedModel:
    """A second module tree over the same Parameter and buffer objects, without hooks of edits, captures and patches.

    The config is copied, the weights are not.
    """
    clone = copy.deepcopy(hf, {id(t): t for t in (*hf.parameters(), *hf.buffers())})
    detach_copies(clone)
    return clone


def _inner(clone: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of a structure by path, without the root, which would hold itself."""
    return {path: module for path, module in clone.named_modules() if path}


def _follow(model: HasTokenizer, modules: dict[str, nn.Module]) -> None:
    """Let these modules of a view take part in the model's edits."""
    if isinstance(model, HasWeights):
        follow(model, WeakValueDictionary[str, nn.Module](modules))


def as_bridge(model: HasTokenizer) -> Any:
    """The model as a TransformerLens `TransformerBridge`: `run_with_cache`, `run_with_hooks`, W_E ... W_U.

    Attention is eager in the bridge (its patterns are visible), so its logits agree with the model's to rounding, not
    to the bit. Never call `enable_compatibility_mode` on it: that overwrites the shared weights with folded ones.
    With a tokenizer that has no beginning-of-sequence token, none is prepended by default; with one that has no padding
    token, texts of different length cannot be batched (TransformerLens pads with an id outside the vocabulary).

    Args:
        model: a `workbench` model (anything with `.hf` and `.tokenizer`).
    Returns: a TransformerBridge whose parameters are the model's own. Warns where TransformerLens has to copy some
        (interleaved query_key_value of GPT-NeoX): edits of those are seen by a new bridge only.
    Raises: MissingPackageError without transformer-lens; ModelError if an edit is applied that has a hook in a module which
        the bridge does not run.
    """
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise missing_package("transformer-lens", "as_bridge") from error

    hf = model.hf
    tokenizer = copy.deepcopy(model.tokenizer)
    has_bos = tokenizer.bos_token is not None
    # With this set TransformerLens does not load the tokenizer a second time by name, which fails for one that was
    # moved or built in memory. It prepends the token itself instead.
    tokenizer.init_kwargs = {"name_or_path": "", **tokenizer.init_kwargs, "add_bos_token": True}
    clone = clone_structure(hf)
    modules = _inner(clone)  # before TransformerLens puts its own in their places
    devices = [hf.device] if hf.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # splitting fused weights initializes modules that are then overwritten
        bridge = TransformerBridge.boot_transformers(
            hf.config.name_or_path or type(hf).__name__,
            hf_model=clone,
            tokenizer=tokenizer,
            device=hf.device,
            dtype=hf.dtype,
        )
        ran = _that_run(bridge, modules, torch.zeros(1, 2, dtype=torch.long, device=hf.device))
    try:
        _follow(model, ran)
    except ModelError as error:
        raise ModelError(f"as_bridge: {error} TransformerLens computes it itself. Undo it first, or use as_nnsight.") from error
    if not has_bos:
        bridge.cfg.default_prepend_bos = False  # the one TransformerLens adds lies outside the model's vocabulary
    _warn_about_copies(hf, bridge)
    return bridge


def as_nnsight(model: HasTokenizer) -> Any:
    """The model in nnsight: `with view.trace("text"): h = view.model.layers[1].output.save()`, with HF's module names.

    Args:
        model: a `workbench` model (anything with `.hf` and `.tokenizer`).
    Returns: an nnsight `TransformersModel` for text generation whose parameters are the model's own.
    Raises: MissingPackageError without nnsight.
    """
    try:
        from nnsight.modeling.transformers import TransformersModel
    except ImportError as error:
        raise missing_package("nnsight", "as_nnsight") from error

    clone = clone_structure(model.hf)
    _follow(model, _inner(clone))
    return TransformersModel(clone, tokenizer=copy.deepcopy(model.tokenizer), task="text-generation")


@torch.no_grad()
def _that_run(bridge: Any, modules: dict[str, nn.Module], ids: Int[Tensor, "batch pos"]) -> dict[str, nn.Module]:
    """Those of the modules that a pass of the bridge calls; a hook in any other would never be run."""
    seen: set[str] = set()
    with ExitStack() as handles:
        for path, module in modules.items():
            handles.callback(module.register_forward_hook(lambda *_, path=path: seen.add(path)).remove)
        bridge(ids)
    return {path: module for path, module in modules.items() if path in seen}


def _warn_about_copies(hf: PreTrainedModel, bridge: Any) -> None:
    """Warn if a parameter of the bridge lies in memory of its own, which no edit of the model reaches."""
    ours = {p.untyped_storage().data_ptr() for p in hf.parameters()}
    copies = [name for name, p in bridge.named_parameters() if p.untyped_storage().data_ptr() not in ours]
    if copies:
        warnings.warn(
            f"as_bridge: TransformerLens copied {len(copies)} parameters of {type(hf).__name__} that it cannot view "
            f"({copies[0]}, ...). Edits of these weights do not reach this bridge; make a new one after editing them.",
            stacklevel=3,
        )
