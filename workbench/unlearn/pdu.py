"""Primal-dual unlearning: flat logits on the forget rows, under a constraint on the retain rows that a dual variable enforces."""

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import InputError
from workbench.core.numerics import Forward, token_mean
from workbench.core.registry import objective
from workbench.unlearn.targets import logits_of

SLACK = 0.05
"""What epsilon allows the retain NLL to rise, in nats per token, where it is not given."""


@objective(retain="nll", reads="logits", procedure="dual")
def pdu(
    policy: Forward,
    reference: Forward | None = None,
    *,
    epsilon: float | None = None,
    dual_rate: float = 1.0,
    dual_warmup: int = 0,
) -> Float[Tensor, "batch"]:
    """Primal-dual unlearning: the gap between the largest and the mean logit, squared, under a bound on the retain NLL.

    forget_weight * (1/|y|) sum_t (max_v z_t(v) - mean_v z_t(v))^2 + lambda * (NLL(retain) - epsilon)

    This function is the mean over the answer's tokens; the rest is `Dual`, whose lambda starts at `retain_weight`.

    Args:
        policy: forward pass with logits.
        reference: not used.
        epsilon: bound on the mean NLL of the retain rows, in nats per token; None for what it is before training, plus 0.05.
        dual_rate: eta of the dual step, > 0, per nat.   dual_warmup: epochs before lambda first moves.
    Returns: loss of each example, [batch], logits squared, >= 0; 0 where all tokens are equally likely.
    Raises: ShapeError if the pass lacks logits.
    Reference: Entesari et al. 2025, arXiv:2506.05314. OpenUnlearning's code reads logits where the unshifted labels are: not those
        of the first answer token, but some behind the last; and it moves lambda in every micro-step and on every process by itself.
    """
    del reference, epsilon, dual_rate, dual_warmup  # the rest is the retain half, see `Dual`
    values = logits_of("pdu", policy).values
    return token_mean((values.amax(-1) - values.mean(-1)).square(), policy.mask)


class Dual:
    """The dual variable of the constraint: mean NLL of the retain rows <= epsilon.

    lambda <- max(0, lambda + rate * (mean over the step's retain rows of NLL - epsilon)), once after every optimizer step.

    Args:
        epsilon: the bound, nats per token.   start: lambda at first, >= 0.   rate: > 0, per nat.
        warmup: epochs in which lambda stays as it is.
    Raises: InputError for a number that cannot be.
    """

    def __init__(self, epsilon: float, *, start: float = 1.0, rate: float = 1.0, warmup: int = 0) -> None:
        for name, value, least in (("retain_weight", start, 0), ("dual_rate", rate, 0), ("dual_warmup", warmup, 0)):
            if not value >= least or (name == "dual_rate" and value == 0):
                raise InputError(f"pdu: {name} is {value}, expected a number above 0 (retain_weight and dual_warmup: 0 or more).")
        self.epsilon = epsilon
        self.value = start
        self.rate = rate
        self.warmup = warmup
        self._seen: list[Tensor] = []
        self._epoch = 0

    def loss(self, nll: Float[Tensor, "example"], epoch: int) -> Float[Tensor, "example"]:
        """lambda * (NLL - epsilon) of each retain example of a step."""
        self._seen.append(nll.detach().double())
        self._epoch = epoch
        return self.value * (nll - self.epsilon)

    def observed(self) -> dict[str, float]:
        """lambda of the present step, and by how much its retain rows so far are above the bound, in nats per token."""
        return {"lambda": self.value, "retain_excess": self._excess()} if self._seen else {}

    def step(self) -> None:
        """Move lambda by what the retain rows of the whole step were above the bound."""
        if self._seen and self._epoch >= self.warmup:
            self.value = max(0.0, self.value + self.rate * self._excess())
        self._seen = []

    def _excess(self) -> float:
        return float(torch.cat(self._seen).mean()) - self.epsilon
