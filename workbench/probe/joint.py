"""Gaps with their intervals and controls; several value vectors taken out together.

One vector alone often does little, for others do the same; what a set of them does together is the sharper question.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.components import Place
from workbench.core.errors import InputError
from workbench.core.measurements import Measurement, Measurements
from workbench.core.records import Examples
from workbench.core.statistics import Estimate, bootstrap, mean_estimate
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.probe.removal import drops


class Gap(NamedTuple):
    """gap: mean concept drop minus mean unrelated drop, interval over rows.   control: the same for random vectors, mean and
    interval over draws.   advantage: gap of (drop - mean random drop), row by row, interval over rows."""

    gap: Estimate
    control: Estimate
    advantage: Estimate


def gap_of(
    drop: Float[np.ndarray, "row"],
    unrelated: Float[np.ndarray, "other"],
    random: Float[np.ndarray, "draw row"],
    random_unrelated: Float[np.ndarray, "draw other"],
    *,
    seed: int = 0,
) -> Gap:
    """A gap from per-row drops. Before and after are of the same row, so a resample draws rows, in each set by itself."""
    control = random.mean(1) - random_unrelated.mean(1)
    return Gap(
        bootstrap(_difference, drop, unrelated, seed=seed),
        mean_estimate(control, seed=seed),
        bootstrap(_difference, drop - random.mean(0), unrelated - random_unrelated.mean(0), seed=seed),
    )


def joint_gap(
    model: Model,
    places: Sequence[Place],
    answers: Examples | Sequence[Encoded],
    unrelated: Examples | Sequence[Encoded],
    *,
    sizes: Sequence[int] = (1, 2, 5, 10, 20),
    seeds: Sequence[int] = range(5),
    batch_tokens: int = 4096,
    seed: int = 0,
    show: bool = False,
) -> Measurements:
    """What answers lose without the first n value vectors together, n in `sizes`.

    Args:
        places: best first; the rows here must not be those that ranked them.
        answers, unrelated: rows of the concept, and others.
        sizes: how many of the places are taken out together.
        seeds: draws of the control, every v_j replaced by a random vector of its norm.
    Returns: Measurements in nats per token; metrics concept_drop, unrelated_drop, gap, random_gap (interval over draws) and
        advantage (gap minus random gap, row by row); splits "top 1", "top 2", ...
    Raises: InputError for a size that is not there; DataError for no rows.
    """
    bad = [size for size in sizes if not 1 <= size <= len(places)]
    if bad or not len(sizes) or not len(seeds):
        raise InputError(
            f"joint_gap: sizes {list(sizes)} of {len(places)} places and {len(seeds)} seeds; expected sizes from 1 to "
            f"{len(places)}, and at least one of each."
        )
    sets = [[Place(*place) for place in places[:size]] for size in sizes]
    rows = [encode_all(model, each) if isinstance(each, Examples) else list(each) for each in (answers, unrelated)]
    options = {"batch_tokens": batch_tokens, "show": show}
    lost = [drops(model, sets, each, **options)[:, 0] for each in rows]
    random = [drops(model, sets, each, seeds=seeds, **options, label="random vectors") for each in rows]
    measured = []
    for i, size in enumerate(sizes):
        found = gap_of(lost[0][i], lost[1][i], random[0][i], random[1][i], seed=seed)
        numbers = {
            "concept_drop": mean_estimate(lost[0][i], seed=seed),
            "unrelated_drop": mean_estimate(lost[1][i], seed=seed),
            "gap": found.gap,
            "random_gap": found.control,
            "advantage": found.advantage,
        }
        measured += [Measurement.of(name, f"top {size}", one, unit="nats per token") for name, one in numbers.items()]
    return Measurements(measured)


def _difference(
    drop: Float[np.ndarray, "resample row"], unrelated: Float[np.ndarray, "resample other"]
) -> Float[np.ndarray, "resample"]:
    return drop.mean(1) - unrelated.mean(1)
