"""TransformerLens' knowledge of an architecture, asked without touching the model.

The adapter of an architecture is a tree of components, `blocks` → `mlp` → `out`, each with the name of the Hugging
Face module it stands for, and aliases that say where a hook such as `hook_attn_out` lies (Gemma-2: after the norm that
follows attention). We read this tree and call the adapter's weight splitters, and never its `prepare_model`, which
rewires the model it is given.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from workbench.core.errors import ModelError, missing_package


class Fusion(NamedTuple):
    """Several projections in one HF module: its name in the parent, the adapter's splitter, and what that returns."""

    attribute: str
    split: Callable[[Any], Sequence[nn.Module]]
    order: tuple[str, ...]


class Component(NamedTuple):
    """A node of the adapter's tree: its TransformerLens object and the HF module path it stands for."""

    bridge: Any
    path: str


def build_adapter(hf: PreTrainedModel) -> Any:
    """The TransformerLens architecture adapter for a Hugging Face model, made from a copy of its config.

    Args:
        hf: the plain model; only its class name, config and dtype are read.
    Returns: a `transformer_lens` ArchitectureAdapter.
    Raises: ModelError if TransformerLens has no adapter for this architecture, or if the model is wrapped (PEFT, a
        bridge); MissingPackageError without transformer-lens.
    """
    try:
        from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
        from transformer_lens.model_bridge.sources import build_bridge_config_from_hf
        from transformer_lens.model_bridge.sources.transformers import determine_architecture_from_hf_config
    except ImportError as error:
        raise missing_package("transformer-lens", "Looking up sites by name") from error

    name = type(hf).__name__
    config = copy.deepcopy(hf.config)
    config.architectures = [name]  # None on a model built from a config; the class is what the module tree follows
    try:
        architecture = determine_architecture_from_hf_config(config)
    except ValueError as error:
        raise ModelError(
            f"sites: TransformerLens has no adapter for {name} (model_type {hf.config.model_type!r}), so sites, "
            "neurons and heads have no names here. What works by HF parameter name still does: weight scores, masks, "
            "deltas, training, evaluation. ArchitectureAdapterFactory.register_adapter in transformer_lens adds one."
        ) from error
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(
        build_bridge_config_from_hf(config, architecture, name, hf.dtype)
    )
    blocks = str(adapter.components["blocks"].name)
    if not has_module(hf, blocks):
        raise ModelError(
            f"sites: {name} has no module {blocks!r}, where the {architecture} adapter expects the layers. "
            "Pass the plain Hugging Face causal LM, not a PEFT model, a TransformerBridge or another wrapper of it."
        )
    return adapter


def has_module(hf: PreTrainedModel, path: str) -> bool:
    """Whether the model has a module at this dotted path."""
    try:
        hf.get_submodule(path)
    except AttributeError:
        return False
    return True


def find(adapter: Any, parts: list[str], layer: int | None) -> Component | None:
    """Walk the adapter's tree, e.g. ["mlp", "out"] in layer 2 → model.layers.2.mlp.down_proj.

    The same walk as `adapter.translate_transformer_lens_path("blocks.2.mlp.out")`, but it also returns the component
    and does not rewrite names it does not know (".b" and ".w" vanish there).

    Args:
        adapter: from `build_adapter`.
        parts: component names below the block, or below the root when `layer` is None; empty for the block itself.
        layer: index of the block, or None for the root.
    Returns: the component, or None if the architecture has none of this name.
    """
    here = None
    if layer is not None:
        blocks = adapter.components["blocks"]
        here = Component(blocks, f"{blocks.name}.{layer}")
    for part in parts:
        known = adapter.components if here is None else getattr(here.bridge, "submodules", {})
        if part not in known:
            return None
        bridge = known[part]
        names = (here.path if here else None, bridge.name)
        here = Component(bridge, ".".join(name for name in names if name))
    return here


def fusion(owner: Component, part: str) -> Fusion | None:
    """How `part` ("q", "k", "v", "gate", "in") is fused with others inside `owner`; None if it is a module itself."""
    split_qkv = getattr(owner.bridge, "split_qkv_matrix", None)
    if part in ("q", "k", "v") and split_qkv is not None:
        return Fusion(owner.bridge.submodules["qkv"].name, split_qkv, ("q", "k", "v"))
    split_gate_up = getattr(owner.bridge, "split_gate_up_matrix", None)
    if part in ("gate", "in") and split_gate_up is not None:
        return Fusion(owner.bridge.fused_attr, split_gate_up, ("gate", "in"))
    return None
