"""What is measured of decisions on held-out rows: which metrics there are, and their values on every resample."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Num

from workbench.probe import measure

CLASSES = ("auc", "accuracy", "balanced_accuracy")
NUMBERS = ("spearman", "r_squared")


@dataclass(frozen=True, eq=False)
class Judge:
    """The labels of the rows that judge.

    truth: codes of classes 0 .. n_classes - 1, or numbers where n_classes is 0.   weights: see `probe.measure`.
    The first metric is the one that probes are chosen and compared by: AUC (macro one-vs-rest for more than two classes), or
    Spearman's rank correlation.
    """

    truth: Num[np.ndarray, "n"]
    n_classes: int
    weights: Float[np.ndarray, "resample n"]

    @classmethod
    def plain(cls, truth: Num[np.ndarray, "n"], n_classes: int) -> "Judge":
        """Of the rows themselves, without resamples."""
        return cls(truth, n_classes, np.ones((1, len(truth)), dtype=np.float32))

    @property
    def metrics(self) -> tuple[str, ...]:
        return CLASSES if self.n_classes else NUMBERS

    def __call__(self, decision: Float64[np.ndarray, "n row"], *, log_odds: bool) -> Float64[np.ndarray, "metric resample"]:
        """Every metric on the rows (first) and on each resample.

        Args: decision: as of `LinearProbe`.   log_odds: whether they are, see `margins`.
        """
        if not self.n_classes:
            f = decision[:, 0]
            return np.stack([self._spread(measure.spearman, f, self.truth), self._spread(measure.r_squared, f, self.truth)])
        right = predicted(decision) == self.truth
        if self.n_classes == 2:
            area = self._spread(measure.auc, decision[:, 0], self.truth == 1)
        else:
            area = self._spread(measure.macro_auc, margins(decision) if log_odds else decision, self.truth)
        return np.stack([area, self._spread(measure.accuracy, right), self._spread(measure.balanced_accuracy, right, self.truth)])

    def chance(self) -> Float64[np.ndarray, "metric"]:
        """What decisions without relation to the labels give; for accuracy, what always naming the largest class gives."""
        if not self.n_classes:
            return np.zeros(2)
        return np.array([0.5, np.bincount(self.truth).max() / len(self.truth), 1 / self.n_classes])

    def _spread(self, statistic, *about: np.ndarray) -> Float64[np.ndarray, "resample"]:  # noqa: ANN001
        return measure.spread(lambda weights: statistic(*about, weights), self.weights)


def predicted(decision: Float64[np.ndarray, "n row"]) -> Num[np.ndarray, "n"]:
    """The class each decision is for: the second where the one log-odds is above 0, or the class of the largest."""
    return (decision[:, 0] > 0).astype(np.int64) if decision.shape[1] == 1 else decision.argmax(axis=1)


def margins(decision: Float64[np.ndarray, "n class"]) -> Float64[np.ndarray, "n class"]:
    """Log-odds of each class from the logits of a softmax: ln p_c / (1 - p_c) = l_c - ln sum_{k != c} exp l_k.

    Logits themselves cannot be compared between rows, for a softmax does not see what is common to a row's logits.
    """
    others = [np.logaddexp.reduce(np.delete(decision, c, axis=1), axis=1) for c in range(decision.shape[1])]
    return decision - np.stack(others, axis=1)


def confidence(decision: Float64[np.ndarray, "n row"], truth: Num[np.ndarray, "n"]) -> tuple[np.ndarray, np.ndarray]:
    """What log-odds promise and what came: for two classes p of the second and whether it is so; for more, p of the class that is
    predicted and whether that is right."""
    if decision.shape[1] == 1:
        return 1 / (1 + np.exp(-np.clip(decision[:, 0], -700, 700))), (truth == 1).astype(np.float64)
    best = decision.argmax(axis=1)
    p = np.exp(decision.max(axis=1) - np.logaddexp.reduce(decision, axis=1))
    return p, (best == truth).astype(np.float64)
