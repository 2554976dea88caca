"""From a folder, a hub id or a live Hugging Face model to a Model."""

import json
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from workbench.core.delta import Applied
from workbench.core.errors import MismatchError, ModelError
from workbench.core.runtime import pick_device, pick_dtype
from workbench.core.store import tensor_sha256, text_sha256
from workbench.load.sites import Sites

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge

# What may differ between two loads of one checkpoint without making it another model.
_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "_attn_implementation"}


class Model:
    """A Hugging Face causal LM with its tokenizer, its sites by canonical name, and a ledger of the edits applied to it.

    hf: the plain model, never wrapped or renamed.   tokenizer: a fast tokenizer.   ledger: edits, oldest first.
    views: modules of the bridges and nnsight views that were made of it and are still in use.
    """

    def __init__(self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if not tokenizer.is_fast:
            raise ModelError(f"{name}: the tokenizer has no token offsets; a fast tokenizer (tokenizer.json) is needed.")
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.ledger: list[Applied] = []
        self.views: list[MutableMapping[str, torch.nn.Module]] = []
        self._sites = Sites(hf)
        self._base: str | None = None
        self._versions: tuple[int, ...] = ()
        self.takes_positions = "position_ids" in signature(hf.forward).parameters

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.hf.parameters())
        edits = f", {len(self.ledger)} edit(s) applied" if self.ledger else ""
        return f"Model({self.name!r}, {type(self.hf).__name__}, {size:,} weights, {self.dtype}{edits})"

    @property
    def sites(self) -> Sites:
        """Activation sites and weight slices by canonical name; ModelError if no adapter knows the architecture."""
        return self._sites

    def text_key(self) -> str:
        """SHA-256 of how text becomes tokens: vocabulary, merges, special tokens and chat template."""
        backend = self.tokenizer.backend_tokenizer.to_str()  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        return text_sha256([backend, self.tokenizer.chat_template, self.tokenizer.eos_token])

    @property
    def device(self) -> torch.device:
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.dtype

    @property
    def n_layers(self) -> int:
        return self.hf.config.num_hidden_layers

    @property
    def d_model(self) -> int:
        return self.hf.config.hidden_size

    @property
    def n_heads(self) -> int:
        return self.hf.config.num_attention_heads

    @property
    def d_mlp(self) -> int:
        return len(self.sites.value_vectors(0).indices())

    @property
    def d_vocab(self) -> int:
        return self.hf.config.vocab_size

    @property
    def context(self) -> int:
        """Longest input in tokens."""
        return self.hf.config.max_position_embeddings

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by HF name; tied weights appear once."""
        return {name: tuple(p.shape) for name, p in self.hf.named_parameters()}

    def settings(self) -> dict[str, Any]:
        """The configuration as far as it decides what the model computes: not where it came from, nor its dtype."""
        return {key: value for key, value in self.hf.config.to_dict().items() if key not in _VOLATILE}

    def base_fingerprint(self) -> str:
        """SHA-256 over config and weights as loaded, without the edits in the ledger; computed once.

        Raises: MismatchError if the weights were changed, with edits applied, by something that is not in the ledger.
        """
        versions = self._parameter_versions()
        if self._base is None or (versions != self._versions and not self.ledger):
            config = self.settings()
            weights = {name: tensor_sha256(p) for name, p in self.hf.named_parameters()}
            self._base = text_sha256([json.loads(json.dumps(config, default=str)), weights])
            self._versions = versions
        elif versions != self._versions:
            raise MismatchError(
                f"{self.name}: the weights were changed by something else while {len(self.ledger)} edit(s) were applied. "
                "Undo the edits before training or loading weights into the model."
            )
        return self._base

    def fingerprint(self) -> str:
        """Hash of the model as it is now: the base fingerprint, or a hash of it and the applied edits in order.

        Values are hashed, not storage: one checkpoint loaded in bfloat16 and in float32 has one fingerprint.
        In-place changes are noticed through PyTorch's version counters. Writes through `.data` bypass them; only `core.delta`
        and `train`, which put the bits back, write so.
        """
        base = self.base_fingerprint()
        return text_sha256([base, *(line.delta.id for line in self.ledger)]) if self.ledger else base

    def _parameter_versions(self) -> tuple[int, ...]:
        return tuple(v for p in self.hf.parameters() for v in (p._version, p.data_ptr()))

    def generate(self, prompts: str | Sequence[str], *, max_new_tokens: int = 64) -> list[str]:
        """Greedy answers through Hugging Face's `generate`; see `trace.generate.generate`."""
        from workbench.trace.generate import generate

        return generate(self, prompts, max_new_tokens=max_new_tokens)

    def bridge(self) -> "TransformerBridge":
        """A TransformerLens view that shares the weights; see `trace.views.as_bridge`."""
        from workbench.trace.views import as_bridge

        return as_bridge(self)

    def nnsight(self) -> "TransformersModel":
        """An nnsight view that shares the weights; see `trace.views.as_nnsight`."""
        from workbench.trace.views import as_nnsight

        return as_nnsight(self)


def wrap(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str = "live model") -> Model:
    """A Model around a live Hugging Face model; no weight is copied or moved."""
    _check_weights(hf, name)
    return Model(hf, tokenizer, name)


def load(
    source: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Model:
    """Load a causal LM from a folder or the Hugging Face hub, or wrap a live one.

    Args:
        source: a folder with config.json, *.safetensors and a tokenizer; a hub id "owner/name"; or a live model.
        tokenizer: required with a live model, otherwise read beside the weights.
        device: "auto" (CUDA if there is one), "cpu", "cuda:1", ...
        dtype: "auto" is float32 on the CPU and the checkpoint's own dtype on a GPU.
        allow_pickle: read *.bin weights where there is no safetensors file (with torch's weights_only loader).
        trust_remote_code: run Python code that comes with the checkpoint.
    Raises: ModelError for a missing or foreign folder, a pickle, NaN weights, or a hub that cannot be reached.
    """
    if isinstance(source, PreTrainedModel):
        if tokenizer is None:
            raise ModelError("load: a live model needs its tokenizer: load(hf_model, tokenizer).")
        return wrap(source, tokenizer)
    name = str(source)
    place = pick_device(device)
    check_source(name, allow_pickle=allow_pickle)
    want: Any = ("auto" if place.type == "cuda" else torch.float32) if dtype == "auto" else pick_dtype(dtype)
    asked = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **asked)
        with _quiet():
            hf = AutoModelForCausalLM.from_pretrained(
                name, config=config, dtype=want, use_safetensors=None if allow_pickle else True, **asked
            )
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(name, **asked)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_explain(name, error)) from error
    _check_weights(hf, name)
    torch.nn.Module.to(hf, place)  # in place; transformers' own `to` has annotations no checker accepts
    return Model(hf, tokenizer, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar for reading shards, which would tear our own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_source(name: str, *, allow_pickle: bool = False) -> None:
    """ModelError unless `name` is a usable model folder or looks like a hub id."""
    folder = Path(name)
    if not folder.exists():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise ModelError(f"model {name!r}: no such folder, and not a hub id of the form owner/name.")
        return
    if not folder.is_dir():
        raise ModelError(f"model {name!r}: this is a file; give the folder that holds config.json and *.safetensors.")
    if not (folder / "config.json").exists():
        raise ModelError(f"model {name!r}: not a model folder, there is no config.json in it.")
    if list(folder.glob("*.safetensors")) or allow_pickle:
        return
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"model {name!r}: the weights are a pickle ({pickles[0]}), which can run code when read. Convert it to "
            "safetensors, or pass allow_pickle=True (read with weights_only=True) if you trust it."
        )
    raise ModelError(f"model {name!r}: there is a config.json but no *.safetensors in the folder.")


def _explain(name: str, error: Exception) -> str:
    """One sentence for what transformers says in many."""
    if not Path(name).exists():
        return (
            f"model {name!r}: there is no such folder here, and the Hugging Face hub could not be reached or does not have "
            "it. Check the spelling and the network (HF_HUB_OFFLINE must not be set), or give a local folder."
        )
    return f"model {name!r}: transformers cannot load it: {str(error).splitlines()[0]}"


def _check_weights(hf: PreTrainedModel, name: str) -> None:
    for parameter, value in hf.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"model {name!r}: {parameter} holds NaN or infinite weights; every number from it would be NaN.")
