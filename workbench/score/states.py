"""What a model says at the positions that predict an answer: final hidden state and logits, from one forward pass.

The final hidden state is the input of the unembedding, after the final norm. The unembedding is shown these positions alone, so
that its cost follows the answers and not prompts and padding; what the model does to logits behind it (Gemma-2's softcap) still
happens.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.core.errors import ModelError, ShapeError
from workbench.core.numerics import check_finite, wide
from workbench.load.batches import Batch
from workbench.load.models import Model
from workbench.trace.forward import logits


class Answers(NamedTuple):
    """The answer tokens of a padded batch, row after row.

    hidden: final hidden state at the position before the token, which predicts it, at least float32.   logits: there, in the
    model's dtype.   target: the token.   lengths: answer tokens of every row.
    """

    hidden: Float[Tensor, "answer_token d_hidden"]
    logits: Float[Tensor, "answer_token d_vocab"]
    target: Int[Tensor, "answer_token"]
    lengths: list[int]

    def hidden_sums(self) -> Float[Tensor, "row d_hidden"]:
        """Each row's hidden states, added up over its answer tokens; at least float32."""
        return torch.stack([part.sum(0) for part in self.hidden.split(self.lengths)])

    def last_hidden(self) -> Float[Tensor, "row d_hidden"]:
        """The hidden state that predicts each row's last answer token."""
        return torch.stack([part[-1] for part in self.hidden.split(self.lengths)])

    def by_row(self) -> Iterator[tuple[Float[Tensor, "token d_vocab"], Int[Tensor, "token 1"]]]:
        """Logits of one row after the other, at least float32, and its tokens; so only one row is wide at a time."""
        for scores, target in zip(self.logits.split(self.lengths), self.target.split(self.lengths), strict=True):
            yield wide(scores), target[:, None]

    def logprobs(self) -> Float[Tensor, "row"]:
        """ln p(answer | prompt) of each row, in nats, float64: the sum over its tokens.

        Raises: NumericsError if one is not finite.
        """
        each = ((scores.gather(-1, target)[:, 0] - scores.logsumexp(-1)) for scores, target in self.by_row())
        found = torch.stack([row.double().sum() for row in each])
        check_finite("log-probabilities of answers (half precision may have overflowed; try dtype='float32')", found)
        return found


def answers(model: Model, batch: Batch) -> Answers:
    """Final hidden states and logits at the positions that predict the answers of a batch.

    hidden[t] = h[b, p - 1] and logits[t] = W_U hidden[t] for the t-th true entry (b, p) of `batch.answer`, in row order.

    Raises: ShapeError if an answer starts at position 0, where nothing predicts it, or a row has none; ModelError if the model
        has no unembedding that reads [batch pos d_hidden] once; NumericsError if a hidden state is not finite;
        InputError if the model is in training mode.
    """
    lengths = batch.answer.sum(-1)
    if bool(batch.answer[:, 0].any()) or bool((lengths == 0).any()):
        raise ShapeError(
            "answers: a row's answer is empty or starts at position 0, where nothing predicts it. Give the row a prompt and an "
            "answer, or use a tokenizer with a beginning-of-text token."
        )
    predicts = batch.answer[:, 1:]
    seen: list[Tensor] = []

    def shorten(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        hidden = given[0]
        if hidden.ndim != 3 or hidden.shape[:2] != batch.tokens.shape:
            raise ModelError(
                f"answers: the unembedding of {model.name} reads {tuple(hidden.shape)}, expected [batch pos d_hidden]."
            )
        seen.append(hidden[:, :-1][predicts])
        return (seen[-1][None], *given[1:])

    module = model.hf.get_output_embeddings()
    if not isinstance(module, nn.Module):
        raise ModelError(f"answers: {type(model.hf).__name__} does not say which module is its unembedding.")
    handle = module.register_forward_pre_hook(shorten)
    try:
        said = logits(model, batch)
    finally:
        handle.remove()
    if len(seen) != 1 or said.shape[:2] != (1, len(seen[0])):
        raise ModelError(f"answers: {type(model.hf).__name__} ran its unembedding {len(seen)} times; expected one pass over all.")
    hidden = wide(seen[0])
    check_finite(f"final hidden states of {model.name} (half precision may have overflowed; try dtype='float32')", hidden)
    return Answers(hidden, said[0], batch.tokens[:, 1:][predicts], lengths.tolist())
