"""One forward pass over a padded batch: logits, log-probabilities of answers, or activations; and the NLL of any number of rows."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.core.errors import DataError, InputError
from workbench.core.numerics import Forward, answer_forward, mean_nll
from workbench.load.batches import Batch, Encoded, by_length, collate
from workbench.load.models import Model
from workbench.trace.hooks import patch


def check_eval(model: Model) -> None:
    """InputError if the model is in training mode."""
    if model.hf.training:
        raise InputError("the model is in training mode, so dropout would be on; call model.hf.eval() first.")


def logits(model: Model, batch: Batch) -> Float[Tensor, "batch pos d_vocab"]:
    """The model's logits in its own dtype; padded on either side gives what one by one gives.

    Raises: InputError if the model is in training mode, where dropout would make every number random.
    """
    check_eval(model)
    inputs = {"input_ids": batch.tokens, "attention_mask": batch.attention.long()}
    if model.takes_positions:
        inputs["position_ids"] = batch.positions
    return model.hf(**inputs, use_cache=False).logits


def forward(model: Model, batch: Batch, *, keep_logits: bool = False) -> Forward:
    """Log-probability of every answer token, [batch pos] in nats (float32), 0 off the answer; with its logits if asked for."""
    return answer_forward(logits(model, batch), batch.tokens, batch.answer, keep_logits=keep_logits)


class _Enough(Exception):
    """The site has been read; raised out of the model's forward pass."""


def states(model: Model, batch: Batch, site: str) -> Float[Tensor, "batch pos d"]:
    """The activation at a site, such as "blocks.3.resid_post", in the model's dtype and with its graph; nothing behind it is run.

    Raises: UnknownNameError for the site; InputError if the model is in training mode.
    """
    found: list[Tensor] = []

    def take(value: Tensor) -> None:
        found.append(value)
        raise _Enough

    with patch(model, {site: take}), suppress(_Enough):
        logits(model, batch)
    return found[0]


def check_predicted(rows: Sequence[Encoded]) -> None:
    """DataError naming the rows whose answer starts at position 0, where nothing predicts it."""
    bare = [repr(row.id) for row in rows if row.start == 0]
    if bare:
        listed = ", ".join(bare[:5]) + (" ..." if len(bare) > 5 else "")
        raise DataError(
            f"row {listed}: the answer starts at position 0, where nothing predicts it. Give it a prompt, or use a tokenizer with "
            "a beginning-of-text token."
        )


@torch.no_grad()
def row_nll(model: Model, rows: Sequence[Encoded], *, batch_tokens: int = 4096) -> Float64[Tensor, "row"]:
    """Mean negative log-likelihood per answer token of every row, nats per token, in the rows' order, on the CPU.

    -(1/|y|) sum_t ln p(y_t | x, y_<t), summed in float64. No rows give no values.

    Args: batch_tokens: largest padded batch, in tokens.
    Raises: DataError naming rows whose answer nothing predicts; InputError for a bad batch_tokens or a model in training mode;
        NumericsError if a log-probability is not finite.
    """
    check_predicted(rows)
    values = torch.empty(len(rows), dtype=torch.float64)
    for chosen in by_length(rows, max_tokens=batch_tokens):
        passed = forward(model, collate([rows[i] for i in chosen], device=model.device))
        values[chosen] = mean_nll(passed._replace(logprob=passed.logprob.double())).cpu()
    return values


def split(passed: Forward, at: int) -> tuple[Forward, Forward]:
    """The first `at` examples and the rest, of one pass over both."""
    return passed.part(0, at), passed.part(at, len(passed.mask))
