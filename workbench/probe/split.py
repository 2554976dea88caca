"""Which rows train a probe and which judge it: stratified by label, with what belongs together on one side.

Rows belong together if they share a group, or have the same text; groups are joined through shared texts.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int

from workbench.core.numerics import permutation


def together(texts: Sequence[str], groups: Sequence[Hashable] | None = None) -> Int[np.ndarray, "n"]:
    """A number for each row, the same for rows that must not be separated.

    Args: groups: a key a row; rows of one key stay together. None in place of a key, or of all of them, is no group.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys: dict[Hashable, int] = {}
    edges = [(i, keys.setdefault(("text", text), len(keys))) for i, text in enumerate(texts)]
    edges += [(i, keys.setdefault(("group", key), len(keys))) for i, key in enumerate(groups or ()) if key is not None]
    rows, columns = np.array(edges).T
    size = len(texts) + len(keys)
    graph = coo_array((np.ones(len(edges)), (rows, columns + len(texts))), shape=(size, size))
    found = connected_components(graph, directed=False)[1][: len(texts)]
    return np.unique(found, return_inverse=True)[1]


def judging_rows(strata: Int[np.ndarray, "n"], groups: Int[np.ndarray, "n"], *, share: float, seed: int) -> Bool[np.ndarray, "n"]:
    """True for the rows that judge: close to `share` of every stratum, and groups whole.

    Groups are taken in a random order, each if that brings the shares of the strata closer (in squares) to what is wanted. Where
    every row is a group of its own, that is round(share x rows) of each stratum.
    """
    shares = _shares(strata, groups)
    wanting = np.full(shares.shape[1], share)
    chosen = np.zeros(len(shares), dtype=bool)
    for group in permutation(len(shares), seed):
        if ((wanting - shares[group]) ** 2).sum() < (wanting**2).sum() - 1e-12:
            chosen[group] = True
            wanting -= shares[group]
    return chosen[groups]


def folds(strata: Int[np.ndarray, "n"], groups: Int[np.ndarray, "n"], *, n: int, seed: int) -> Int[np.ndarray, "n"]:
    """The fold of every row, 0 to n - 1: groups whole, strata spread evenly.

    Groups are dealt in a random order, each to the fold that has least of its strata, then least in all.
    """
    shares = _shares(strata, groups)
    dealt = np.zeros((n, shares.shape[1]))
    chosen = np.zeros(len(shares), dtype=np.int64)
    for group in permutation(len(shares), seed):
        crowd = list(zip((dealt @ shares[group]).tolist(), dealt.sum(axis=1).tolist(), strict=True))
        chosen[group] = min(range(n), key=crowd.__getitem__)
        dealt[chosen[group]] += shares[group]
    return chosen[groups]


def _shares(strata: Int[np.ndarray, "n"], groups: Int[np.ndarray, "n"]) -> Float64[np.ndarray, "group stratum"]:
    """Which share of each stratum's rows every group has: so a rare stratum weighs as much as a common one."""
    counts = np.zeros((int(groups.max()) + 1, int(strata.max()) + 1))
    np.add.at(counts, (groups, strata), 1)
    return counts / np.maximum(counts.sum(axis=0), 1)
