"""What the reference said about rows, computed once before training: no second model is ever in memory."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.numerics import Forward, States, answer_logits, answer_logprobs, wide
from workbench.core.runtime import plan_memory
from workbench.load.batches import Batch, Encoded, by_length, collate
from workbench.load.models import Model
from workbench.trace.forward import logits, states


class Kept(NamedTuple):
    """logprobs: of every row's answer tokens, in nats.   logits: those that predict them, [_ d_vocab] a row; None if not needed."""

    logprobs: Sequence[Float[Tensor, "_"]]
    logits: Sequence[Float[Tensor, "_ d_vocab"]] | None = None

    def passed(self, chosen: Sequence[int], policy: Forward) -> Forward:
        """The reference's pass on the policy's batch, which holds the rows `chosen`."""
        made = reference_pass([self.logprobs[i] for i in chosen], policy)
        if self.logits is None:
            return made
        kept = torch.cat([self.logits[i] for i in chosen]).to(policy.logprob.device)
        return Forward(made.logprob, made.mask, kept, policy.target)


def keep(model: Model, rows: Sequence[Encoded], *, with_logits: bool = False) -> Kept:
    """What `model` says about the answers of rows.

    Raises: MemoryPlanError if logits would not fit.
    """
    if not with_logits:
        return Kept(answer_logprob_rows(model, rows))
    logits = answer_logit_rows(model, rows)
    targets = [torch.tensor(row.tokens[row.start :]) for row in rows]
    logprobs = [z.gather(-1, y[:, None]).squeeze(-1) - z.logsumexp(-1) for z, y in zip(logits, targets, strict=True)]
    return Kept(logprobs, logits)


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
def answer_logit_rows(
    model: Model,
    rows: Sequence[Encoded],
    *,
    normalized: bool = False,
    cure: str = "Use an objective that needs no logits of the reference, such as npo, or fewer forget rows.",
    batch_tokens: int = 4096,
) -> list[Float[Tensor, "_ d_vocab"]]:
    """Logits that predict every answer token of each row under `model`, one tensor a row, float32 on the CPU.

    Args: normalized: log-probabilities over the whole vocabulary in their place.   cure: what the message advises.
    Raises: MemoryPlanError if they would not fit: 4 bytes x answer tokens x vocabulary.
    """
    tokens = sum(len(row.tokens) - row.start for row in rows)
    plan_memory("unlearn: the reference's logits", 4 * tokens * model.d_vocab, torch.device("cpu"), cure=cure)
    kept: dict[int, Tensor] = {}
    for chosen, batch in _batches(model, rows, batch_tokens):
        found = answer_logits(logits(model, batch), batch.answer)
        pieces = (found.log_softmax(-1) if normalized else found).cpu().split(batch.answer.sum(-1).tolist())
        kept |= dict(zip(chosen, pieces, strict=True))
    return [kept[i] for i in range(len(rows))]


@torch.no_grad()
def state_rows(
    model: Model, rows: Sequence[Encoded], wanted: Sequence[int], *, site: str, positions: str, batch_tokens: int = 4096
) -> dict[int, Float[Tensor, "_ d_model"]]:
    """Activations at a site at the counted positions of the wanted rows, see `positions_of`; float32 on the CPU.

    Raises: MemoryPlanError if they would not fit: 4 bytes x positions x d_model.
    """
    tokens = sum(len(rows[i].tokens) for i in wanted)
    cure = "Use positions='answer', or fewer retain rows or epochs."
    plan_memory("unlearn: the reference's states", 4 * tokens * model.d_model, torch.device("cpu"), cure=cure)
    kept: dict[int, Tensor] = {}
    for chosen, batch in _batches(model, [rows[i] for i in wanted], batch_tokens):
        found, mask = wide(states(model, batch, site)), positions_of(batch, positions)
        kept |= {wanted[i]: found[k][mask[k]].cpu() for k, i in enumerate(chosen)}
    return kept


def positions_of(batch: Batch, positions: str) -> Tensor:
    """[batch pos], true where states count: at "all" tokens, the "answer"'s, or those "predicting" it: one place earlier."""
    if positions == "all":
        return batch.attention
    if positions == "answer":
        return batch.answer
    ahead = torch.zeros_like(batch.answer)
    ahead[:, :-1] = batch.answer[:, 1:]
    return ahead


def states_pass(rows: Sequence[Float[Tensor, "_ d_model"]], like: States) -> States:
    """The reference's states on a batch, put together from what `state_rows` kept of each of its rows; 0 elsewhere."""
    kept = torch.cat(list(rows)).to(like.hidden.device)
    made = torch.zeros(like.hidden.shape, dtype=kept.dtype, device=kept.device)
    made[like.mask] = kept
    return States(made, like.mask)


def _batches(model: Model, rows: Sequence[Encoded], batch_tokens: int) -> Iterator[tuple[list[int], Batch]]:
    for chosen in by_length(rows, max_tokens=batch_tokens):
        yield chosen, collate([rows[i] for i in chosen], device=model.device)
