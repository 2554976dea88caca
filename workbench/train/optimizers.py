"""The rules that move the masters, and what one of them remembers of the gradients it has seen."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.core.delta import Delta
from workbench.core.errors import InputError, unknown
from workbench.load.models import Model
from workbench.train.masters import Master, precise_dtype

RULES = ("adamw", "sign")


class Checkpoint(NamedTuple):
    """delta: the weights after an epoch, from those the model had before training.   lr: mean rate of that epoch's steps."""

    delta: Delta
    lr: float


class Moments(NamedTuple):
    """What Adam remembers after `step` steps, by parameter and of its shape, float32 (float64 of a float64 model); 0 where frozen.

    first: m_t = b1 m_(t-1) + (1 - b1) g_t.   second: v_t = b2 v_(t-1) + (1 - b2) g_t^2.   Neither is corrected for starting at 0.
    """

    first: dict[str, Tensor]
    second: dict[str, Tensor]
    step: int


class SignDescent(torch.optim.Optimizer):
    """w <- (1 - lr * weight_decay) w - lr sign(g): every weight with a gradient moves by the same amount.

    Reference: Bernstein et al. 2018, arXiv:1802.04434, without momentum.
    """

    def __init__(self, params: Sequence[Tensor], *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        if closure is not None:
            raise InputError("SignDescent: it takes no closure; compute the gradient before the step.")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(p.grad.sign(), alpha=-group["lr"])


def check_rule(rule: str) -> None:
    """UnknownNameError for a rule nobody knows."""
    if rule not in RULES:
        raise unknown("optimizer", rule, RULES)


def check_moments(rule: str, *, adapted: bool) -> None:
    """InputError if moments are wanted of a rule that has none, or of adapters, where they are not those of the weights."""
    if rule != "adamw":
        raise InputError(f"train: moments are Adam's; with optimizer={rule!r} there are none to keep.")
    if adapted:
        raise InputError(
            "train: moments are kept by weight, and with lora no weight of the model has any; leave moments or lora out."
        )


def make(rule: str, made: Sequence[Master], *, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer of this name over the masters."""
    leaves = [m.master for m in made]
    if rule == "adamw":
        return torch.optim.AdamW(leaves, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    return SignDescent(leaves, lr=lr, weight_decay=weight_decay)


def adam_moments(optimizer: torch.optim.Optimizer, made: Sequence[Master], model: Model) -> Moments:
    """Adam's averages of every floating-point parameter of the model, copied; 0 for one of which no weight may move."""
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    for name, parameter in model.hf.named_parameters():
        if parameter.is_floating_point():
            precise = precise_dtype(parameter)
            first[name], second[name] = (torch.zeros(parameter.shape, dtype=precise, device=parameter.device) for _ in range(2))
    step = 0
    for m in made:
        state = optimizer.state[m.master]
        if state:  # a parameter that no example reached has none
            step = int(state["step"])
        for key, kept in (("exp_avg", first), ("exp_avg_sq", second)):
            if state:
                at = slice(None) if m.index is None else m.index
                kept[m.name].view(-1)[at] = state[key].detach()
    return Moments(first, second, step)
