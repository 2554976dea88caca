"""A low-rank Delta as a PEFT adapter folder, which `peft` loads onto the model it was trained on."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from workbench.core.change import LowRank
from workbench.core.delta import Delta
from workbench.core.errors import InputError, MismatchError, missing_package
from workbench.core.store import check_vacant, new_folder
from workbench.load.models import Model


def export_adapter(delta: Delta, model: Model, folder: str | Path) -> None:
    """Write a low-rank Delta as a PEFT adapter: adapter_config.json and adapter_model.safetensors.

    A is the right factor and B the left one with alpha = rank in every layer, so that peft's (alpha / rank) B A is the Delta; the
    ranks may differ from layer to layer, as they do after `compose`. peft adds B A x to W x and never forms W + B A, so its
    logits agree with those of the applied Delta up to rounding.

    Raises: InputError if a part of the Delta is not low rank, is no linear layer's weight, or is a hook, or if `folder` is not
        empty; MismatchError for another model's Delta; MissingPackageError without peft.
    """
    try:
        import peft
    except ImportError as error:
        raise missing_package("peft", "writing a PEFT adapter", "peft") from error
    if delta.provenance.model not in (model.base_fingerprint(), model.fingerprint()):
        raise MismatchError(
            f"export_adapter: the Delta belongs to model {delta.provenance.model[:12]}, but this one is "
            f"{model.base_fingerprint()[:12]}. Load the checkpoint it was trained on."
        )
    if delta.hooks or not delta.changes:
        what = f"changes {delta.hooks[0].site} by a hook" if delta.hooks else "is empty"
        raise InputError(f"export_adapter: {delta!r} {what}, which no adapter can hold; save the Delta itself.")
    check_vacant(folder)
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    turned = False
    for name, change in delta.changes.items():
        path = name.removesuffix(".weight")
        layer: Any = model.hf.get_submodule(path) if path != name else None
        if not isinstance(change, LowRank) or not isinstance(layer, torch.nn.Linear | Conv1D):
            raise InputError(
                f"export_adapter: the change of {name} is {type(change).__name__}; an adapter holds low-rank changes of linear "
                "layers, such as fit(..., lora=Lora()) makes. Use Delta.export for a whole checkpoint."
            )
        flip = isinstance(layer, Conv1D)
        turned |= flip
        up, down = (change.right.T, change.left.T) if flip else (change.left, change.right)
        tensors[f"base_model.model.{path}.lora_A.weight"] = down.contiguous().clone()
        tensors[f"base_model.model.{path}.lora_B.weight"] = up.contiguous().clone()
        ranks[path] = change.left.shape[1]
    rank = next(iter(ranks.values()))
    others = {path: each for path, each in ranks.items() if each != rank}
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, rank_pattern=others, alpha_pattern=dict(others), target_modules=list(ranks), lora_dropout=0.0,
        bias="none", fan_in_fan_out=turned, task_type="CAUSAL_LM", base_model_name_or_path=model.name, inference_mode=True,
    )  # fmt: skip
    with new_folder(folder) as aside:
        config.save_pretrained(str(aside))
        save_file(tensors, aside / "adapter_model.safetensors", metadata={"format": "pt"})
