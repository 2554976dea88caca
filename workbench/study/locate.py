"""Edits in a study file: what an edit needs beside the model is found on the forget and retain rows, then the edit is made.

    an edit takes   what is found for it                                              locate, with its defaults
    sets            nothing, it looks at the rows itself                              -
    a direction     the normal of a probe that tells forget rows from retain rows     probe: logistic, layer: the best
    places          the units whose weights have the highest mean score               attribute: fisher_ratio, fraction: 0.05

    {method: orthogonalize}
    {method: ablate_neurons, locate: {attribute: wagle, fraction: 0.02}}      2 % of all neurons
    {method: ablate_neurons, control: place}                                  as many others of each layer, by chance

Surgery gets a direction of every layer unless one is named, at the site its matrix reads or writes. Edits that take means over
texts take them over the retain rows, unless the file has `texts`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from workbench.attribute import unit_scores
from workbench.core.delta import Delta
from workbench.core.direction import Direction
from workbench.core.errors import StudyError
from workbench.core.records import Examples
from workbench.core.registry import Member, attribution, edit
from workbench.core.registry import probe as probes
from workbench.edit.surgery import site_of
from workbench.load.models import Model
from workbench.probe import ProbeSweep, fit
from workbench.study.file import mapping


def read_edit(where: str, name: str, body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered name of an edit and its options, `locate` among them where it was given.

    Args: where: named in messages.   name: the edit, where `body` has no `method`.
    Raises: StudyError or UnknownNameError, with the nearest name, for an edit or option nobody knows; InputError for a value.
    """
    options = dict(body)
    member = edit[str(options.pop("method", name))]
    locate = dict(mapping(f"{where}.locate", options.pop("locate", {})))
    member.check_options(options)
    finder = {"direction": find_direction, "places": find_places}.get(member.about["where"])
    if finder is None and locate:
        raise StudyError(f"{where}: {member.name} looks at the rows itself. Leave `locate` out.")
    if finder is not None:
        Member(f"{where}.locate", finder).check_options(locate)
        if not 0 < locate.get("fraction", 1) <= 1:
            raise StudyError(f"{where}.locate.fraction is {locate['fraction']}, expected a share above 0 and at most 1.")
        for registry, key in ((probes, "probe"), (attribution, "attribute")):
            if key in locate:
                registry[locate[key]]
    return member.name, options | ({"locate": locate} if locate else {})


def make_edit(model: Model, called: str, options: Mapping[str, Any], forget: Examples, retain: Examples) -> Delta:
    """An edit as `read_edit` has it, with what it needs found on these rows.

    Raises: as the probe or the attribution, and as the edit.
    """
    member, given = edit[called], dict(options)
    locate = given.pop("locate", {})
    if member.about["where"] == "sets":
        return member.function(model, forget, retain, **given)
    if "texts" in member.options:
        given.setdefault("texts", retain)
    if member.about["where"] == "places":
        return member.function(model, find_places(model, forget, retain, member.about["unit"], **locate), **given)
    if called != "surgery":
        return member.function(model, find_direction(model, forget, retain, **locate), **given)
    site = site_of(given.get("matrix", member.options["matrix"]))
    if locate.get("layer") is not None:
        return member.function(model, find_direction(model, forget, retain, site, **locate), **given)
    return member.function(model, _sweep(model, forget, retain, site, locate.get("probe", "logistic")).directions(), **given)


def find_direction(
    model: Model, forget: Examples, retain: Examples, site: str = "resid_post", *, probe: str = "logistic", layer: int | None = None
) -> Direction:
    """The direction along which a probe says that a text is of the forget rows, not of the retain rows; positive = forget.

    Args:
        site: of a block.   probe: registered, with its default options; it reads the mean over a row's prompt and answer.
        layer: that of the best cross-validated AUC without.
    Raises: as `probe.fit`; InputError for a layer there is not.
    """
    return _sweep(model, forget, retain, site, probe).direction(layer)


def find_places(
    model: Model,
    forget: Examples,
    retain: Examples,
    unit: str = "neuron",
    *,
    attribute: str = "fisher_ratio",
    fraction: float = 0.05,
) -> Sequence[tuple[int, int]] | Sequence[int]:
    """The units whose weights have the highest mean score, highest first; of equal ones the first.

    Args:
        unit: one of `attribute.parts.UNITS` gives (layer, index) of each; "layer" ranks whole layers by the mean of their neurons'
            and their heads' scores, whichever part of them is then cut.
        attribute: registered, with its default options.   fraction: of all units, 0 < fraction <= 1; at least one unit.
    Raises: as the attribution.
    """
    scores = attribution[attribute].function(model, forget, retain)
    kinds = ("neuron", "head") if unit == "layer" else (unit,)
    tables = [unit_scores(model, scores, unit=kind) for kind in kinds]
    ranking = tables[0] if unit != "layer" else torch.stack([table.mean(1) for table in tables], 1).mean(1, keepdim=True)
    order = ranking.flatten().argsort(descending=True, stable=True)[: max(1, round(fraction * ranking.numel()))].tolist()
    return order if unit == "layer" else [divmod(i, ranking.shape[1]) for i in order]


def _sweep(model: Model, forget: Examples, retain: Examples, site: str, probe: str) -> ProbeSweep:
    """A probe at every layer, as `find_direction` has it."""
    texts = [f"{row.prompt} {row.response}" for row in (*forget, *retain)]
    labels = [True] * len(forget) + [False] * len(retain)
    return fit(model, texts, labels, sites=(site,), method=probe, controls=0)
