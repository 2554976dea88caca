"""Canonical names (TransformerLens') ↔ Hugging Face modules, weight rows, columns and heads.

    blocks.2.resid_pre, .resid_mid, .resid_post    the residual stream before, between and after attention and MLP
    blocks.2.attn_out, .mlp_out                    what attention and MLP add to it (Gemma-2: after the norms behind)
    blocks.2.mlp_in                                what the rows of the MLP read: after the norm and its gain
    blocks.2.attn.hook_z                           what the heads hand to the output projection, heads side by side
    blocks.2.mlp.pre, .pre_linear, .post           gate before its activation; up (gated MLPs); value coefficients
    embed, ln_final, unembed                       outputs of these modules (unembed: before Gemma-2's softcap)

Also understood: TransformerLens' hook names (`blocks.2.hook_resid_post`, `blocks.2.mlp.hook_post`) and its components
(`blocks.2.mlp.out` is the down-projection; as a site, its output). Which module a name means is TransformerLens' answer
for the architecture (`load/adapters.py`); where weights lie inside a module is `load/weights.py`. Activations have the
shape they have in Hugging Face: hook_z is [batch pos n_heads*d_head], where TransformerLens splits the last axis.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.core.errors import InputError, ModelError, UnknownNameError, unknown
from workbench.load import adapters, weights
from workbench.load.weights import WeightSlice

_BLOCK_SITES = {  # canonical name → (where TransformerLens' adapters put it, shape)
    "resid_pre": ("hook_resid_pre", "batch pos d_model"),
    "attn.hook_z": ("attn.hook_z", "batch pos n_heads*d_head"),
    "attn_out": ("hook_attn_out", "batch pos d_model"),
    "resid_mid": ("hook_resid_mid", "batch pos d_model"),
    "mlp_in": ("mlp.hook_in", "batch pos d_model"),
    "mlp.pre": ("mlp.hook_pre", "batch pos d_mlp"),
    "mlp.pre_linear": ("mlp.hook_pre_linear", "batch pos d_mlp"),
    "mlp.post": ("mlp.hook_post", "batch pos d_mlp"),
    "mlp_out": ("hook_mlp_out", "batch pos d_model"),
    "resid_post": ("hook_resid_post", "batch pos d_model"),
}
_TOP_SITES = {
    "embed": ("embed.hook_out", "batch pos d_model"),
    "ln_final": ("ln_final.hook_out", "batch pos d_model"),
    "unembed": ("unembed.hook_out", "batch pos d_vocab"),
}
_NEURON_SITES = ("mlp.pre", "mlp.pre_linear", "mlp.post")
_SPELLINGS = {target: name for table in (_BLOCK_SITES, _TOP_SITES) for name, (target, _) in table.items()}
_BLOCK = re.compile(r"blocks\.(-?\d+)(?:\.(.+))?")


@dataclass(frozen=True)
class Site:
    """A place in the forward pass.

    Attributes:
        name: canonical name, or the component's where it has no canonical one.
        module: dotted path of the HF module, for `hf.get_submodule`.
        side: "input" or "output" of that module.
        shape: axis names.
        part: which entries of the last axis, where the module is fused (Phi-3's gate); None for all of them.
    """

    name: str
    module: str
    side: str
    shape: str
    part: slice | None = None


class Sites:
    """The sites of one model. Built lazily: nothing is imported or looked up before the first question."""

    def __init__(self, hf: PreTrainedModel) -> None:
        """Args: hf: a plain Hugging Face causal LM; it is read, never changed."""
        self._hf = hf
        self._found: dict[str, Site] = {}
        self._layouts: dict[tuple[str, torch.Size], list[Tensor]] = {}  # of fused modules; layers of one shape agree

    def __getitem__(self, name: str) -> Site:
        """The site of this name.

        Raises: UnknownNameError, naming the nearest; InputError if the layer does not exist; ModelError without an
            adapter for the architecture.
        """
        if name not in self._found:
            site = self._look_up(name)
            if site is None:
                raise self._unknown(name)
            self._found[name] = site
        return self._found[name]

    def at(self, name: str, *, layer: int) -> Site:
        """The site `name` of one layer, e.g. `at("resid_post", layer=2)`; layers count from 0."""
        return self[f"blocks.{layer}.{name}"]

    def names(self) -> list[str]:
        """All canonical sites that this model has, in the order of the forward pass."""
        blocks = [f"blocks.{layer}.{name}" for layer in range(self.n_layers) for name in _BLOCK_SITES]
        return [name for name in ("embed", *blocks, "ln_final", "unembed") if self._look_up(name)]

    def path(self, name: str) -> str:
        """HF module path of a component or site: "blocks.2.mlp.out" → "model.layers.2.mlp.down_proj"."""
        return self[name].module

    def module(self, name: str) -> nn.Module:
        """The HF module of a component or site."""
        return self._hf.get_submodule(self.path(name))

    def parameter(self, name: str, kind: str = "weight") -> str:
        """HF parameter name of a component, as in `hf.named_parameters()`; tied weights have their first name.

        Raises: ModelError if it has no parameter `kind`, or is only a part of a fused one.
        """
        site = self[name]
        if site.part is not None:
            raise ModelError(
                f"sites: {name!r} is a part of the fused module {site.module!r}. "
                "Use gate_rows, up_rows or head, which say which part."
            )
        return weights.parameter_name(self._hf, site.module, kind)

    def logits(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """The logit lens: final norm, unembedding, and the model's own last step (Gemma-2's softcap, Cohere's scale).

        At the last layer's resid_post these are the model's logits. HF's `hidden_states[-1]` is normed already: not it.
        """
        return self._adapter.apply_output_logits_transform(self.module("unembed")(self.module("ln_final")(resid)))

    @cached_property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(list(self._hf.get_submodule(self._adapter.components["blocks"].name).children()))

    @cached_property
    def n_heads(self) -> int:
        """Number of query heads in a layer."""
        return self._adapter.cfg.n_heads

    @cached_property
    def gated(self) -> bool:
        """Whether the MLP is act(gate) * up (Llama) rather than act(in) (GPT-2)."""
        return self._look_up("blocks.0.mlp.pre_linear") is not None

    def in_rows(self, layer: int) -> WeightSlice:
        """Rows of W_in, [d_mlp, d_model]: the one in-projection of an ungated MLP; the up-projection of a gated one."""
        return self._rows(f"blocks.{layer}.mlp.in")

    def gate_rows(self, layer: int) -> WeightSlice:
        """Rows of W_gate, [d_mlp, d_model]. Raises: ModelError if the MLP has no gate; use `in_rows` there."""
        self._need_gate("gate_rows")
        return self._rows(f"blocks.{layer}.mlp.gate")

    def up_rows(self, layer: int) -> WeightSlice:
        """Rows of W_up, [d_mlp, d_model]. Raises: ModelError if the MLP has no gate; use `in_rows` there."""
        self._need_gate("up_rows")
        return self._rows(f"blocks.{layer}.mlp.in")

    def value_vectors(self, layer: int) -> WeightSlice:
        """W_out one value vector a row, [d_mlp, d_model]: mlp.out = sum_j m_j v_j + bias, with m the site mlp.post."""
        return weights.column_slice(self._hf, self._linear(f"blocks.{layer}.mlp.out"), as_rows=True)

    def head(self, layer: int, head: int, part: str) -> WeightSlice:
        """The weights of one head.

        Args:
            layer, head: counted from 0; `head` is a query head.
            part: "q", "k", "v": rows [d_head, d_model]; "o": columns [d_model, d_head]. Under grouped-query attention k
                and v are those of the key-value head that serves this query head, so several heads share them.
        Raises: InputError if the layer or head does not exist; UnknownNameError for another part; ModelError if the
            projection is not made of heads (latent attention, a gate beside the queries).
        """
        if part not in ("q", "k", "v", "o"):
            raise unknown("part of a head", part, ("q", "k", "v", "o"))
        if not 0 <= head < self.n_heads:
            raise InputError(f"sites: head {head} does not exist; {self._class} has heads 0 to {self.n_heads - 1}.")
        out = self._linear(f"blocks.{layer}.attn.o")
        d_head = weights.width(self._hf, out, side="in") // self.n_heads
        if part == "o":
            return weights.column_slice(self._hf, out, slice(head * d_head, (head + 1) * d_head, 1))
        path, rows = self._outputs(f"blocks.{layer}.attn.{part}")
        n_parts = len(rows) // d_head
        if len(rows) % d_head or self.n_heads % n_parts or (part == "q" and n_parts != self.n_heads):
            raise ModelError(
                f"sites: the {part} projection {path!r} has {len(rows)} outputs, which are not heads of size {d_head}; "
                f"{self._class} is not supported by head."
            )
        first = head * n_parts // self.n_heads * d_head
        what = f"{part} of head {head} in layer {layer}"
        return weights.row_slice(self._hf, path, weights.as_slice(rows[first : first + d_head], what))

    @cached_property
    def _adapter(self) -> Any:
        return adapters.build_adapter(self._hf)

    @property
    def _class(self) -> str:
        return type(self._hf).__name__

    def _mlp_path(self, layer: int) -> str | None:
        mlp = adapters.find(self._adapter, ["mlp"], layer)
        return mlp.path if mlp else None

    def _linear(self, name: str) -> str:
        """HF path of a linear component, for weights."""
        site = self._look_up(name)
        if site is None:
            raise ModelError(
                f"sites: {self._class} has no single module {name!r} (mixture of experts, or a block without it). "
                "Its weights can still be named by HF parameter."
            )
        return site.module

    def _need_gate(self, asked: str) -> None:
        if not self.gated:
            raise ModelError(f"sites: {asked}: the MLP of {self._class} has no gate; its rows are in_rows(layer).")

    def _rows(self, name: str) -> WeightSlice:
        path, rows = self._outputs(name)
        return weights.row_slice(self._hf, path, weights.as_slice(rows, name))

    def _outputs(self, name: str) -> tuple[str, Tensor]:
        """HF path of the module that computes this projection, and which of its outputs are the projection's."""
        layer, below = self._split(name)
        fused = self._fused_part(layer, below.split("."))
        if fused is not None:
            return fused
        path = self._linear(name)
        return path, torch.arange(weights.width(self._hf, path, side="out"))

    def _fused_part(self, layer: int | None, parts: list[str]) -> tuple[str, Tensor] | None:
        """The same for a component that is only a part of a fused module; None for any other."""
        owner = adapters.find(self._adapter, parts[:-1], layer)
        fusion = owner and adapters.fusion(owner, parts[-1])
        if owner is None or fusion is None:
            return None
        parent = self._hf.get_submodule(owner.path)
        key = (fusion.attribute, weights.weight_of(parent, fusion.attribute).shape)
        if key not in self._layouts:
            self._layouts[key] = weights.fused_outputs(parent, fusion.attribute, fusion.split)
        return f"{owner.path}.{fusion.attribute}", self._layouts[key][fusion.order.index(parts[-1])]

    def _split(self, name: str) -> tuple[int | None, str]:
        """Layer and rest: blocks.2.mlp.out → (2, "mlp.out"), embed → (None, "embed")."""
        match = _BLOCK.fullmatch(name)
        if match is None:
            return None, name
        layer = int(match[1])
        if not 0 <= layer < self.n_layers:
            raise InputError(f"sites: {name!r}: {self._class} has layers 0 to {self.n_layers - 1}.")
        return layer, match[2] or ""

    def _look_up(self, name: str) -> Site | None:
        """The site of this name, or None if the model has none."""
        layer, below = self._split(name)
        table = _TOP_SITES if layer is None else _BLOCK_SITES
        short = _SPELLINGS.get(below, below)
        target, shape = table.get(short, (below, "batch pos features"))
        found = self._follow(layer, target.split(".") if target else [])
        if found and layer is not None and short in _NEURON_SITES and found[0] == self._mlp_path(layer):
            return None  # mixture of experts: TransformerLens puts these at the ends of the whole MLP; no neurons there
        prefix = "" if layer is None else f"blocks.{layer}."
        return found and Site(f"{prefix}{short}".rstrip("."), *found[:2], shape, found[2])

    def _follow(self, layer: int | None, parts: list[str]) -> tuple[str, str, slice | None] | None:
        """Module path, side and part of a component, or of a hook of it, through TransformerLens' aliases."""
        last = parts[-1] if parts else ""
        side = {"hook_in": "input", "hook_out": "output"}.get(last)
        if side is None and last.startswith("hook_"):
            owner = adapters.find(self._adapter, parts[:-1], layer)
            alias = owner and getattr(owner.bridge, "hook_aliases", {}).get(last)
            return self._follow(layer, [*parts[:-1], *alias.split(".")]) if isinstance(alias, str) else None
        components = parts[:-1] if side else parts
        side = side or "output"
        component = adapters.find(self._adapter, components, layer)
        if component is None:
            return None
        if component.bridge.name is None:  # an MLP without a module of its own (OPT): its ends are those of in and out
            end = ["in", "hook_in"] if side == "input" else ["out", "hook_out"]
            return self._follow(layer, [*components, *end])
        fused = self._fused_part(layer, components) if components else None
        if fused is not None:
            path, rows = fused
            return path, side, weights.as_slice(rows, ".".join(components)) if side == "output" else None
        return (component.path, side, None) if adapters.has_module(self._hf, component.path) else None

    def _unknown(self, name: str) -> UnknownNameError:
        layer, below = self._split(name)
        here = f"blocks.{layer or 0}."
        known = [site for site in self.names() if site.startswith(here) or not site.startswith("blocks.")]
        if layer is None and below in _BLOCK_SITES:
            return UnknownNameError(f"site {name!r} needs a layer: 'blocks.0.{name}', or sites.at({name!r}, layer=0).")
        if below == "hook_mlp_in":
            return UnknownNameError(
                f"site {name!r}: TransformerLens means the residual stream before the norm, which is "
                f"'blocks.{layer}.resid_mid' here; what the MLP reads, after the norm, is 'blocks.{layer}.mlp_in'."
            )
        if _SPELLINGS.get(below, below) in _BLOCK_SITES:
            return UnknownNameError(
                f"site {name!r}: no module of {self._class} reads or writes this alone (parallel attention and MLP "
                f"have no resid_mid, ungated MLPs no pre_linear). It has: {', '.join(known)}."
            )
        return unknown("site", name, known)
