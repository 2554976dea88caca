"""Numbers about one row, without another row to compare it with: loss, error norm (EL2N), gradient norm (GraNd), length.

They are the plain baselines of whatever ranks training data; each is one number a row and asks no retraining.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.numerics import check_finite
from workbench.core.records import Examples, Provenance
from workbench.core.registry import example_score
from workbench.core.row_scores import RowScores
from workbench.core.runtime import progress
from workbench.load.batches import Encoded, by_length, collate, encode_all
from workbench.load.models import Model
from workbench.score.states import Answers, answers
from workbench.trace.dots import gradient_norms
from workbench.trace.forward import check_predicted


@example_score
def loss(model: Model, rows: Examples, *, batch_tokens: int = 4096, side: str = "right", show: bool = False) -> RowScores:
    """Mean negative log-likelihood per answer token of each row, in nats per token.

    -(1/|y|) sum_t ln p(y_t | x, y_<t), end-of-text included where the tokenizer has one. Hugging Face's `outputs.loss` averages
    over all tokens of a batch instead, so that long answers weigh more.

    Args: batch_tokens: largest padded batch, in tokens.   side: of the padding, "right" or "left".
    Raises: DataError naming a row that is empty or too long, or whose answer nothing predicts, for it begins the row; InputError
        for a bad batch_tokens; NumericsError if a log-probability is not finite.
    """
    coded = _encoded(model, rows)

    def mean_nll(found: Answers) -> Float[Tensor, "row"]:
        return -found.logprobs() / torch.tensor(found.lengths, dtype=torch.float64, device=found.hidden.device)

    values = _forwarded(model, coded, mean_nll, batch_tokens=batch_tokens, side=side, show=show)
    options = {"batch_tokens": batch_tokens, "side": side}
    return _scores("loss", model, rows, coded, values, "the model finds the answer less likely", "nats per token", options)


@example_score
def el2n(model: Model, rows: Examples, *, batch_tokens: int = 4096, side: str = "right", show: bool = False) -> RowScores:
    """Norm of the error vector of each answer token, averaged over the answer: EL2N of a language model.

    (1/|y|) sum_t ||p_t - onehot(y_t)||_2, with ||p - onehot(y)||^2 = sum_v p_v^2 - 2 p_y + 1; from the logits alone. 0 where the
    model is sure of the token, at most sqrt(2). The published score is of a classifier, one softmax an example, averaged over
    models early in training; this is its form for sequences, of the one model given.

    Args, Raises: as `loss`.
    Reference: Paul et al. 2021, arXiv:2107.07075.
    """
    coded = _encoded(model, rows)
    values = _forwarded(model, coded, _error_norms, batch_tokens=batch_tokens, side=side, show=show)
    options = {"batch_tokens": batch_tokens, "side": side}
    return _scores("el2n", model, rows, coded, values, "the model's probabilities are further from the answer", "", options)


@example_score
def grad_norm(model: Model, rows: Examples, *, batch_tokens: int = 4096, show: bool = False) -> RowScores:
    """Norm of the gradient of each row's loss with respect to all parameters: GraNd.

    ||grad_theta l_i||_2, where l_i is the mean negative log-likelihood per answer token (`loss`), so that it does not grow with the
    length by itself. The published score averages over models early in training; this is of the one model given.

    Args: batch_tokens: largest padded batch, in tokens.
    Raises: as `loss`; NumericsError naming the row if a gradient is not finite.
    Reference: Paul et al. 2021, arXiv:2107.07075.
    """
    coded = _encoded(model, rows)
    values = gradient_norms(model, coded, batch_tokens=batch_tokens, show=show).numpy()
    higher = "a step on the row moves the weights further"
    return _scores(
        "grad_norm", model, rows, coded, values, higher, "nats per token per unit of weight", {"batch_tokens": batch_tokens}
    )


@example_score
def length(model: Model, rows: Examples) -> RowScores:
    """Number of answer tokens of each row, end-of-text included where the tokenizer has one.

    Raises: DataError naming a row that is empty or too long.
    """
    coded = encode_all(model, rows)
    values = np.array([len(row.tokens) - row.start for row in coded], dtype=np.float64)
    return _scores("length", model, rows, coded, values, "a longer answer", "tokens", {})


def _encoded(model: Model, rows: Examples) -> list[Encoded]:
    """The rows as tokens, each with something before its answer."""
    coded = encode_all(model, rows)
    check_predicted(coded)
    return coded


def _error_norms(found: Answers) -> Float[Tensor, "row"]:
    """EL2N of each row of a batch, float64.

    ||p - onehot(y)||^2 = sum_{v != y} p_v^2 + (sum_{v != y} p_v)^2: nothing cancels where p_y is near 1.
    """
    means = []
    for scores, target in found.by_row():
        others = scores.softmax(-1).scatter(-1, target, 0.0)
        means.append((others.square().sum(-1) + others.sum(-1).square()).sqrt().double().mean())
    values = torch.stack(means)
    check_finite("el2n (half precision may have overflowed; try dtype='float32')", values)
    return values


@torch.no_grad()
def _forwarded(
    model: Model,
    coded: Sequence[Encoded],
    number: Callable[[Answers], Float[Tensor, "row"]],
    *,
    batch_tokens: int,
    side: str,
    show: bool,
) -> Float[np.ndarray, "row"]:
    """One number a row from forward passes alone, in the rows' order."""
    values = np.empty(len(coded))
    for chosen in progress(list(by_length(coded, max_tokens=batch_tokens)), label="rows", show=show):
        batch = collate([coded[i] for i in chosen], device=model.device, side=side)
        values[chosen] = number(answers(model, batch)).cpu().numpy()
    return values


def _scores(
    name: str,
    model: Model,
    rows: Examples,
    coded: Sequence[Encoded],
    values: Float[np.ndarray, "row"],
    higher: str,
    unit: str,
    options: dict[str, object],
) -> RowScores:
    provenance = Provenance(
        method=name,
        model=model.fingerprint(),
        data={"rows": rows.fingerprint()},
        options=options,
        dtype=str(model.dtype).removeprefix("torch."),
        tokens=sum(len(row.tokens) for row in coded),
    )
    return RowScores(name, tuple(row.id for row in coded), values, higher, provenance, unit)
