"""The task that unlearning optimizes: a forget row and its retain partner, forwarded together.

    forget_weight * objective(forget row) + retain_weight * retain_term(retain row)

The reference model is the model before the first step. What it says about each row is computed once, before training.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import ShapeError
from workbench.core.numerics import Forward, answer_forward, mean_nll, permutation, token_mean
from workbench.load.batches import Encoded, collate
from workbench.load.models import Model
from workbench.trace.forward import logits, row_nll
from workbench.unlearn.cache import Kept
from workbench.unlearn.pdu import Dual

ExampleObjective = Callable[..., Float[Tensor, "batch"]]


_order = lru_cache(maxsize=64)(permutation)


class Weighting(NamedTuple):
    """What is added to what. retain_term: "none", "nll", "kl" or "states"."""

    forget: float
    retain: float
    retain_term: str


class Side(NamedTuple):
    """What the forget prompts are answered with, such as their own answers or refusals.

    before: what the reference said about these answers, or None if it is not needed.
    """

    rows: Sequence[Encoded]
    before: Kept | None = None


class Pairing:
    """Which rows are trained on together: a forget row, with one answer or two, and a retain partner; base of the tasks here.

    The partner changes from epoch to epoch, in an order that the seed alone decides.
    """

    def __init__(self, model: Model, sides: Sequence[Side], retain: Sequence[Encoded], weighting: Weighting, seed: int) -> None:
        self.model = model
        self.sides = sides
        self.retain = retain
        self.weighting = weighting
        self.seed = seed

    def __len__(self) -> int:
        return len(self.sides[0].rows)

    def partner(self, example: int, epoch: int) -> int:
        """The retain row of a forget row: the next one in the retain set, shuffled anew each time all of it was used."""
        again, place = divmod(epoch * len(self) + example, len(self.retain))
        return _order(len(self.retain), self.seed * 1_000_003 + again)[place]

    def partners(self, chosen: Sequence[int], epoch: int) -> list[int]:
        """The retain rows of some forget rows; none without a retain term."""
        return [] if self.weighting.retain_term == "none" else [self.partner(i, epoch) for i in chosen]

    def tokens(self, chosen: Sequence[int], epoch: int) -> int:
        """Tokens of the chosen pairs."""
        rows = [side.rows[i] for side in self.sides for i in chosen] + [self.retain[i] for i in self.partners(chosen, epoch)]
        return sum(len(row.tokens) for row in rows)

    def names(self, chosen: Sequence[int], epoch: int) -> list[str]:
        """Ids of the chosen forget rows, each with that of its retain partner where there is one: "f2 with r1"."""
        forget, partners = [self.sides[0].rows[i].id for i in chosen], self.partners(chosen, epoch)
        return [f"{one} with {self.retain[k].id}" for one, k in zip(forget, partners, strict=True)] if partners else forget


class Pairs(Pairing):
    """Forget rows, each with a retain partner; the losses are read from log-probabilities or logits.

    Args:
        sides: the forget rows with their answers; two for an objective that compares two answers.
        objective: of the policy's and the reference's pass on the first side, then on the second.
        known: distributions of the reference on the retain rows' answer tokens by row, for the KL term.
        keep_logits: the objective reads logits.
        dual: the multiplier of the retain term, in place of its weight.
    """

    def __init__(
        self,
        model: Model,
        sides: Sequence[Side],
        retain: Sequence[Encoded],
        *,
        objective: ExampleObjective,
        weighting: Weighting,
        known: dict[int, Float[Tensor, "_ d_vocab"]] | None = None,
        keep_logits: bool = False,
        dual: Dual | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, sides, retain, weighting, seed)
        self.objective = objective
        self.known = known or {}
        self.keep_logits = keep_logits
        self.dual = dual

    def losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """Loss of each chosen pair, from one forward pass over all its rows."""
        partners = self.partners(chosen, epoch)
        n = len(chosen)
        passed = self._forward(self._answers(chosen), partners)
        total = self._forget(chosen, passed)
        if partners:
            total = total + self._kept(partners, passed.part(n * len(self.sides), n * (len(self.sides) + 1)), epoch)
        return total

    def sharp_losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """The forget half alone, weighted."""
        del epoch
        return self._forget(chosen, self._forward(self._answers(chosen), []))

    def other_losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """The retain half alone, weighted; zeros without a retain term."""
        partners = self.partners(chosen, epoch)
        if not partners:
            return torch.zeros(len(chosen), device=self.model.device)
        return self._kept(partners, self._forward([], partners), epoch)

    def observed(self) -> dict[str, float]:
        """The multiplier and by how much the retain rows are above their bound, where there is one."""
        return {} if self.dual is None else self.dual.observed()

    def stepped(self) -> None:
        """Move the multiplier, where there is one."""
        if self.dual is not None:
            self.dual.step()

    def _answers(self, chosen: Sequence[int]) -> list[Encoded]:
        return [side.rows[i] for side in self.sides for i in chosen]

    def _forward(self, rows: list[Encoded], partners: Sequence[int]) -> Forward:
        batch = collate(rows + [self.retain[i] for i in partners], device=self.model.device)
        needed = (bool(rows) and self.keep_logits) or (bool(partners) and self.weighting.retain_term == "kl")
        return answer_forward(logits(self.model, batch), batch.tokens, batch.answer, keep_logits=needed)

    def _forget(self, chosen: Sequence[int], passed: Forward) -> Float[Tensor, "example"]:
        """The objective of each chosen forget row, weighted, from a pass whose first rows are theirs."""
        n = len(chosen)
        passes: list[Forward | None] = []
        for k, side in enumerate(self.sides):
            policy = passed.part(k * n, (k + 1) * n)
            passes += [policy, None if side.before is None else side.before.passed(chosen, policy)]
        return self.weighting.forget * self.objective(*passes)

    def _kept(self, partners: Sequence[int], kept: Forward, epoch: int) -> Float[Tensor, "example"]:
        """The retain term of each partner, weighted."""
        if self.dual is not None:
            return self.dual.loss(mean_nll(kept), epoch)
        if self.weighting.retain_term == "kl":
            return self.weighting.retain * divergence([self.known[i] for i in partners], kept)
        return self.weighting.retain * mean_nll(kept)


def divergence(reference: Sequence[Float[Tensor, "_ d_vocab"]], policy: Forward) -> Float[Tensor, "example"]:
    """Mean over a row's answer tokens of KL(reference || policy) = sum_v q (ln q - ln p), in nats; >= 0.

    TOFU's code averages over all positions, prompt and padding included; this averages over the answer alone. -sum_v p ln q, which
    WAGLE's and SOUL's code minimizes, is the other direction and has no entropy term.

    Args: reference: its log-probabilities at the answer tokens of each row.   policy: a pass on these rows, with logits.
    Raises: ShapeError for a pass without logits.
    """
    if policy.logits is None:
        raise ShapeError("divergence: the policy's pass has no logits; make it with keep_logits=True.")
    before, now = torch.cat(list(reference)).to(policy.logits.device), policy.logits.log_softmax(-1)
    return token_mean((before.exp() * (before - now)).sum(-1), policy.mask)


def set_nll(model: Model, rows: Sequence[Encoded], *, batch_tokens: int = 4096) -> float:
    """Mean over rows of the mean NLL per answer token, in nats (accumulated in float64)."""
    if not rows:
        raise ShapeError("set_nll: there are no rows.")
    return float(row_nll(model, rows, batch_tokens=batch_tokens).mean())
