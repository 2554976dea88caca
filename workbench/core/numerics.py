"""Log-probabilities of answers, their reductions, seeds: written once, here.

Conventions, for every function of the package:
    tokens  [batch pos]   token ids of prompt and answer, padded on either side.
    answer  [batch pos]   bool, true where `tokens` is part of the answer (its end-of-text token included).
    logprob [batch pos]   float32 (float64 in, float64 out); ln p(tokens[:, p] | tokens before p) where `answer`, 0 elsewhere.
The label shift happens in `answer_logprobs` and nowhere else.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.core.errors import NumericsError, ShapeError


class Forward(NamedTuple):
    """What a forward pass says about a batch of answers.

    logprob: [batch pos], nats, 0 off the answer.   mask: [batch pos], true on the answer.
    logits: [answer_token d_vocab], those that predict each answer token, rows one after another; None unless they were asked for.
    target: [answer_token], the ids of these tokens; there with the logits.
    """

    logprob: Float[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    logits: Float[Tensor, "answer_token d_vocab"] | None = None
    target: Int[Tensor, "answer_token"] | None = None

    def part(self, first: int, last: int) -> "Forward":
        """The examples from `first` up to, without, `last`: views, no copies."""
        if self.logits is None or self.target is None:
            return Forward(self.logprob[first:last], self.mask[first:last])
        start, stop = int(self.mask[:first].sum()), int(self.mask[:last].sum())
        return Forward(self.logprob[first:last], self.mask[first:last], self.logits[start:stop], self.target[start:stop])


class States(NamedTuple):
    """Activations of a batch at one site.   hidden: [batch pos d_model].   mask: [batch pos], true where they count."""

    hidden: Float[Tensor, "batch pos d_model"]
    mask: Bool[Tensor, "batch pos"]


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged if it is already float32 or float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def answer_logits(
    logits: Float[Tensor, "batch pos d_vocab"], answer: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "answer_token d_vocab"]:
    """Logits that predict each answer token, in row order: position p - 1 predicts token p.

    Only these rows are ever turned to float32, so the cost follows the answers and not the padding.
    """
    if bool(answer[:, 0].any()):
        raise ShapeError(
            "answer_logits: an answer starts at position 0, where nothing predicts it. "
            "Give the row a prompt, or a tokenizer with a beginning-of-text token."
        )
    return wide(logits[:, :-1][answer[:, 1:]])


def answer_logprobs(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    answer: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos"]:
    """Log-probability of every answer token given all tokens before it, in nats.

    logprob[b, p] = logits[b, p-1, tokens[b, p]] - logsumexp_v logits[b, p-1, v]   where answer[b, p], else 0.

    Raises: ShapeError if an answer starts at position 0; NumericsError if a log-probability is not finite.
    """
    return answer_forward(logits, tokens, answer).logprob


def answer_forward(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    answer: Bool[Tensor, "batch pos"],
    *,
    keep_logits: bool = False,
) -> Forward:
    """What logits say about the answers: `answer_logprobs` and, with `keep_logits`, the logits they were read from.

    Raises: as `answer_logprobs`.
    """
    used = answer_logits(logits, answer)
    target = tokens[:, 1:][answer[:, 1:]]
    picked = used.gather(-1, target[:, None]).squeeze(-1) - used.logsumexp(-1)
    out = torch.zeros(tokens.shape, dtype=picked.dtype, device=picked.device)
    out = out.masked_scatter(answer, picked)
    if not bool(torch.isfinite(out).all()):
        row = int((~torch.isfinite(out)).any(-1).nonzero()[0])
        raise NumericsError(
            f"answer_logprobs: row {row} of the batch has a log-probability that is NaN or infinite. "
            "The weights may hold NaN, or half precision overflowed: try dtype='float32'."
        )
    return Forward(out, answer, used, target) if keep_logits else Forward(out, answer)


def answer_length(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch"]:
    """Number of answer tokens of each example; ShapeError if one has none."""
    length = mask.sum(-1)
    if bool((length == 0).any()):
        row = int((length == 0).nonzero()[0])
        raise ShapeError(f"row {row} of the batch has no answer token; was it cut off at the context length?")
    return length


def sequence_logprob(forward: Forward) -> Float[Tensor, "batch"]:
    """ln p(answer | prompt) of each example, in nats: the sum over the answer's tokens."""
    answer_length(forward.mask)
    return forward.logprob.sum(-1)


def mean_nll(forward: Forward) -> Float[Tensor, "batch"]:
    """Mean negative log-likelihood per answer token of each example, in nats per token.

    Each example counts once, however long. Hugging Face's `outputs.loss` instead averages over all tokens of the
    batch, so that long answers weigh more and the value depends on how rows were batched.
    """
    return -forward.logprob.sum(-1) / answer_length(forward.mask)


def token_mean(values: Float[Tensor, "token"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch"]:
    """Mean of each example's tokens, of values that stand in row order where `mask` is true.

    Each example counts once, however long; the order of summation is fixed, so the same seed gives the same bits on a GPU too.
    """
    return values.new_zeros(mask.shape).masked_scatter(mask, values).sum(-1) / answer_length(mask)


def check_finite(name: str, value: Tensor) -> None:
    """NumericsError naming `name` if any entry of `value` is NaN or infinite."""
    if not bool(torch.isfinite(value).all()):
        count = int((~torch.isfinite(value)).sum())
        raise NumericsError(f"{name}: {count:,} of {value.numel():,} values are NaN or infinite.")


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator of its own; nothing in the package draws from the global one."""
    return torch.Generator(device=device).manual_seed(seed)


def permutation(n: int, seed: int) -> list[int]:
    """A permutation of range(n), the same on every machine and version of torch."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    return order


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Run with torch's global generators seeded, and leave them as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
