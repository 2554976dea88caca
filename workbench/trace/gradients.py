"""Gradients of sets: the mean over examples, and the mean of per-example squares, accumulated in float32.

    mean_gradient   g_i = (1/n) sum_e d loss_e / d w_i
    fisher          F_i = (1/n) sum_e (d loss_e / d w_i)^2         per example, not per batch
    curvature       one number a tensor: the mean diagonal entry of the generalized Gauss-Newton matrix of the mean NLL

Everything is a mean over examples, so a set counts the same however large it is and however it was batched. The mean of squared
batch gradients, which selective synaptic dampening's and WAGLE's code call Fisher or Hessian, has expectation
F/B + (1 - 1/B) g^2 and so depends on the batch size B; none of the functions here computes it.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from workbench.core.errors import DataError, NumericsError
from workbench.core.numerics import Forward, answer_logits, generator, mean_nll, wide
from workbench.core.runtime import plan_memory, progress
from workbench.core.store import text_sha256
from workbench.load.batches import Batch, Encoded, by_length, collate
from workbench.load.models import Model
from workbench.trace.forward import forward, logits

ExampleLoss = Callable[[Forward, list[int]], Float[Tensor, "batch"]]
Weights = dict[str, Tensor]


def nll(passed: Forward, rows: list[int]) -> Float[Tensor, "batch"]:
    """Mean negative log-likelihood per answer token, the default loss; `rows` are the examples' positions."""
    del rows
    return mean_nll(passed)


@contextmanager
def tracked(model: Model, names: Collection[str] | None = None) -> Iterator[dict[str, torch.nn.Parameter]]:
    """The floating-point parameters of these names (all without) with gradients on, and no others; as before on exit."""
    every = {n: p for n, p in model.hf.named_parameters() if p.is_floating_point()}
    found = {n: p for n, p in every.items() if names is None or n in names}
    before = {n: (p.requires_grad, p.grad) for n, p in every.items()}
    try:
        for n, p in every.items():
            p.requires_grad_(n in found)
            p.grad = None
        yield found
    finally:
        for n, p in every.items():
            flag, gradient = before[n]
            p.grad = None
            p.requires_grad_(flag)
            p.grad = gradient


def mean_gradient(
    model: Model,
    rows: Sequence[Encoded],
    loss: ExampleLoss = nll,
    *,
    names: Collection[str] | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
    label: str = "gradient",
) -> Weights:
    """Gradient of the mean loss over the set, for every parameter, float32 (float64 of a float64 model) on its device.

    Args:
        loss: answers' log-probabilities and the examples' positions -> one loss an example.
        names: the parameters to look at; all without.
        batch_tokens: largest padded batch, in tokens; changes memory, not the result beyond rounding.
    Raises: NumericsError naming the first parameter whose gradient is NaN or infinite; MemoryPlanError if it would not fit.
    """
    _plan(model, accumulators=1, job=label)
    _some(rows, label)
    # where every weight is at least float32, autograd's own accumulator is precise enough
    whole = all(p.dtype in (torch.float32, torch.float64) for p in model.hf.parameters())
    total: Weights = {}
    with tracked(model, names) as found:
        for chosen in progress(list(by_length(rows, max_tokens=batch_tokens)), label=label, show=show):
            # divided by n in float32, below: before the backward pass, float16 would lose the small gradients of large sets
            loss(forward(model, _batch(model, rows, chosen)), chosen).sum().backward()
            if not whole:
                _collect(found, total)
        if whole:
            _collect(found, total)
    return check_finite_all({name: gradient.div_(len(rows)) for name, gradient in total.items()}, label)


def fisher(
    model: Model,
    rows: Sequence[Encoded],
    loss: ExampleLoss = nll,
    *,
    names: Collection[str] | None = None,
    show: bool = False,
) -> Weights:
    """Diagonal empirical Fisher information: the mean over examples of the squared gradient of each example's loss.

    float32, [parameter shape]. One backward pass an example, so that no gradient is squared after being summed.

    Raises: NumericsError naming the first parameter whose Fisher is NaN or infinite.
    """
    _some(rows, "Fisher")
    _plan(model, accumulators=1, job="Fisher")
    total: Weights = {}
    with tracked(model, names) as found:
        for i in progress(range(len(rows)), label="Fisher", show=show):
            loss(forward(model, _batch(model, rows, [i])), [i]).sum().backward()
            for name, p in found.items():
                square = _gradient(p).square()
                total[name] = total[name].add_(square, alpha=1 / len(rows)) if name in total else square / len(rows)
                p.grad = None
    return check_finite_all(total, "Fisher")


def curvature(model: Model, rows: Sequence[Encoded], *, seed: int, names: Collection[str] | None = None) -> dict[str, float]:
    """Mean diagonal Gauss-Newton entry of the mean NLL over `rows`, one number a tensor, in nats per squared weight.

    At a token with probabilities p the Gauss-Newton matrix of the logits is H = diag(p) - p p' = L L', where L = D (I - q q'),
    D = diag(q) and q = sqrt(p). With random signs e, the gradient of (L e) . logits has mean zero and its square estimates the
    Gauss-Newton diagonal without bias; tokens with signs of their own do not interfere in expectation. So a row's backward pass of
    T^-1/2 sum_t (L e_t) . logits_t, with T its number of answer tokens, gives tr(GGN) = E ||gradient||^2; the rows are averaged. A
    row's signs depend on the seed and its tokens, so the order of the rows does not matter.

    Labels drawn from p give the same expectation (and labels of the data another number, the empirical Fisher), but where a model
    is sure of itself nearly all of it lies in rare draws: on a memorized set this estimate varies ten times less.

    Reference: Martens 2020, arXiv:1412.1193, section 9; Hutchinson 1990 for the random signs.
    """
    _some(rows, "curvature")
    trace: dict[str, float] = {}
    with tracked(model, names) as found:
        for i, row in enumerate(rows):
            batch = _batch(model, rows, [i])
            used = answer_logits(logits(model, batch), batch.answer)
            with torch.no_grad():
                root = used.softmax(-1).sqrt()
                signs = _signs(row, used.shape[-1], seed).to(used)
                probe = root * (signs - root * (root * signs).sum(-1, keepdim=True)) / len(used) ** 0.5
            (probe * used).sum().backward()
            for name, p in found.items():
                square = 0.0 if p.grad is None else float(torch.linalg.vector_norm(p.grad, dtype=wide(p.grad).dtype)) ** 2
                trace[name] = trace.get(name, 0.0) + square / p.numel() / len(rows)
                p.grad = None
    for name, value in trace.items():
        if not math.isfinite(value):
            raise NumericsError(f"curvature: that of {name} is NaN or infinite; half precision may have overflowed: try float32.")
    return trace


def _signs(row: Encoded, width: int, seed: int) -> Int8[Tensor, "answer_token width"]:
    """Random signs of a row's answer tokens, drawn on the CPU so that every device has the same."""
    source = generator(int(text_sha256([seed, row.tokens, row.start])[:15], 16))
    return torch.randint(0, 2, (len(row.tokens) - row.start, width), generator=source, dtype=torch.int8) * 2 - 1


def _some(rows: Sequence[Encoded], job: str) -> None:
    if not rows:
        raise DataError(f"{job}: there are no rows, so there is nothing to measure.")


def _batch(model: Model, rows: Sequence[Encoded], chosen: list[int]) -> Batch:
    return collate([rows[i] for i in chosen], device=model.device)


def _gradient(p: torch.nn.Parameter) -> Tensor:
    """The parameter's gradient, at least float32; zero if no example reached it."""
    return torch.zeros_like(wide(p.detach())) if p.grad is None else wide(p.grad)


def _collect(found: dict[str, torch.nn.Parameter], total: Weights) -> None:
    """Move gradients into the accumulators."""
    for name, p in found.items():
        gradient = _gradient(p)
        total[name] = total[name].add_(gradient) if name in total else gradient
        p.grad = None


def _plan(model: Model, *, accumulators: int, job: str) -> None:
    weights = sum(p.numel() for p in model.hf.parameters())
    needed = weights * (4 * accumulators + model.hf.dtype.itemsize)
    plan_memory(job, needed, model.device, cure="Use a machine with more memory, or a smaller model.")


def check_finite_all(total: Weights, label: str) -> Weights:
    """`total` itself; NumericsError naming the first parameter that holds NaN or infinity."""
    for name, tensor in total.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NumericsError(f"{label}: {name} holds NaN or infinity; half precision may have overflowed: try float32.")
    return total
