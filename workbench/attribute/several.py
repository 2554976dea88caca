"""Several scores from one pass over each set."""

from collections.abc import Iterable, Mapping
from typing import Any

from workbench.attribute.gather import Patterns, gather
from workbench.core.errors import InputError
from workbench.core.records import Examples
from workbench.core.registry import Member, attribution
from workbench.core.scores import Scores
from workbench.load.models import Model
from workbench.trace.gradients import ExampleLoss


def several(
    model: Model,
    forget: Examples,
    retain: Examples,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any] | None],
    *,
    forget_loss: ExampleLoss | str = "nll",
    include: Patterns = "*",
    exclude: Patterns = (),
    batch_tokens: int = 4096,
    show: bool = False,
) -> dict[str, Scores]:
    """Scores by several methods, which share one pass over the rows for all that they need together.

        several(model, forget, retain, ["wagle", "snip", "random"])
        several(model, forget, retain, {"wagle": {}, "published": {"method": "wagle", "gamma": "paper"}})

    Args:
        methods: registered names; or the options of each under a name of your own, with `method` where that is another.
        forget_loss, include, exclude, batch_tokens, show: of all of them; see `attribute.gather`.
    Returns: Scores by name, in the order given. `integrated_gradients` has passes of its own.
    Raises: UnknownNameError for a method or option; InputError for an option that all of them share.
    """
    shared = {"forget_loss": forget_loss, "include": include, "exclude": exclude, "batch_tokens": batch_tokens, "show": show}
    if isinstance(methods, str):
        raise InputError(f"several: methods is the text {methods!r}, expected a list of names or a mapping; write [{methods!r}].")
    named = methods if isinstance(methods, Mapping) else dict.fromkeys(methods)
    asked = {name: dict(own or {}) for name, own in named.items()}
    if not asked:
        raise InputError(f"several: no method was named. Known: {', '.join(attribution.names())}.")
    members = {name: attribution[str(own.pop("method", name))] for name, own in asked.items()}
    for name, own in asked.items():
        if set(own) & {*shared, "gathered"}:
            raise InputError(f"several: {name}: {', '.join(sorted(own))}: this option is the same for all; give it to `several`.")
        members[name].check_options(own)
    needs = sorted({need for member in members.values() for need in member.about["needs"]})
    # beside the moments: every method's scores, and the gradient from which WAGLE's curvature is read
    gathered = gather(model, forget, retain, needs, beside=len(members) + 1, **shared) if needs else None

    def score(member: Member, own: Mapping[str, Any]) -> Scores:
        common = {key: value for key, value in shared.items() if key in member.options}
        had = {"gathered": gathered} if member.about["needs"] else {}
        return member.function(model, forget, retain, **common, **had, **own)

    return {name: score(member, asked[name]) for name, member in members.items()}
