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
from torch.nn.utils.rnn import pad_sequence

from workbench.core.errors import ShapeError
from workbench.core.numerics import Forward, answer_length, answer_logits, answer_logprobs, mean_nll, permutation
from workbench.core.runtime import plan_memory
from workbench.load.batches import Batch, Encoded, by_length, collate
from workbench.load.models import Model
from workbench.trace.forward import logits, row_nll, split

ExampleObjective = Callable[[Forward, Forward | None], Float[Tensor, "batch"]]


_order = lru_cache(maxsize=64)(permutation)


class Weighting(NamedTuple):
    """What is added to what. retain_term: "none", "nll" or "kl"."""

    forget: float
    retain: float
    retain_term: str


class Pairs:
    """Forget rows, each with a retain partner that changes from epoch to epoch in an order fixed by the seed.

    Args:
        references: log-probability of each forget row's answer tokens under the reference, or None if not needed.
        known: distributions of the reference on the retain rows' answer tokens by row, for the KL term.
    """

    def __init__(
        self,
        model: Model,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded],
        *,
        objective: ExampleObjective,
        weighting: Weighting,
        references: Sequence[Float[Tensor, "_"]] | None = None,
        known: dict[int, Float[Tensor, "_ d_vocab"]] | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.forget = forget
        self.retain = retain
        self.objective = objective
        self.weighting = weighting
        self.references = references
        self.known = known or {}
        self.seed = seed

    def __len__(self) -> int:
        return len(self.forget)

    def partner(self, example: int, epoch: int) -> int:
        """The retain row of a forget row: the next one in the retain set, shuffled anew each time all of it was used."""
        again, place = divmod(epoch * len(self.forget) + example, len(self.retain))
        return _order(len(self.retain), self.seed * 1_000_003 + again)[place]

    def tokens(self, chosen: Sequence[int], epoch: int) -> int:
        """Tokens of the chosen pairs."""
        both = sum(len(self.forget[i].tokens) for i in chosen)
        if self.weighting.retain_term != "none":
            both += sum(len(self.retain[self.partner(i, epoch)].tokens) for i in chosen)
        return both

    def losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """Loss of each chosen pair, from one forward pass over both halves."""
        term = self.weighting.retain_term
        partners = [] if term == "none" else [self.partner(i, epoch) for i in chosen]
        rows = [self.forget[i] for i in chosen] + [self.retain[i] for i in partners]
        batch = collate(rows, device=self.model.device)
        out = logits(self.model, batch)
        passed = Forward(answer_logprobs(out, batch.tokens, batch.answer), batch.answer)
        policy, kept = split(passed, len(chosen))
        total = self.weighting.forget * self.objective(policy, self._reference(chosen, policy))
        if term == "nll":
            total = total + self.weighting.retain * mean_nll(kept)
        elif term == "kl":
            now = answer_logits(out[len(chosen) :], kept.mask).log_softmax(-1)
            total = total + self.weighting.retain * self._divergence(now, kept, partners)
        return total

    def _reference(self, chosen: Sequence[int], policy: Forward) -> Forward | None:
        """The reference's pass on the same batch, put together from what was kept."""
        return None if self.references is None else reference_pass([self.references[i] for i in chosen], policy)

    def _divergence(self, now: Tensor, kept: Forward, partners: list[int]) -> Float[Tensor, "example"]:
        """Mean over a retain row's answer tokens of KL(reference || policy), in nats.

        TOFU's code averages over all positions, prompt and padding included; this averages over the answer alone.
        """
        before = torch.cat([self.known[i] for i in partners]).to(now.device)
        each = (before.exp() * (before - now)).sum(-1)
        length = answer_length(kept.mask)
        return pad_sequence(list(each.split(length.tolist())), batch_first=True).sum(-1) / length


def reference_pass(rows: Sequence[Float[Tensor, "_"]], policy: Forward) -> Forward:
    """The reference's pass on the policy's batch, put together from what `answer_logprob_rows` kept of each of its rows."""
    kept = torch.cat(list(rows)).to(policy.logprob.device)
    return Forward(torch.zeros_like(policy.logprob).masked_scatter(policy.mask, kept), policy.mask)


@torch.no_grad()
def answer_logprob_rows(model: Model, rows: Sequence[Encoded], *, batch_tokens: int = 4096) -> list[Float[Tensor, "_"]]:
    """Log-probability of every answer token of each row under `model`, one tensor a row, in nats."""
    kept: dict[int, Tensor] = {}
    for chosen, batch in _batches(model, rows, batch_tokens):
        found = answer_logprobs(logits(model, batch), batch.tokens, batch.answer)
        kept |= {i: found[k][batch.answer[k]] for k, i in enumerate(chosen)}
    return [kept[i] for i in range(len(rows))]


@torch.no_grad()
def answer_distributions(
    model: Model, rows: Sequence[Encoded], wanted: Sequence[int], *, batch_tokens: int = 4096
) -> dict[int, Float[Tensor, "_ d_vocab"]]:
    """Log-probabilities over the whole vocabulary at every answer token of the wanted rows, float32 on the CPU.

    Raises: MemoryPlanError if they would not fit: 4 bytes x answer tokens x vocabulary.
    """
    tokens = sum(len(rows[i].tokens) - rows[i].start for i in wanted)
    cure = "Use retain_term='nll', or fewer retain rows or epochs."
    plan_memory("unlearn: the KL term's reference", 4 * tokens * model.d_vocab, torch.device("cpu"), cure=cure)
    kept: dict[int, Tensor] = {}
    for chosen, batch in _batches(model, [rows[i] for i in wanted], batch_tokens):
        found = answer_logits(logits(model, batch), batch.answer).log_softmax(-1).cpu()
        pieces = found.split(batch.answer.sum(-1).tolist())
        kept |= {wanted[i]: piece for i, piece in zip(chosen, pieces, strict=True)}
    return kept


def set_nll(model: Model, rows: Sequence[Encoded], *, batch_tokens: int = 4096) -> float:
    """Mean over rows of the mean NLL per answer token, in nats (accumulated in float64)."""
    if not rows:
        raise ShapeError("set_nll: there are no rows.")
    return float(row_nll(model, rows, batch_tokens=batch_tokens).mean())


def _batches(model: Model, rows: Sequence[Encoded], batch_tokens: int) -> list[tuple[list[int], Batch]]:
    groups = by_length(rows, max_tokens=batch_tokens)
    return [(chosen, collate([rows[i] for i in chosen], device=model.device)) for chosen in groups]
