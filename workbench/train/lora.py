"""Low-rank adapters in place of the weights: what `fit(..., lora=Lora())` trains, and the low-rank change that comes of it.

A layer y = W x becomes y = W x + (alpha / rank) B A x with A [rank, in] and B [out, rank]; W is frozen. B starts at zero, so that
the model starts as it was. `peft` builds the layers, on the plain Hugging Face model; on the way out the model has its own modules
again, and the adapters are a low-rank change of W, which can be applied, undone, saved, composed and exported like any other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.core.change import Change, LowRank
from workbench.core.delta import Delta
from workbench.core.errors import InputError, ModelError, missing_package, unknown
from workbench.core.numerics import check_finite
from workbench.core.records import Provenance
from workbench.load.models import Model
from workbench.train.masters import Master, kept_flags, whole

NAME = "workbench"
"""Of the adapter, among those peft can hold."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: rank and alpha; the change of a weight is (alpha / rank) B A.

    targets: modules by the end of their name, such as ("q_proj", "mlp.down_proj"); None for every linear layer but the output head.

    There is no dropout: a policy that equals its reference must score as equal.
    Reference: Hu et al. 2021, arXiv:2106.09685. peft's `use_rslora`, which divides by sqrt(rank), is another scale.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise InputError(f"Lora: rank is {self.rank!r}, expected a whole number of at least 1.")
        if not (isinstance(self.alpha, int | float) and self.alpha > 0):
            raise InputError(f"Lora: alpha is {self.alpha!r}, expected a positive number.")
        if isinstance(self.targets, str) or (self.targets is not None and not self.targets):
            raise InputError(f"Lora: targets is {self.targets!r}, expected the ends of module names, such as ('q_proj',), or None.")
        if self.targets is not None:
            object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def scaling(self) -> float:
        """What B A is multiplied with."""
        return self.alpha / self.rank


@dataclass(frozen=True, eq=False)
class Adapter:
    """The adapter of one weight. down: A [rank, in].   up: B [out, rank].   turned: the weight is [in, out], as GPT-2 stores it."""

    name: str
    shape: tuple[int, ...]
    down: Master
    up: Master
    scaling: float
    turned: bool

    def change(self) -> Change:
        """What the adapter adds to its weight: scaling B A, float32 on the CPU; transposed where the weight is."""
        left, right = self.scaling * self.up_matrix().float().cpu(), self.down_matrix().float().cpu()
        return LowRank(right.T.contiguous(), left.T.contiguous(), self.shape) if self.turned else LowRank(left, right, self.shape)

    def down_matrix(self) -> Tensor:
        """A, [rank, in]."""
        return self.down.master.detach().view(self.down.weight.shape)

    def up_matrix(self) -> Tensor:
        """B, [out, rank]."""
        return self.up.master.detach().view(self.up.weight.shape)


@contextmanager
def adapters(model: Model, lora: Lora) -> Iterator[list[Adapter]]:
    """The model with adapters in its layers; on exit its own modules, flags and gradients are back, also after an exception.

    A is drawn from torch's global generator, by peft's rule (uniform in +- 1 / sqrt(in)); `fit` seeds it. A and B are float32, or
    float64 of a float64 model, whatever the model's dtype.
    Inside, parameters have peft's names and the fingerprint is not the model's: ask for neither there.

    Raises: MissingPackageError without peft; UnknownNameError for a target that is no linear layer; InputError for a target whose
        weight is tied to another, or is hooked; ModelError if the model has adapters of its own.
    """
    try:
        import peft
    except ImportError as error:
        raise missing_package("peft", "training low-rank adapters", "peft") from error
    hf: Any = model.hf
    if hasattr(hf, "peft_config"):
        raise ModelError(f"{model.name}: it has adapters already; merge them into the weights first (peft's merge_and_unload).")
    layers = target_layers(model, lora.targets)
    turned = any(isinstance(layer, Conv1D) for layer in layers.values())
    alpha: Any = lora.alpha  # peft divides it, so it need not be the whole number its annotation asks for
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=alpha, target_modules=list(layers), lora_dropout=0.0, bias="none", fan_in_fan_out=turned
    )
    names = {id(parameter): name for name, parameter in hf.named_parameters()}
    children = [(module, dict(module._modules)) for module in hf.modules()]
    with kept_flags(model):
        try:
            peft.inject_adapter_in_model(config, hf, adapter_name=NAME)
            yield [_adapter(names[id(layer.weight)], hf.get_submodule(path), layer) for path, layer in layers.items()]
        finally:
            for module, own in children:
                module._modules.clear()
                module._modules.update(own)
            vars(hf).pop("peft_config", None)


def low_rank(trained: Sequence[Adapter], provenance: Provenance) -> Delta:
    """The adapters as a Delta; those whose B is still zero change nothing and are left out.

    Raises: NumericsError naming the first weight whose adapter became NaN or infinite.
    """
    for one in trained:
        for matrix in (one.down_matrix(), one.up_matrix()):
            check_finite(f"train: the adapter of {one.name}", matrix)
    return Delta({one.name: one.change() for one in trained if bool(one.up_matrix().any())}, provenance)


def target_layers(model: Model, targets: Sequence[str] | None = None) -> dict[str, nn.Linear | Conv1D]:
    """The layers that adapters are put into, by module path: all linear ones but the output head, or those that `targets` names.

    Raises: UnknownNameError for a target that fits no linear layer; InputError if a weight is tied, or a layer hooked.
    """
    hf: Any = model.hf
    head = hf.get_output_embeddings()
    linear = {path: module for path, module in hf.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    if targets is None:
        found = {path: module for path, module in linear.items() if module is not head}
    else:
        for target in targets:
            if not any(_ends(path, target) for path in linear):
                raise unknown(
                    "target of Lora, the end of a linear layer's name", target, {path.rsplit(".", 1)[-1] for path in linear}
                )
        found = {path: module for path, module in linear.items() if any(_ends(path, target) for target in targets)}
    if not found:
        raise InputError(f"Lora: {model.name} has no linear layer besides its output head; give targets.")
    owners: dict[int, list[str]] = {}
    for name, parameter in hf.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for path, module in found.items():
        shared = owners[id(module.weight)]
        if len(shared) > 1:
            raise InputError(
                f"Lora: {path} shares its weight ({', '.join(shared)}), so a change of one is a change of both; leave it out."
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise InputError(f"Lora: {path} is hooked, and a hook would not see the adapter; undo the edits that hook it first.")
    return found


def _ends(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _adapter(name: str, layer: Any, base: nn.Module) -> Adapter:
    """The masters of a layer that peft has built, its adapter in full precision and in evaluation mode like the rest."""
    layer.eval()
    down, up = layer.lora_A[NAME], layer.lora_B[NAME]
    for part in (down, up):
        if part.weight.dtype != torch.float64:
            part.float()
    weight: Any = base.weight
    masters = whole(f"{name} (A)", down.weight), whole(f"{name} (B)", up.weight)
    return Adapter(name, tuple(weight.shape), *masters, scaling=float(layer.scaling[NAME]), turned=isinstance(base, Conv1D))
