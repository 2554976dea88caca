"""Linear algebra of one layer, element by element in float64."""

import numpy as np


def rows_times(x: np.ndarray, rows: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """y[b, p, j] = sum_d rows[j, d] x[b, p, d] + bias[j]."""
    out = np.zeros((*x.shape[:2], len(rows)))
    for j, row in enumerate(rows):
        out[..., j] = (x.astype(np.float64) * row.astype(np.float64)).sum(-1) + (0.0 if bias is None else bias[j])
    return out


def sum_of_vectors(coefficients: np.ndarray, vectors: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """y[b, p] = sum_j coefficients[b, p, j] vectors[j] + bias."""
    out = np.zeros((*coefficients.shape[:2], vectors.shape[1])) + (0.0 if bias is None else bias)
    for j, vector in enumerate(vectors):
        out += coefficients[..., j, None].astype(np.float64) * vector.astype(np.float64)
    return out
