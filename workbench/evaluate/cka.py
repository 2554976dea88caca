"""Centered kernel alignment: how alike two models' hidden states are at a layer, whatever basis each writes them in.

With one vector a row, X [row d_model] of one model and Y of the other, K = X X^T, L = Y Y^T:

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

1 for the same geometry: a rotation, a shift or a change of scale of all vectors changes nothing; 0 for none in common. HSIC is
the unbiased estimator: with K~, L~ the kernels without their diagonals and n rows,

    HSIC_1(K, L) = [tr(K~ L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2 (1'K~L~1) / (n-2)] / (n (n-3))

The usual, biased estimator tr(K H L H) / (n-1)^2 finds likeness where there is none as soon as n is not far above d_model: random
Gaussian vectors have a CKA near d / (n + d), which is 0.76 for 80 rows of width 256, where this one has 0 in the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from workbench.core.delta import Delta
from workbench.core.errors import DataError, ShapeError
from workbench.core.measurements import Measurement, Measurements
from workbench.core.records import Examples, Provenance
from workbench.core.statistics import LEVEL, Estimate
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.trace.answer_states import all_or
from workbench.trace.beside import beside
from workbench.trace.features import features

if TYPE_CHECKING:
    import pandas as pd

LEAST_ROWS = 5  # HSIC_1 needs 4, and the jackknife leaves one out
ROUNDING = 1e-12  # of the mean square of a kernel's entries: an HSIC below is 0, as where all rows but one are the same


class _Sums(NamedTuple):
    """What HSIC_1 needs of two kernels without diagonals: tr(KL), 1'K1, 1'L1, 1'KL1; one number, or one for each row left out."""

    product: np.ndarray
    mine: np.ndarray
    other: np.ndarray
    crossed: np.ndarray


@dataclass(frozen=True, eq=False)
class Cka:
    """Linear CKA by layer with its 95 % interval; `note` says why one has none.

    layers: numbers from 0.   estimates: one a layer; n counts rows.
    """

    layers: tuple[int, ...]
    estimates: tuple[Estimate, ...]
    notes: tuple[str, ...]
    provenance: Provenance

    def __getitem__(self, layer: int) -> Estimate:
        return self.estimates[self.layers.index(layer)]

    def frame(self) -> "pd.DataFrame":
        """One line a layer: layer, value, low, high, n, note."""
        import pandas as pd

        lines = zip(self.layers, self.estimates, self.notes, strict=True)
        return pd.DataFrame([{"layer": layer, **found._asdict(), "note": note} for layer, found, note in lines])

    def measurements(self, split: str = "forget") -> Measurements:
        """cka_layer_0, cka_layer_1, ...: one row a layer."""
        lines = zip(self.layers, self.estimates, self.notes, strict=True)
        return Measurements(
            Measurement.of(f"cka_layer_{layer}", split, found, unit="cka", note=note) for layer, found, note in lines
        )

    def __repr__(self) -> str:
        return f"Cka({', '.join(f'{layer}: {e.value:.3f}' for layer, e in zip(self.layers, self.estimates, strict=True))})"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.frame().to_html(index=False, float_format="%.4g")


def cka(
    model: Model,
    other: Model | Delta,
    examples: Examples,
    *,
    layers: Sequence[int] | None = None,
    pool: str = "mean",
    batch_tokens: int = 4096,
    show: bool = False,
) -> Cka:
    """Linear CKA, unbiased, between two models' hidden states on the same rows, by layer.

    A row's vector is the residual stream behind the layer, pooled over its answer's tokens, so that rows are independent and count
    once each. The interval is the jackknife's over rows.

    Args:
        other: a model of the same shape and tokenizer, or a change of `model`.
        examples: at least 5 rows.
        layers: numbers from 0, None for all.
        pool: over the answer's tokens: "mean", "last" or "max".
        batch_tokens: largest padded batch, in tokens.
    Raises: DataError for fewer rows; MismatchError for models that cannot be compared; InputError for a layer or a model in
        training mode; UnknownNameError for a pool; NumericsError naming the row of a state that is not finite.
    Reference: Kornblith et al. 2019, arXiv:1905.00414, section 3; HSIC_1 of Song et al. 2012, JMLR 13, equation 5. The
        unlearning-depth score's baseline takes every entity token as a row and the biased estimator.
    """
    if len(examples) < LEAST_ROWS:
        raise DataError(
            f"cka: {examples.name} has {len(examples)} rows, expected {LEAST_ROWS} or more: fewer say nothing unbiased."
        )
    asked = all_or(model, layers)
    rows = encode_all(model, examples)
    options = {"sites": ("resid_post",), "layers": asked, "pool": pool, "batch_tokens": batch_tokens, "show": show}
    mine = features(model, rows, **options)
    with beside(model, other) as second:
        its = features(second, rows, **options)
        theirs = second.fingerprint()
    found = [linear_cka(mine["resid_post", layer].numpy(), its["resid_post", layer].numpy()) for layer in asked]
    return Cka(
        layers=asked,
        estimates=tuple(found),
        notes=tuple(_note(one) for one in found),
        provenance=Provenance(
            "cka",
            model.fingerprint(),
            {"examples": examples.fingerprint()},
            {"layers": list(asked), "pool": pool, "batch_tokens": batch_tokens, "estimator": "unbiased"},
            dtype=str(model.dtype).removeprefix("torch."),
            tokens=mine.tokens,
            notes={"other": theirs},
        ),
    )


def linear_cka(x: Float[np.ndarray, "row d_x"], y: Float[np.ndarray, "same_row d_y"]) -> Estimate:
    """Unbiased linear CKA of two sets of vectors about the same rows, in float64, with the interval of the jackknife over rows.

    value -+ z s, s^2 = (n-1)/n sum_i (CKA_(-i) - mean)^2, CKA_(-i) without row i, z the normal quantile. No bootstrap: it draws
    rows twice, and a row beside itself is a diagonal entry, which the unbiased estimator exists to leave out.

    Returns: NaN in value where one side does not vary between the rows, or in low and high where a leave-one-out is not defined.
        An unbiased estimate may lie a little below 0 or above 1.
    Raises: ShapeError if the two differ in rows; DataError for fewer than 5, or a value that is NaN or infinite.
    """
    if len(x) != len(y):
        raise ShapeError(f"linear_cka: x has {len(x)} rows and y {len(y)}; expected vectors of the same rows in one order.")
    n = len(x)
    if n < LEAST_ROWS:
        raise DataError(f"linear_cka: {n} rows, expected {LEAST_ROWS} or more.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("linear_cka: x or y holds NaN or infinite values.")
    kernels = [_kernel(side) for side in (x, y)]
    pairs = [(kernels[i], kernels[j]) for i, j in ((0, 1), (0, 0), (1, 1))]
    least = [ROUNDING * float((kernel * kernel).mean()) for kernel in kernels]
    value = float(_ratio([_hsic(_sums(*pair), n) for pair in pairs], least))
    left_out = _ratio([_hsic(_sums_without_one(*pair), n - 1) for pair in pairs], least)
    if not np.isfinite(left_out).all():
        return Estimate(value, float("nan"), float("nan"), n)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    return Estimate(value, value - float(half), value + float(half), n)


def _kernel(x: Float[np.ndarray, "row d"]) -> Float64[np.ndarray, "row row"]:
    """X X^T without its diagonal, of centered X: HSIC_1 does not see the mean, but float64 does where it is large."""
    wide = x.astype(np.float64)
    wide -= wide.mean(0)
    kernel = wide @ wide.T
    np.fill_diagonal(kernel, 0.0)
    return kernel


def _sums(k: Float64[np.ndarray, "row row"], l: Float64[np.ndarray, "row row"]) -> _Sums:  # noqa: E741 the paper's letters
    one, two = k.sum(0), l.sum(0)
    return _Sums(*map(np.asarray, ((k * l).sum(), one.sum(), two.sum(), one @ two)))


def _sums_without_one(k: Float64[np.ndarray, "row row"], l: Float64[np.ndarray, "row row"]) -> _Sums:  # noqa: E741
    """The same for every row left out, from sums over all rows: with k_i = sum_j K_ij and (KL)_ii = sum_j K_ij L_ij,

    tr - 2 (KL)_ii;  1'K1 - 2 k_i;  and sum_{j != i} (k_j - K_ij)(l_j - L_ij) = 1'KL1 - k_i l_i - (K l)_i - (L k)_i + (KL)_ii.
    """
    whole, one, two = _sums(k, l), k.sum(0), l.sum(0)
    both = (k * l).sum(0)
    crossed = whole.crossed - one * two - k @ two - l @ one + both
    return _Sums(whole.product - 2 * both, whole.mine - 2 * one, whole.other - 2 * two, crossed)


def _hsic(sums: _Sums, n: int) -> np.ndarray:
    """HSIC_1 of n rows."""
    inside = sums.product + sums.mine * sums.other / ((n - 1) * (n - 2)) - 2 * sums.crossed / (n - 2)
    return np.asarray(inside / (n * (n - 3)))


def _ratio(found: Sequence[np.ndarray], least: Sequence[float]) -> np.ndarray:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) from the three; NaN where a side's own is not above its rounding."""
    cross, mine, other = found
    square = np.where((mine > least[0]) & (other > least[1]), mine * other, np.nan)
    return np.asarray(cross / np.sqrt(square))


def _note(found: Estimate) -> str:
    if not np.isfinite(found.value):
        return "one model's states do not vary between the rows"
    return "unbiased; jackknife over rows" if np.isfinite(found.low) else "no interval: not defined without one of the rows"
