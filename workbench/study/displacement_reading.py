"""The runs of a study of displacement in sentences, right whichever way they came out."""

import math
from collections.abc import Sequence

from workbench.core.statistics import Estimate
from workbench.report.words import listed
from workbench.study.displacement_result import MAIN, Result

CONTROLS = (
    "ln p(chosen) before",
    "length of both",
    "rejected longer by",
    "CHES",
    "edit distance, negated",
    "last hidden states alike",
    "random",
)
LEFT_OUT = {
    MAIN: "the highest length-normalized CHES",
    "CHES": "the highest CHES without normalization",
    "rejected longer by": "the most tokens in the rejected answer beyond those in the chosen one",
}


def reading(results: Sequence[Result], order: Sequence[str], dropped: str, share: float) -> str:
    """What was done and what came out.

    Args: order: the objectives, that of which most is said first.   dropped: that of the runs that leave pairs out.
        share: of the pairs, that is left out.
    """
    said = [
        "Models were tuned to prefer one answer to another, and ln p of the preferred answers was measured again: a fall is a "
        "displacement."
    ]
    for name in order:
        parts = [f"{result.moved(name).displaced.value:.0%} ({result.on.about.name})" for result in results]
        said.append(f"{objective_name(name)} displaced {listed(parts)} of the preferred answers it was trained on.")
    return " ".join([*said, *_foretold(results, order[0]), *_left_out(results, dropped, share)])


def objective_name(name: str) -> str:
    """An objective as papers write it: "DPO + SFT"."""
    return name.upper().replace("_", " + ")


def _foretold(results: Sequence[Result], objective: str) -> list[str]:
    """Whether length-normalized CHES told which pairs, and whether what costs less told it as well."""
    rho = {result.on.about.name: result.correlations(objective)[MAIN].estimate() for result in results}
    words = ("went with more displacement", "with less", "had no clear relation to it")
    parts = [f"{word} on {names}" for word, names in _sorted(rho, words)]
    said = [f"Before {objective_name(objective)}, a high length-normalized CHES {'; it '.join(parts)}."] if parts else []
    for result in (r for r in results if math.isfinite(rho[r.on.about.name].value)):
        apart = {f"“{control}”": result.versus(objective, control).estimate() for control in CONTROLS}
        better, worse = (listed(name for name, one in apart.items() if sign(one) == s) for s in (1, -1))
        verdicts = (("more closely than", better), ("less closely than", worse))
        clear = [f"{word} {names}" for word, names in verdicts if names != "none"]
        verdict = "; ".join(clear) or "neither more nor less closely than any control"
        said.append(f"On {result.on.about.name} it followed displacement {verdict}.")
    given = {r.on.about.name: r.given(objective, CONTROLS[0]).estimate() for r in results}
    parts = [f"{word} on {names}" for word, names in _sorted(given, ("positive", "negative", "not distinguishable from 0"))]
    return [*said, f"With {CONTROLS[0]} held constant its rank correlation was {'; '.join(parts)}."] if parts else said


def _left_out(results: Sequence[Result], objective: str, share: float) -> list[str]:
    """What leaving pairs out by either CHES, or by lengths alone, did to held-out pairs, against leaving out as many by chance."""
    said: list[str] = []
    for arm, name in LEFT_OUT.items():
        found = {r.on.about.name: r.effect(objective, arm).held_out_more for r in results if arm in r.arms}
        words = ("higher", "lower", "no different")
        parts = [f"{word} on {names}" for word, names in _sorted(found, words)]
        if parts:
            said.append(
                f"Without the {share:.0%} of the pairs with {name}, rather than without as many by chance, ln p of "
                f"held-out preferred answers came out {'; '.join(parts)} (nats)."
            )
    return said


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
