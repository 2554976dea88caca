"""Run both prompts of contrasts, measure what separates the answers, and keep the activations the model computed with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.core.components import GRIDS, Place
from workbench.core.errors import ModelError, ShapeError, UnknownNameError
from workbench.core.numerics import wide
from workbench.load.batches import Batch, by_length, collate
from workbench.load.contrasts import EncodedContrasts
from workbench.load.models import Model
from workbench.trace.forward import logits
from workbench.trace.hooks import patch

Metric = Callable[
    [Float[Tensor, "batch d_vocab"], Bool[Tensor, "batch d_vocab"], Bool[Tensor, "batch d_vocab"]], Float[Tensor, "batch"]
]


class Pairs(NamedTuple):
    """One batch: the run that is patched, the run patched in, which rows of the set they are, and the answers' tokens."""

    base: Batch
    source: Batch
    rows: list[int]
    correct: Bool[Tensor, "batch d_vocab"]
    incorrect: Bool[Tensor, "batch d_vocab"]


def answer_difference(
    last: Float[Tensor, "batch d_vocab"],
    correct: Bool[Tensor, "batch d_vocab"],
    incorrect: Bool[Tensor, "batch d_vocab"],
) -> Float[Tensor, "batch"]:
    """How much more likely the next token starts a correct answer than an incorrect one, in nats.

    M = ln sum_{v correct} p(v) - ln sum_{v incorrect} p(v); with one answer each, the difference of their logits.

    Args: last: logits at the last position.   correct, incorrect: true at the first tokens of the answers.
    Reference: Hanna et al. 2023, arXiv:2305.00586, use the difference of the probabilities, which saturates at 1; Wang et al.
        2022, arXiv:2211.00593, the logit difference.
    """
    low = torch.full_like(last, -torch.inf)
    return torch.where(correct, last, low).logsumexp(-1) - torch.where(incorrect, last, low).logsumexp(-1)


def site_of(kind: str, layer: int) -> str:
    """Name of the site that holds the components of this kind in one layer."""
    return f"blocks.{layer}.{GRIDS[kind][0]}"


def layers_with(model: Model, kind: str) -> list[int]:
    """The layers that have such components; ModelError if none has (some models mix dense and expert layers)."""
    found, missing = [], None
    for layer in range(model.n_layers):
        try:
            model.sites[site_of(kind, layer)]
            found.append(layer)
        except UnknownNameError as error:
            missing = error
    if not found:
        raise ModelError(
            f"patching: {type(model.hf).__name__} has no {kind}s that can be named: no layer has the site {GRIDS[kind][0]!r} "
            "(a mixture of experts has no neurons, another kind of mixer no heads). Use kind='resid'."
        ) from missing
    return found


def batches(model: Model, coded: EncodedContrasts, direction: str, batch_tokens: int) -> list[Pairs]:
    """Pairs of equal length stay aligned, because both prompts of a pair are padded to the same width."""
    runs = (coded.corrupted, coded.clean) if direction == "denoise" else (coded.clean, coded.corrupted)
    made = []
    for chosen in by_length(coded.clean, max_tokens=batch_tokens):
        base, source = (collate([run[i] for i in chosen], device=model.device) for run in runs)
        answers = [torch.zeros(len(chosen), model.d_vocab, dtype=torch.bool) for _ in range(2)]
        for row, i in enumerate(chosen):
            answers[0][row, coded.correct[i]] = True
            answers[1][row, coded.incorrect[i]] = True
        made.append(Pairs(base, source, chosen, *(answer.to(model.device) for answer in answers)))
    return made


def measure(model: Model, run: Batch, pairs: Pairs, metric: Metric) -> Float[Tensor, "batch"]:
    """M of each pair, at the last token of one run.

    Raises: ShapeError unless the metric gives one value a pair.
    """
    last = run.attention.long().cumsum(-1).argmax(-1)  # the first position where all of the row's tokens are counted
    rows = torch.arange(len(last), device=last.device)
    found = metric(wide(logits(model, run)[rows, last]), pairs.correct, pairs.incorrect)
    if tuple(found.shape) != (len(last),):
        raise ShapeError(
            f"patching: the metric gave a tensor of shape {tuple(found.shape)} for {len(last)} pairs, expected one value a pair, "
            f"({len(last)},). Does it average over the batch?"
        )
    return found


@contextmanager
def keeping(model: Model, kind: str, layers: Sequence[int], *, rooted: bool = False) -> Iterator[dict[int, Tensor]]:
    """Activations by layer: copies, or, `rooted`, the very ones in a graph of gradients that begins at the first block."""
    held: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            held[layer] = value if rooted else value.clone()  # some models add into this memory later

        return read

    def root(value: Tensor) -> Tensor:
        leaf = value.detach().clone().requires_grad_()
        if kind == "resid":
            held[0] = leaf
        return leaf

    reads: dict[str, Callable[[Tensor], Tensor | None]] = {site_of(kind, layer): keep(layer) for layer in layers}
    with patch(model, reads | ({site_of("resid", 0): root} if rooted else {})):
        yield held


@contextmanager
def replaced(model: Model, site: str, where: Bool[Tensor, "batch pos features"], source: Tensor) -> Iterator[None]:
    """The model with some entries of one site taken from `source`, an activation of the other run."""
    with patch(model, {site: lambda value: torch.where(where, source, value)}):
        yield


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """No gradients for parameters inside; their flags are as before on exit."""
    flags = [(p, p.requires_grad) for p in model.hf.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def entries(
    model: Model, attention: Bool[Tensor, "batch pos"], width: int, place: Place, kind: str
) -> Bool[Tensor, "batch pos features"]:
    """Which entries of the activation belong to a component."""
    from_end = attention.flip(-1).long().cumsum(-1).flip(-1)  # 1 at a row's last token, 2 before it, ...
    if kind == "resid":
        return (attention & (from_end == -place.index))[..., None].expand(-1, -1, width)
    size = width // model.sites.n_heads if kind == "head" else 1
    features = torch.arange(width, device=attention.device) // size == place.index
    return attention[..., None] & features


def reduce(
    model: Model, product: Float[Tensor, "batch pos features"], attention: Bool[Tensor, "batch pos"], kind: str
) -> Float[Tensor, "batch component"]:
    """Sum over what belongs to one component; positions from the end in the order -1, -2, ..., NaN before a row's start.

    Padding adds nothing to heads and neurons: M does not depend on it, so its gradient is 0.
    """
    if kind == "neuron":
        return product.sum(1)
    if kind == "head":
        return product.unflatten(-1, (model.sites.n_heads, -1)).sum((1, 3))
    by_position = product.sum(-1)
    out = torch.full_like(by_position, torch.nan)
    for row, real in enumerate(attention):
        out[row, : int(real.sum())] = by_position[row, real].flip(0)
    return out
