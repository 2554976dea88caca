"""A rehearsal of `validate_data`: recipe and methods are tried on a few rows, so that what is wrong is said before the bank."""

from collections.abc import Sequence
from dataclasses import replace

from workbench.core.errors import NumericsError
from workbench.study.bank import retrain
from workbench.study.validate_data_methods import Full, Labels, Method, called, place


def rehearse(full: Full, methods: Sequence[Method], seeds: Sequence[int], labels: Labels | None) -> None:
    """Train one epoch on one row, and call every method that is not in the folder yet on two rows and one query; keep nothing.

    Raises: what training and methods raise of their options, such as InputError for a warm-up of 2; numbers that come out NaN on so
        few rows are no reason to stop.
    """
    absent = [one for one in methods if not all(place(full, one, seed, labels).exists() for seed in seeds)]
    if not absent:
        return
    on = full.on
    trained = retrain(on.model, on.rows[:1], replace(on.recipe, epochs=1), seed=seeds[0], snapshots=True, moments=True)
    # a schedule that falls to 0 within one step would give the only checkpoint no rate
    trained = replace(trained, checkpoints=[one._replace(lr=on.recipe.lr) for one in trained.checkpoints])
    for one in absent:
        if one.kind == "labels":
            continue
        try:
            called(on.model, one, on.query[:1], on.train[:2], trained)
        except NumericsError:
            continue
