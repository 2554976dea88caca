"""How activations and labels become a linear probe: (activations, labels, *, options) -> LinearProbe.

Every probe is f(x) = x w + b in the raw activation space, whatever it was fitted in, so that w is a direction a model can be
edited along. scikit-learn does the fitting, in float64.
"""

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

from workbench.core.errors import DataError, InputError, NumericsError, ShapeError
from workbench.core.registry import probe

RIDGE_ALPHAS = tuple(float(a) for a in np.logspace(-2, 6, 17))


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """f(x) = x w + b.

    weight: [row d], float64, in raw activation space. One row for two classes (positive: more of the last class) and for numbers;
    one a class for more.   intercept: [row].   classes: sorted labels the rows stand for; empty for numbers.
    log_odds: whether f is a log-odds (for more classes: logits of a softmax), so that probabilities can be had.
    notes: what the fit chose by itself.
    """

    weight: Float64[np.ndarray, "row d"]
    intercept: Float64[np.ndarray, "row"]
    classes: tuple[Any, ...] = ()
    log_odds: bool = False
    notes: dict[str, float] = field(default_factory=dict)

    def decision(self, activations: Float[np.ndarray, "n d"] | Float[Tensor, "n d"]) -> Float64[np.ndarray, "n row"]:
        """x w + b for every row of activations, float64.

        Raises: ShapeError for activations of another width.
        """
        x = _array(activations)
        if x.shape[1] != self.weight.shape[1]:
            raise ShapeError(
                f"probe: activations have {x.shape[1]} features, the probe reads {self.weight.shape[1]}. Is it another site?"
            )
        return x @ self.weight.T + self.intercept


@probe
def logistic(
    activations: Float[np.ndarray, "n d"] | Float[Tensor, "n d"],
    labels: Shaped[np.ndarray, "n"],
    *,
    C: float = 0.1,
    max_iter: int = 1000,
) -> LinearProbe:
    """L2-regularized logistic regression on standardized activations, folded back to the raw space.

    With z = (x - mean) / std of each feature, it minimizes |v|^2 / 2 + C sum_i loss_i over v and the intercept, where the loss is
    ln(1 + exp(-y f(z))) with one logit for two classes, and the multinomial negative log-likelihood for more. w = v / std.
    A feature that never varies has weight 0.

    Args:
        activations: [n, d], any float dtype.   labels: [n], two or more classes.
        C: inverse strength of the regularization, scikit-learn's: it stands before a sum over rows, so the data count more the more
            there are. On standardized features held-out AUC is flat from 0.1 to 1.
        max_iter: of L-BFGS.
    Raises: DataError for one class, or fewer rows than classes; ShapeError if the two differ in length; NumericsError for NaN, or
        if the fit has not converged.
    Reference: Model Surgery (Wang et al. 2025, arXiv:2407.08770) trains a softmax with two rows W0, W1 instead. Only W1 - W0 is
        ever trained: W0 + W1 keeps its random initial value, and their code adds W1, with that noise, to the weights.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, codes, classes = _classed(activations, labels)
    if not C > 0:
        raise InputError(f"logistic: C is {C}, expected a number above 0.")
    z, mean, std = _standardized(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            fitted = LogisticRegression(C=C, max_iter=max_iter, tol=1e-6).fit(z, codes)
        except ConvergenceWarning as error:
            raise NumericsError(
                f"logistic: not converged after {max_iter} iterations (C = {C:g}). Lower C, which regularizes more, or raise "
                "max_iter."
            ) from error
    return _folded(fitted.coef_, fitted.intercept_, mean, std, classes, log_odds=True)


@probe
def mean_difference(activations: Float[np.ndarray, "n d"] | Float[Tensor, "n d"], labels: Shaped[np.ndarray, "n"]) -> LinearProbe:
    """Difference of the classes' means, with the intercept halfway between them.

    w = mu_1 - mu_0, b = -w (mu_1 + mu_0) / 2. For more than two classes, each against the rows of all others.
    Its decisions are distances, not log-odds: it has no probabilities.

    Raises: as `logistic`.
    Reference: the steering vectors of Turner et al. 2023, arXiv:2308.10248, and Arditi et al. 2024, arXiv:2406.11717.
    """
    x, codes, classes = _classed(activations, labels)
    rows, intercepts = [], []
    for positive in range(len(classes)) if len(classes) > 2 else [1]:
        one, other = x[codes == positive].mean(axis=0), x[codes != positive].mean(axis=0)
        rows.append(one - other)
        intercepts.append(-(one - other) @ (one + other) / 2)
    return LinearProbe(np.array(rows), np.array(intercepts), classes)


@probe
def lda(activations: Float[np.ndarray, "n d"] | Float[Tensor, "n d"], labels: Shaped[np.ndarray, "n"]) -> LinearProbe:
    """Linear discriminant analysis with a shrunk covariance: w = S^-1 (mu_1 - mu_0).

    S is the pooled within-class covariance, each class's shrunk toward its diagonal by Ledoit and Wolf's rule; the priors are the
    classes' shares. For more than two classes the rows S^-1 mu_c are centered over the classes, which changes no probability.
    Solving for S takes d^3: about a minute a layer at d = 4096.

    Raises: as `logistic`.
    Reference: Ledoit and Wolf 2004, J. Multivariate Analysis 88.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, codes, classes = _classed(activations, labels)
    varies = ~_constant(x)  # the others would only dilute what the covariance is shrunk toward
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x[:, varies], codes)
    weight, intercept = np.zeros((len(fitted.coef_), x.shape[1])), fitted.intercept_.astype(np.float64)
    weight[:, varies] = fitted.coef_
    if len(classes) > 2:
        weight, intercept = weight - weight.mean(axis=0), intercept - intercept.mean()
    return LinearProbe(weight, intercept, classes, log_odds=True)


@probe(targets="numbers")
def ridge(
    activations: Float[np.ndarray, "n d"] | Float[Tensor, "n d"],
    labels: Shaped[np.ndarray, "n"],
    *,
    alphas: tuple[float, ...] | list[float] = RIDGE_ALPHAS,
) -> LinearProbe:
    """Ridge regression of numeric labels on standardized activations, folded back to the raw space.

    It minimizes sum_i (y_i - z_i v - b)^2 + alpha |v|^2, with the alpha of least leave-one-out squared error among `alphas`.

    Args: labels: [n], finite numbers that are not all equal.   alphas: to choose from, each above 0.
    Returns: a probe without classes; notes["alpha"] is what was chosen.
    Raises: DataError for labels that are no numbers, all equal, or fewer than three; otherwise as `logistic`.
    """
    from sklearn.linear_model import RidgeCV

    x = _array(activations)
    y = numbers(labels)
    _check_rows(x, y)
    if len(y) < 3 or np.ptp(y) == 0:
        raise DataError(f"ridge: {len(y)} labels from {y.min():g} to {y.max():g}; expected at least 3 rows whose labels differ.")
    if not len(alphas) or not all(alpha > 0 for alpha in alphas):
        raise InputError(f"ridge: alphas is {alphas}, expected numbers above 0.")
    z, mean, std = _standardized(x)
    fitted: Any = RidgeCV(alphas=np.asarray(alphas, dtype=np.float64)).fit(z, y)
    found = _folded(fitted.coef_[None], np.array([fitted.intercept_]), mean, std, (), log_odds=False)
    return replace(found, notes={"alpha": float(fitted.alpha_)})


def numbers(labels: Shaped[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """Labels as float64; DataError naming the first that is no finite number."""
    found = np.empty(len(labels))
    for i, label in enumerate(labels.tolist()):
        try:
            found[i] = float(label)
        except (TypeError, ValueError):
            found[i] = np.nan
        if not np.isfinite(found[i]):
            raise DataError(f"label {i} is {label!r}, expected a finite number. For classes choose a method such as 'logistic'.")
    return found


def _classed(activations: Any, labels: np.ndarray) -> tuple[Float64[np.ndarray, "n d"], Int[np.ndarray, "n"], tuple[Any, ...]]:
    """Activations as float64, labels as codes, and the sorted classes the codes count."""
    x = _array(activations)
    _check_rows(x, labels)
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"probe: all {len(labels)} labels are {classes[:1].tolist()}; expected at least two classes to tell apart.")
    if len(labels) <= len(classes):
        raise DataError(
            f"probe: {len(labels)} rows with {len(classes)} different labels; expected several rows a class. For numeric labels "
            "choose the method 'ridge'."
        )
    return x, codes, tuple(classes.tolist())


def _array(activations: Any) -> Float64[np.ndarray, "n d"]:
    """Activations as a float64 array; NumericsError for NaN or infinity."""
    if isinstance(activations, Tensor):
        activations = activations.detach().double().cpu().numpy()
    x = np.asarray(activations, dtype=np.float64)
    if not np.isfinite(x).all():
        row = int((~np.isfinite(x)).any(axis=1).argmax())
        raise NumericsError(f"probe: row {row} of the activations holds NaN or infinity.")
    return x


def _check_rows(x: Float64[np.ndarray, "n d"], labels: np.ndarray) -> None:
    if len(x) != len(labels):
        raise ShapeError(f"probe: {len(x)} rows of activations and {len(labels)} labels; expected as many.")
    if not len(x) or _constant(x).all():
        raise DataError(f"probe: the activations of all {len(x)} rows are equal; there is nothing to tell them apart by.")


def _standardized(x: Float64[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x - mean) / std by feature, mean and std; infinite std, so z = 0 and w = 0, where a feature is constant up to rounding."""
    mean, std = x.mean(axis=0), np.where(_constant(x), np.inf, x.std(axis=0))
    return (x - mean) / std, mean, std


def _constant(x: Float64[np.ndarray, "n d"]) -> Bool[np.ndarray, "d"]:
    """Whether each feature is the same in all rows, up to rounding."""
    return np.ptp(x, axis=0) <= 10 * np.finfo(np.float64).eps * np.abs(x).max(axis=0)


def _folded(
    v: np.ndarray, intercept: np.ndarray, mean: np.ndarray, std: np.ndarray, classes: tuple[Any, ...], *, log_odds: bool
) -> LinearProbe:
    """The same function of raw activations: (x - mean) / std v + b = x (v / std) + (b - mean (v / std))."""
    weight = v / std
    return LinearProbe(weight.astype(np.float64), (intercept - weight @ mean).astype(np.float64), classes, log_odds)
