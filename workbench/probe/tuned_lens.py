"""The tuned lens: every layer's residual stream is first translated to what the last layer makes of it, then read.

    z_l = f(W_U norm(A_l h_l + b_l)),   (A_l, b_l) = argmin  sum |A h_l + b - h_L|^2 + n ridge s_l |A - I|^2

The sum runs over the n tokens of the training texts, s_l is the mean variance of h_l's features: ridge = 0 is least squares, a very
large one leaves A = I, the logit lens but for a constant. This is the closed form of the squared error; Belrose et al. train A and
b by gradient descent on the KL divergence instead, which is what is measured here, on held-out texts.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from workbench.core.errors import DataError, InputError
from workbench.core.numerics import check_finite, permutation, wide
from workbench.core.records import Provenance
from workbench.core.runtime import plan_memory, progress
from workbench.core.statistics import mean_estimate
from workbench.core.store import text_sha256
from workbench.load.batches import by_length, collate
from workbench.load.models import Model
from workbench.load.texts import encode_texts
from workbench.probe.lens import EMBED, Stream, stream, unembed
from workbench.probe.translators import TunedLens


def tuned_lens(
    model: Model,
    texts: Sequence[str],
    *,
    layers: Sequence[int | str] | None = None,
    ridge: float = 0.01,
    held_out: float = 0.3,
    chat: bool = False,
    batch_tokens: int = 2048,
    seed: int = 0,
    show: bool = False,
) -> TunedLens:
    """Fit a translator for every layer on some texts, and compare it with the logit lens on the others.

    Args:
        texts: at least two, better hundreds: with fewer tokens than features the least change of A is taken that fits.
        layers: layer numbers and "embed"; None for all. The last one needs no translator.
        ridge: pull of A towards I, in units of the mean variance of a feature; 0 or more.
        held_out: share of the texts that judge.   chat: the texts are a user's turns.   seed: of split and bootstrap.
    Returns: a TunedLens. Special tokens in front of a text are neither fitted nor judged.
    Raises: DataError for too few texts; InputError for an option out of range or no layer to fit; NumericsError for activations
        that are not finite; MemoryPlanError if the sums would not fit.
    Reference: Belrose et al. 2023, arXiv:2303.08112, whose translators minimize the KL divergence; see the module.
    """
    if not (ridge >= 0 and 0 < held_out < 1):
        raise InputError(f"tuned_lens: ridge is {ridge}, held_out {held_out}; expected 0 or more, and above 0 and below 1.")
    last = model.n_layers - 1
    asked = [layer for layer in ((EMBED, *range(last)) if layers is None else layers) if layer != last]
    rows = encode_texts(model, texts, chat=chat)
    judges = round(held_out * len(rows))
    if not 0 < judges < len(rows):
        raise DataError(f"tuned_lens: of {len(rows)} texts {judges} judge, which leaves nothing for one side; give more texts.")
    if not asked:
        raise InputError(f"tuned_lens: there is no layer to fit; layer {last} is the last and needs no translator.")
    width = model.d_model
    cure = "Give fewer layers."
    plan_memory(
        "tuned_lens: sums of two d_model x d_model products a layer", 16 * len(asked) * width**2, torch.device("cpu"), cure=cure
    )
    order = permutation(len(rows), seed)
    judging, training = sorted(order[:judges]), sorted(order[judges:])

    def passes(chosen: Sequence[int], label: str) -> Iterator[tuple[list[int], Stream, Bool[Tensor, "batch pos"]]]:
        mine = [rows[i] for i in chosen]
        for group in progress(list(by_length(mine, max_tokens=batch_tokens)), label=label, show=show):
            batch = collate([mine[i] for i in group], device=model.device)
            starts = torch.tensor([mine[i].start for i in group], device=model.device)
            yield group, stream(model, batch, layers=asked), batch.attention & (batch.positions >= starts[:, None])

    sums = {str(layer): _Sums(width) for layer in asked}
    for _, passed, used in passes(training, "tuned lens: fit"):
        goal = passed.last[used].double().cpu()
        for layer, total in sums.items():
            total.add(passed.resid[layer][used].double().cpu(), goal)
    maps = {layer: total.solve(ridge, layer) for layer, total in sums.items()}
    names = tuple(maps)
    matrix, bias = (torch.stack(column).float() for column in zip(*maps.values(), strict=True))
    tokens = {layer: total.n for layer, total in sums.items()}[names[0]]
    notes = {"last": last, "base_model": model.base_fingerprint(), "texts": len(training), "texts_cut": rows.cut}
    options = {"ridge": ridge, "held_out": held_out, "chat": chat}
    about = Provenance(
        "tuned_lens",
        model.fingerprint(),
        {"texts": text_sha256(list(texts))},
        options,
        seed,
        str(model.dtype),
        "mean over tokens, then texts; float64",
        tokens,
        notes,
    )
    nothing = np.full((len(names), 3), np.nan)
    lens = TunedLens(names, matrix, bias, nothing, nothing, nothing, judges, about)
    tuned, plain = (np.empty((len(names), judges)) for _ in range(2))
    for group, passed, used in passes(judging, "tuned lens: judge"):
        own = wide(passed.logits).log_softmax(-1)
        for i, layer in enumerate(names):
            resid = passed.resid[layer]
            tuned[i, group] = _kl(own, unembed(model, lens.translate(resid, layer=layer)), used)
            plain[i, group] = _kl(own, unembed(model, resid), used)
    kl, logit, gain = (_estimates(values, seed) for values in (tuned, plain, plain - tuned))
    return TunedLens(names, matrix, bias, kl, logit, gain, judges, about)


class _Sums:
    """What the normal equations of one layer need, summed over tokens in float64."""

    def __init__(self, width: int) -> None:
        self.n = 0
        self.h, self.goal = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        self.hh, self.hg = (torch.zeros(width, width, dtype=torch.float64) for _ in range(2))

    def add(self, h: Float[Tensor, "n d_model"], goal: Float[Tensor, "n d_model"]) -> None:
        """Further tokens. goal: the stream behind the last layer."""
        self.n += len(h)
        self.h += h.sum(0)
        self.goal += goal.sum(0)
        self.hh += h.T @ h
        self.hg += h.T @ goal

    def solve(self, ridge: float, layer: str) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model"]]:
        """A and b. With C and D the centered sums of h h^T and h g^T: (C + n ridge s I)(A - I)^T = D - C."""
        mean, goal = self.h / self.n, self.goal / self.n
        c, d = self.hh - self.n * mean.outer(mean), self.hg - self.n * mean.outer(goal)
        check_finite(f"tuned_lens: activations of layer {layer}", d)
        scale = c.diagonal().mean()  # n times the mean variance
        change = torch.linalg.lstsq(c + ridge * scale * torch.eye(len(c), dtype=c.dtype), d - c, driver="gelsd").solution
        matrix = torch.eye(len(c), dtype=c.dtype) + change.T
        return matrix, goal - matrix @ mean


def _kl(
    own: Float[Tensor, "batch pos d_vocab"], read: Float[Tensor, "batch pos d_vocab"], used: Bool[Tensor, "batch pos"]
) -> Float64[np.ndarray, "batch"]:
    """KL(model || lens) of each text, mean over its tokens. own: ln p."""
    logprob = wide(read).log_softmax(-1)
    each = (own.exp() * (own - logprob)).sum(-1, dtype=torch.float64)
    check_finite("tuned_lens: KL", each[used])
    return (each.masked_fill(~used, 0).sum(-1) / used.sum(-1)).cpu().numpy()


def _estimates(values: Float64[np.ndarray, "layer n"], seed: int) -> Float64[np.ndarray, "layer 3"]:
    return np.array([mean_estimate(row, seed=seed)[:3] for row in values])
