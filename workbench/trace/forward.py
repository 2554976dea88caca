"""One forward pass over a padded batch: logits, or the log-probabilities of the answers."""

from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import InputError
from workbench.core.numerics import Forward, answer_logprobs
from workbench.load.batches import Batch
from workbench.load.models import Model


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


def forward(model: Model, batch: Batch) -> Forward:
    """Log-probability of every answer token, [batch pos] in nats (float32), 0 off the answer."""
    return Forward(answer_logprobs(logits(model, batch), batch.tokens, batch.answer), batch.answer)


def split(passed: Forward, at: int) -> tuple[Forward, Forward]:
    """The first `at` examples and the rest, of one pass over both."""
    return Forward(*(t[:at] for t in passed)), Forward(*(t[at:] for t in passed))
