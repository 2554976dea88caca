"""The pairs of a study of displacement: made from rows with false answers, and split so that nothing measured was trained on."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from workbench.core.errors import DataError
from workbench.core.numerics import permutation
from workbench.core.records import Examples, PreferencePair, PreferencePairs


class Split(NamedTuple):
    """Pairs to train on and pairs that are only measured. answers_apart: no answer text is in both, as no prompt is."""

    train: PreferencePairs
    held_out: PreferencePairs
    answers_apart: bool


def perturbed_pairs(rows: Examples, *, each: int = 1, seed: int = 0) -> PreferencePairs:
    """Every row's answer against `each` of its false ones, drawn without replacement; rows with fewer are left out.

    Raises: DataError if no row has as many.
    """
    draw = random.Random(seed)
    pairs = [
        PreferencePair(f"{row.id}-{place}", row.prompt, row.response, false)
        for row in rows
        if len(row.perturbed) >= each
        for place, false in enumerate(draw.sample(row.perturbed, each))
    ]
    if not pairs:
        raise DataError(f"perturbed_pairs: no row of {rows.name} has {each} false answers. Use rows with 'perturbed_answer'.")
    return PreferencePairs(pairs, rows.name)


def split(pairs: PreferencePairs, rows: int, held_out: int) -> Split:
    """`rows` pairs to train on, and `held_out` pairs that share neither prompt nor answer text with them and are only measured.

    Pairs that share a prompt or an answer, chosen or rejected, belong together, and so do pairs linked by others: whole such groups
    are held out until there are enough pairs, of which the first are taken. Where all pairs are one group, because answers are the
    letters of a choice, only prompts are kept apart. The order of the groups is drawn by their number alone.

    Raises: DataError if the pairs do not suffice.
    """
    groups = _components([{("prompt", pair.prompt), ("answer", pair.chosen), ("answer", pair.rejected)} for pair in pairs])
    answers_apart = len(set(groups)) > 1
    if not answers_apart:
        groups = _components([{("prompt", pair.prompt)} for pair in pairs])
    names = list(dict.fromkeys(groups))
    place = {names[i]: rank for rank, i in enumerate(permutation(len(names), 0))}
    order = sorted(range(len(pairs)), key=lambda i: (place[groups[i]], i))
    held = order[:held_out]
    taken = {groups[i] for i in held}
    train = [i for i in order[held_out:] if groups[i] not in taken][:rows]
    if len(held) < held_out or len(train) < rows:
        shared = "prompt or answer" if answers_apart else "prompt"
        raise DataError(
            f"{pairs.name}: {len(pairs)} pairs in {len(names)} groups that share no {shared} do not give {rows} to train on and "
            f"{held_out} of other groups; there are {len(train)} and {len(held)}. Lower rows or held_out."
        )
    return Split(pairs.take(sorted(train)), pairs.take(sorted(held)), answers_apart)


def _components(rows: Sequence[set[tuple[str, str]]]) -> list[int]:
    """The connected component of every row, where rows that share a member are connected: its first row's position."""
    component: dict[tuple[str, str], int] = {}
    members: dict[int, set[tuple[str, str]]] = {}
    for i, row in enumerate(rows):
        joined = {component[one] for one in row if one in component}
        first = min(joined, default=i)
        whole = row.union(*(members.pop(one) for one in joined))
        members[first] = whole
        component |= dict.fromkeys(whole, first)
    return [component[next(iter(row))] for row in rows]
