"""Gradient saliency of the forget set (SalUn)."""

from workbench.core.records import Examples, Provenance
from workbench.core.registry import attribution
from workbench.core.weights import Scores
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.trace.gradients import ExampleLoss, mean_gradient, nll


@attribution
def saliency(
    model: Model,
    forget: Examples,
    retain: Examples,
    *,
    forget_loss: ExampleLoss = nll,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Scores:
    """Size of the forget loss's gradient at each weight.

    S_i = |g_f,i|, with g_f the mean over examples of the gradient of `forget_loss`, float32.

    Args:
        retain: not used; every attribution has the same signature.
        forget_loss: the loss that will be optimized, one value an example; mean NLL a token by default.
    Returns: Scores over every parameter, >= 0.
    Reference: Fan et al. 2024, arXiv:2310.12508. Their code sums over batches of batch means in the model's dtype.
    """
    del retain
    rows = encode_all(model, forget)
    gradient = mean_gradient(model, rows, forget_loss, batch_tokens=batch_tokens, show=show, label="forget gradient")
    about = Provenance(
        "saliency",
        model.fingerprint(),
        {"forget": forget.fingerprint()},
        {"forget_loss": forget_loss.__name__},
        dtype=str(model.dtype),
        reduction="mean over examples, float32",
        tokens=sum(len(row.tokens) for row in rows),
    )
    return Scores({name: g.abs_().float().cpu() for name, g in gradient.items()}, about)
