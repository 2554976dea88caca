"""The runs of a study of displacement in sentences, right whichever way they came out."""

import math
from collections.abc import Sequence

from workbench.core.statistics import Estimate
from workbench.report.words import listed
from workbench.study.displacement_grid import RANDOM
from workbench.study.displacement_result import FREE, MAIN, Result

CONTROLS = (
    "ln p(chosen) before",
    "length of both",
    "rejected longer by",
    "CHES",
    "edit distance, negated",
    "last hidden states alike",
    "random",
)


def reading(results: Sequence[Result], first: str, dropped: str, share: float) -> str:
    """What was done and what came out, in a few sentences; the rest is in the tables.

    Args: first: the objective that is spoken of.   dropped: that of the runs that leave pairs out.   share: of the pairs, that is
        left out.
    """
    shares = (f"{result.moved(first).displaced.value:.0%} ({result.on.about.name})" for result in results)
    said = [
        "Models were tuned to prefer one answer to another, and ln p of the preferred answers was measured again: a fall is a "
        "displacement.",
        f"{objective_name(first)} displaced {listed(shares)} of the preferred answers it was trained on.",
    ]
    return " ".join([*said, *_foretold(results, first), *_left_out(results, dropped, share)])


def objective_name(name: str) -> str:
    """An objective as papers write it: "DPO + SFT"."""
    return name.upper().replace("_", " + ")


def _foretold(results: Sequence[Result], objective: str) -> list[str]:
    """Whether length-normalized CHES told which pairs, also beyond ln p before, and which score told it best."""
    rho = {result.on.about.name: result.correlations(objective)[MAIN].estimate() for result in results}
    words = ("went with more displacement", "with less", "had no clear relation to it")
    parts = [f"{word} on {names}" for word, names in _sorted(rho, words)]
    said = [f"Before {objective_name(objective)}, a high length-normalized CHES {'; it '.join(parts)}."] if parts else []
    given = {r.on.about.name: r.given(objective, CONTROLS[0]).estimate() for r in results}
    parts = [f"{word} on {names}" for word, names in _sorted(given, ("positive", "negative", "not distinguishable from 0"))]
    said += [f"With {CONTROLS[0]} held constant its rank correlation was {'; '.join(parts)}."] if parts else []
    best = {r.on.about.name: found for r in results if (found := _best(r, objective))}
    if best:
        names = listed(f"“{score}” on {name} ({amount(found)})" for name, (score, found) in best.items())
        turned = any(found.value < 0 for score, found in best.values() if score in FREE)
        said.append(
            f"Of all scores, the highest rank correlation had {names}"
            + (", where scores that claim no direction count with either sign." if turned else ".")
        )
    return said


def _best(result: Result, objective: str) -> tuple[str, Estimate] | None:
    """The score with the highest rank correlation, of either sign where it claims no direction; None if no score has one."""
    found = {name: one.estimate() for name, one in result.correlations(objective).items() if name != RANDOM}
    heights = {name: abs(one.value) if name in FREE else one.value for name, one in found.items() if math.isfinite(one.value)}
    best = max(heights, key=lambda name: heights[name], default=None)
    return None if best is None else (best, found[best])


def _left_out(results: Sequence[Result], objective: str, share: float) -> list[str]:
    """What leaving pairs out by length-normalized CHES, and by the other scores, did to held-out pairs, against chance."""
    more = {
        result.on.about.name: {arm: result.effect(objective, arm).held_out_more for arm in result.arms if arm != RANDOM}
        for result in results
    }
    mine = {name: found[MAIN] for name, found in more.items() if MAIN in found}
    parts = [f"{word} on {names}" for word, names in _sorted(mine, ("higher", "lower", "no different"))]
    said = [
        f"Without the {share:.0%} of the pairs with the highest length-normalized CHES, rather than without as many by chance, "
        f"ln p of held-out preferred answers came out {'; '.join(parts)} (nats)."
    ]
    others = {
        word: [
            f"“{result.arms[arm]}” on {name}"
            for result, name in zip(results, more, strict=True)
            for arm in more[name]
            if arm != MAIN and sign(more[name][arm]) == wanted
        ]
        for word, wanted in (("higher", 1), ("lower", -1))
    }
    parts = [f"{word} without the highest {listed(names)}" for word, names in others.items() if names]
    rest = (
        f"Of the other scores, it came out {'; '.join(parts)}."
        if parts
        else "With no other score did it come out clearly different."
    )
    return [*(said if mine else []), *([rest] if any(set(found) - {MAIN} for found in more.values()) else [])]


def sign(found: Estimate) -> int | None:
    """1 or -1 where the whole interval is above or below 0, 0 where it is not, None where there is no value."""
    if not math.isfinite(found.value):
        return None
    return 1 if found.low > 0 else -1 if found.high < 0 else 0


def amount(found: Estimate) -> str:
    """A value with its interval."""
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _sorted(found: dict[str, Estimate], words: tuple[str, str, str]) -> list[tuple[str, str]]:
    """Names with their values, under the word for above 0, below 0, and neither; words without names are left out."""
    told: list[tuple[str, str]] = []
    for word, wanted in zip(words, (1, -1, 0), strict=True):
        names = [f"{name} ({amount(one)})" for name, one in found.items() if sign(one) == wanted]
        told += [(word, listed(names))] if names else []
    return told
