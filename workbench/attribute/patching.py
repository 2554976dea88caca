"""Which heads, neurons or residual sites carry the difference between two prompts: true patching, and its estimate.

    true patching     run the model on one prompt (base) with one component's activation taken from the other (source)
                      effect = M(base with a := a_source) - M(base)
    attribution       AtP, the first-order Taylor term of the same for every component at once, from one run of the source
    patching          and one run of the base with its gradient:  (a_source - a_base) . dM/da at the base

Both are summed over the positions and features of the component and averaged over pairs. M is in nats by default. A component
is a head (its part of hook_z, what the output projection reads: so grouped-query attention needs no special case), a neuron
(mlp.post), or the residual stream before a block at one position, counted from the end.

Direction, by what is patched in: "denoise" puts clean activations into the corrupted run (positive: the component brings the
clean answer back); "noise" puts corrupted ones into the clean run (negative: the clean answer needs it). The two are not each
other's negative. Effects are differences in M, not shares of M(clean) - M(corrupted) as in Wang et al. 2022 and
TransformerLens' demos: divide by provenance.notes["metric_clean"] - ["metric_corrupted"] for those.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from workbench.attribute.contrast_runs import (
    Metric,
    answer_difference,
    batches,
    entries,
    frozen,
    keeping,
    layers_with,
    measure,
    reduce,
    replaced,
    site_of,
)
from workbench.core.components import GRIDS, Agreement, Components, Place
from workbench.core.errors import InputError, ModelError, unknown
from workbench.core.numerics import check_finite
from workbench.core.records import Provenance
from workbench.core.runtime import progress
from workbench.load.contrasts import Contrasts, EncodedContrasts, encode_contrasts
from workbench.load.models import Model
from workbench.trace.forward import check_eval

KINDS = ("head", "neuron", "resid")
DIRECTIONS = ("denoise", "noise")


def attribution_patching(
    model: Model,
    contrasts: Contrasts,
    *,
    kind: str = "head",
    metric: Metric = answer_difference,
    direction: str = "denoise",
    verify: int = 16,
    batch_tokens: int = 4096,
    seed: int = 0,
    show: bool = False,
) -> Components:
    """Estimate the effect of patching every component of a kind, and check the ranking by patching a sample of them.

    value = mean over pairs of sum_{position, feature} (a_source - a_base) dM/da, at the base run.

    Args:
        kind: "head", "neuron" or "resid".
        metric: (logits [batch d_vocab] at the last token, correct, incorrect [batch d_vocab]) -> [batch]; differentiable.
        direction: "denoise": base corrupted, source clean; "noise": the other way round. See the module.
        verify: how many components to patch for real (all if there are fewer), drawn evenly over the ranking of the values;
            0 leaves `agreement` None.
        batch_tokens: largest padded batch; changes memory (activations of all layers of one site are held twice), not values.
        seed: of that sample and of the bootstrap.
    Returns: Components; a residual site's n is the number of pairs that are long enough to have it.
    Raises: ModelError if the model has no such components (neurons of a mixture of experts) or no gradient reaches them;
        NumericsError naming the site of a gradient that is not finite; DataError if no pair can be used; InputError in
        training mode.
    Reference: Syed et al. 2023, arXiv:2310.10348 (after Nanda's attribution patching); Kramar et al. 2024, arXiv:2403.00745
        (AtP*). Known failures: a saturated attention softmax has no gradient although patching its inputs would matter, and
        effects of opposite sign cancel; AtP* recomputes the softmax and drops gradients by layer, this does neither. EAP
        scores edges and EAP-IG averages gradients along a path: other numbers. The Spearman says how far to trust these.
    """
    if type(verify) is not int or verify < 0:
        raise InputError(f"attribution_patching: verify is {verify}, expected a number of components, 0 or more.")
    coded = _prepare(model, contrasts, kind, direction)
    layers = layers_with(model, kind)
    effects: dict[int, list[tuple[list[int], Tensor]]] = {layer: [] for layer in layers}
    metrics = np.full((len(coded.ids), 2), np.nan)
    for pairs in progress(batches(model, coded, direction, batch_tokens), label=f"patching: {kind}s", show=show):
        with torch.no_grad(), keeping(model, kind, layers) as source:
            metrics[pairs.rows, 1] = measure(model, pairs.source, pairs, metric).cpu()
        with frozen(model), torch.enable_grad(), keeping(model, kind, layers, rooted=True) as base:
            measured = measure(model, pairs.base, pairs, metric)
            gradients = _gradients(model, measured, [base[layer] for layer in layers], layers, kind)
        metrics[pairs.rows, 0] = measured.detach().cpu()
        for layer, gradient in zip(layers, gradients, strict=True):
            product = (source[layer].double() - base[layer].detach().double()) * gradient.double()
            effects[layer].append((pairs.rows, reduce(model, product, pairs.base.attention, kind).cpu()))
    estimates, places = _assemble(effects, coded, kind)
    agreement = None
    if verify:
        sample = _spread(np.nanmean(estimates, axis=0), verify, seed)
        chosen = [places[i] for i in sample]
        true, _ = _patched(model, coded, chosen, kind, direction, metric, batch_tokens, show)
        agreement = _agree(np.nanmean(estimates[:, sample], axis=0), np.nanmean(true, axis=0), chosen)
    options = {"kind": kind, "direction": direction, "verify": verify}
    about = _about("attribution_patching", model, contrasts, coded, options, metric, metrics, seed)
    return _record(kind, places, estimates, direction, metric, about, agreement, seed)


def activation_patching(
    model: Model,
    contrasts: Contrasts,
    components: Sequence[tuple[int, int]],
    *,
    kind: str = "head",
    metric: Metric = answer_difference,
    direction: str = "denoise",
    batch_tokens: int = 4096,
    seed: int = 0,
    show: bool = False,
) -> Components:
    """Effect on M of replacing each component's activation by that of the other prompt, one forward pass each.

    value = mean over pairs of M(base with a := a_source) - M(base); all positions of a head or neuron are replaced at once.

    Args:
        components: (layer, index) of each, e.g. `found.top(10).places`; of a residual site the index is the position from
            the end, -1 the last token.
        kind, metric, direction, batch_tokens: as in `attribution_patching`.   seed: of the bootstrap.
    Raises: InputError if a layer, head, neuron or position does not exist, or one is given twice; else as there.
    Reference: Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022, arXiv:2202.05262 (causal tracing, which corrupts by noise
        on the embeddings: another base run).
    """
    coded = _prepare(model, contrasts, kind, direction)
    places = _checked(model, components, kind, coded)
    effects, metrics = _patched(model, coded, places, kind, direction, metric, batch_tokens, show)
    options = {"kind": kind, "direction": direction}
    about = _about("activation_patching", model, contrasts, coded, options, metric, metrics, seed)
    return _record(kind, places, effects, direction, metric, about, None, seed)


def _prepare(model: Model, contrasts: Contrasts, kind: str, direction: str) -> EncodedContrasts:
    """The pairs as tokens, once the options are known to be good."""
    if kind not in KINDS:
        raise unknown("kind of component", kind, KINDS)
    if direction not in DIRECTIONS:
        raise unknown("direction", direction, DIRECTIONS)
    check_eval(model)
    return encode_contrasts(model, contrasts)


def _gradients(
    model: Model, measured: Float[Tensor, "batch"], activations: list[Tensor], layers: Sequence[int], kind: str
) -> tuple[Tensor, ...]:
    """dM/da of every layer's site; pairs do not mix, so the gradient of the sum holds each pair's own."""
    if not measured.requires_grad:
        raise ModelError("attribution_patching: the metric has no gradient with respect to the activations; is it detached?")
    found = torch.autograd.grad(measured.sum(), activations)
    for layer, gradient in zip(layers, found, strict=True):
        check_finite(f"attribution_patching: gradient at {site_of(kind, layer)} of {model.name}", gradient)
    return found


def _assemble(
    effects: dict[int, list[tuple[list[int], Tensor]]], coded: EncodedContrasts, kind: str
) -> tuple[Float[np.ndarray, "pair component"], list[Place]]:
    """Batches back into the order of the pairs, layers side by side, with the place of every column."""
    width = max(part.shape[1] for parts in effects.values() for _, part in parts)
    out = np.full((len(coded.ids), len(effects), width), np.nan)
    for at, parts in enumerate(effects.values()):
        for rows, part in parts:
            out[rows, at, : part.shape[1]] = part.numpy()
    places = [Place(layer, -1 - i if kind == "resid" else i) for layer in effects for i in range(width)]
    return out.reshape(len(coded.ids), -1), places


def _checked(model: Model, components: Sequence[tuple[int, int]], kind: str, coded: EncodedContrasts) -> list[Place]:
    """The places, if all of them exist and none stands twice."""
    places = []
    for one in components:
        if not isinstance(one, tuple | list) or len(one) != 2 or not all(isinstance(n, int | np.integer) for n in one):
            raise InputError(f"activation_patching: components has {one!r}, expected (layer, index), two whole numbers.")
        places.append(Place(int(one[0]), int(one[1])))
    layers = layers_with(model, kind)
    count = {"head": lambda: model.sites.n_heads, "neuron": lambda: model.d_mlp, "resid": lambda: 0}[kind]()
    first = -max(row.start for row in coded.clean) if kind == "resid" else 0
    if not places or len(set(places)) < len(places):
        raise InputError(f"activation_patching: components has {len(places)} entries, {len(set(places))} of them different.")
    for place in places:
        if place.layer not in layers or not first <= place.index < count:
            raise InputError(
                f"activation_patching: {kind} {place.index} of layer {place.layer} does not exist; layers are {layers[0]} to "
                f"{layers[-1]}, and {GRIDS[kind][1]} goes from {first} to {count - 1}."
            )
    return places


def _patched(
    model: Model,
    coded: EncodedContrasts,
    places: Sequence[Place],
    kind: str,
    direction: str,
    metric: Metric,
    batch_tokens: int,
    show: bool,
) -> tuple[Float[np.ndarray, "pair component"], Float[np.ndarray, "pair 2"]]:
    """True effects, NaN where a pair has no such position; and M of the base and the source run."""
    effects = np.full((len(coded.ids), len(places)), np.nan)
    metrics = np.full((len(coded.ids), 2), np.nan)
    layers = sorted({place.layer for place in places})
    for pairs in progress(batches(model, coded, direction, batch_tokens), label=f"true patching: {kind}s", show=show):
        with torch.no_grad():
            with keeping(model, kind, layers) as source:
                metrics[pairs.rows, 1] = measure(model, pairs.source, pairs, metric).cpu()
            before = measure(model, pairs.base, pairs, metric)
            metrics[pairs.rows, 0] = before.cpu()
            for at, place in enumerate(places):
                where = entries(model, pairs.base.attention, source[place.layer].shape[-1], place, kind)
                with replaced(model, site_of(kind, place.layer), where, source[place.layer]):
                    change = (measure(model, pairs.base, pairs, metric) - before).double().cpu().numpy()
                effects[pairs.rows, at] = np.where(where.flatten(1).any(-1).cpu().numpy(), change, np.nan)
    return effects, metrics


def _spread(values: Float[np.ndarray, "component"], wanted: int, seed: int) -> list[int]:
    """`wanted` components, one drawn from each of as many equal stretches of the ranking."""
    rng = np.random.default_rng(seed)
    stretches = np.array_split(np.argsort(values, kind="stable"), min(wanted, len(values)))
    return [int(rng.choice(stretch)) for stretch in stretches]


def _agree(estimates: Float[np.ndarray, "n"], true: Float[np.ndarray, "n"], places: Sequence[Place]) -> Agreement:
    """Spearman's rank correlation; NaN with the reason where it is not defined."""
    effects = tuple(float(x) for x in true)
    if len(places) == 1:
        return Agreement(float("nan"), 1, tuple(places), effects, "one component")
    for what, values in (("estimates", estimates), ("true effects", true)):
        if np.ptp(values) == 0:
            return Agreement(float("nan"), len(places), tuple(places), effects, f"all {what} are equal")
    return Agreement(float(cast(Any, spearmanr(estimates, true))[0]), len(places), tuple(places), effects)


def _about(
    method: str,
    model: Model,
    contrasts: Contrasts,
    coded: EncodedContrasts,
    options: dict[str, Any],
    metric: Metric,
    metrics: Float[np.ndarray, "pair 2"],
    seed: int,
) -> Provenance:
    """Where the record came from; notes: pairs kept, pairs dropped by reason, mean M of both prompts, layers left out."""
    base, source = metrics.mean(axis=0).tolist()
    clean, corrupted = (source, base) if options["direction"] == "denoise" else (base, source)
    without = sorted(set(range(model.n_layers)) - set(layers_with(model, options["kind"])))
    return Provenance(
        method,
        model.fingerprint(),
        {"contrasts": contrasts.fingerprint()},
        {**options, "metric": getattr(metric, "__name__", type(metric).__name__)},
        seed,
        str(model.dtype),
        "sum over positions and features, mean over pairs, float64",
        sum(row.start for row in coded.clean + coded.corrupted),
        {
            "kept": len(coded.ids),
            "dropped": coded.dropped,
            "metric_clean": clean,
            "metric_corrupted": corrupted,
            "layers_without": without,
        },
    )


def _record(
    kind: str,
    places: Sequence[Place],
    effects: Float[np.ndarray, "pair component"],
    direction: str,
    metric: Metric,
    about: Provenance,
    agreement: Agreement | None,
    seed: int,
) -> Components:
    unit = "nats" if metric is answer_difference else f"{about.options['metric']} units"
    site = [GRIDS[kind][0]] * len(places)
    said = {"unit": unit, "direction": direction, "provenance": about, "agreement": agreement, "seed": seed}
    return Components.of(kind, site, places, effects, **said)
