"""The rows of a set that are hardest to forget: a worst-case forget set, chosen by unlearning again and again.

    upper   min over w of  sum_i w_i l_i(theta(w)) + gamma |w|^2     0 <= w_i <= 1,  sum_i w_i = size
    lower   theta(w) = the model after unlearning the rows with weights w, from the original weights, by sign descent

A sign has derivative 0, so the derivative of theta(w) vanishes and the upper step is plain: w <- Proj(w - eta (l_i + 2 gamma w_i)),
where l_i is row i's loss after unlearning, from forward passes alone. So weight gathers on rows whose loss stays low although they
are unlearned. The hard set is the `size` rows with the largest weights at the end. Fractions of rows were unlearned to find it, so
whether it is hard when it is unlearned alone is another question: `HardSet.against_random` answers it, against random rows and
against those whose loss was lowest before. On the bundled organism the set was no harder to forget than the rows with the lowest
loss before and, at the default rate, no harder than random rows: look at the comparison before believing a set.

The lower level has two forms. "ascent", ours for language models, minimizes mean_retain l - (1/size) sum_i w_i l_i: the answers are
unlearned directly, as with gradient difference. "retrain" is the published one, of image classifiers: it goes on training on the
retain rows and on the candidates with weights 1 - w_i, and so forgets only what training on the rest overwrites.

Reference: Fan et al. 2024, arXiv:2403.07362, for image classifiers, where the loss is the classifier's. Here a loss is the mean
negative log-likelihood per answer token.
"""

import numpy as np
from jaxtyping import Float

from workbench.attribute.data.hard_set import HardSet, Recipe, unlearned
from workbench.core.errors import InputError
from workbench.core.records import Examples, Provenance, check_disjoint
from workbench.core.runtime import progress
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.trace.forward import row_nll

_HALVINGS = 100  # a bracket of any float64 width is halved to nothing
LOWER = ("ascent", "retrain")


def hard_to_forget(
    model: Model,
    candidates: Examples,
    retain: Examples,
    *,
    size: int,
    lower: str = "ascent",
    rounds: int = 10,
    epochs: int = 5,
    lr: float = 1e-4,
    weight_lr: float = 0.01,
    gamma: float = 0.0,
    batch_size: int = 16,
    batch_tokens: int = 4096,
    seed: int = 0,
    show: bool = False,
) -> HardSet:
    """The `size` candidates that are hardest to forget while the retain rows are kept; see the module for the formula.

    Every round unlearns from the original model, so it costs `epochs` of training on candidates and retain rows together.

    Args:
        lower: how a round unlearns, "ascent" or "retrain".
        rounds: upper steps.   epochs, lr, batch_size: of the lower level; every weight moves by lr in every step.
        weight_lr: of the upper step, per nat. 0.01 is the published value: large ones swing, for rows without weight are not
            unlearned and keep a low loss.
        gamma: pull towards equal weights, in nats.
        batch_tokens: largest padded batch of the forward passes.   seed: of the order of the training rows.
    Raises: InputError for a bad option, or a size that is not below the number of candidates; DataError if candidates and retain
        share rows; NumericsError if unlearning runs to infinity, where a lower lr helps.
    """
    check_options(size, len(candidates), lower=lower, rounds=rounds, weight_lr=weight_lr, gamma=gamma)
    check_disjoint(candidates, retain)
    recipe = Recipe(size, lower, epochs, lr, batch_size, batch_tokens, seed)
    rows, kept = encode_all(model, candidates), encode_all(model, retain)
    before = row_nll(model, rows, batch_tokens=batch_tokens).numpy()
    weights, seen = np.full(len(rows), size / len(rows)), []
    for _ in progress(range(rounds), label="hard to forget", show=show):
        seen.append(unlearned(model, rows, kept, weights, recipe))
        weights = project(weights - weight_lr * (seen[-1] + 2 * gamma * weights), size)
    hardest = sorted(np.argsort(-weights, kind="stable")[:size].tolist())
    provenance = Provenance(
        method="hard_to_forget",
        model=model.fingerprint(),
        data={"candidates": candidates.fingerprint(), "retain": retain.fingerprint()},
        options={**recipe._asdict(), "rounds": rounds, "weight_lr": weight_lr, "gamma": gamma},
        seed=seed,
        dtype=str(model.dtype).removeprefix("torch."),
    )
    return HardSet(candidates.take(hardest), tuple(candidates.ids), weights, np.stack(seen), before, recipe, provenance)


def check_options(size: float, candidates: int, *, lower: str, rounds: int, weight_lr: float, gamma: float) -> None:
    """InputError for an option of `hard_to_forget` that is out of its range."""
    whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if not whole or not 1 <= size < candidates:
        expected = f"expected a whole number, 1 to {candidates - 1}: fewer than the candidates"
        raise InputError(f"hard_to_forget: size is {size!r}, {expected}.")
    if lower not in LOWER:
        raise InputError(f"hard_to_forget: lower is {lower!r}, expected one of {', '.join(LOWER)}.")
    if rounds < 1 or not 0 < weight_lr < np.inf or not 0 <= gamma < np.inf:
        given = f"rounds is {rounds}, weight_lr {weight_lr}, gamma {gamma}"
        raise InputError(f"hard_to_forget: {given}; expected rounds >= 1, a finite weight_lr > 0 and a finite gamma >= 0.")


def project(values: Float[np.ndarray, "row"], size: float) -> Float[np.ndarray, "row"]:
    """The nearest point of {0 <= w <= 1, sum w = size}: clip(values - shift, 0, 1), the shift found by bisection.

    The sum falls with the shift, from n at min(values) - 1 to 0 at max(values).

    Raises: InputError unless 0 <= size <= number of values, and for a value that is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise InputError(
            f"project: {int((~np.isfinite(values)).sum())} of {len(values)} values are NaN or infinite; none is nearest."
        )
    if not 0 <= size <= len(values):
        raise InputError(f"project: size is {size}, expected 0 to {len(values)}, the number of values.")
    low, high = float(values.min()) - 1, float(values.max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if np.clip(values - middle, 0, 1).sum() > size:
            low = middle
        else:
            high = middle
    return np.clip(values - (low + high) / 2, 0, 1)
