"""What weight scores are made of, for several sets in one pass over their rows: gradients, squared gradients, input norms.

    gradient   (1/n) sum_e g_e        mean over a set's examples of the gradient of each one's loss
    square     (1/n) sum_e g_e^2      the same of its square: per example, never per batch
    inputs     (1/T) sum_t x_t^2      mean over a set's tokens of each linear map's squared input features

Rows of all sets share a batch. Autograd would give the sum of their gradients; instead, each module's input and the gradient of
its output are put together for every set, or every example, by itself (`by_module.py`), at the cost of one backward pass. That
this is all of a parameter's gradient is not taken for granted: on a first pair of rows every parameter's sum is compared with
autograd's. A model that fails (mixtures of experts, weights used outside their module) is gone through set by set, or example by
example, with plain autograd; and so are gradients alone, for which that is as quick and works on any model.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.core.errors import DataError
from workbench.core.numerics import Forward, answer_logprobs, wide
from workbench.core.runtime import progress
from workbench.load.batches import Batch, Encoded, by_length, collate
from workbench.load.models import Model
from workbench.trace.by_module import Sums, linear, lookup, rerun
from workbench.trace.forward import logits
from workbench.trace.gradients import ExampleLoss, Weights, check_finite_all, fisher, mean_gradient, nll, tracked
from workbench.trace.watch import Unsupported, Watcher, check_shared, shared, watched

Found = dict[tuple[str, str], Weights]
_BACKWARD = frozenset({"gradient", "square"})  # what needs a backward pass


class Wanted(NamedTuple):
    """One set: its rows, the loss of each, and what is wanted of it: "gradient", "square", "inputs"."""

    rows: Sequence[Encoded]
    quantities: frozenset[str]
    loss: ExampleLoss = nll


class _Part(NamedTuple):
    """The rows of one set in a batch."""

    set: str
    rows: slice


@dataclass
class _Pass(Watcher):
    """What the hooks share: the sums so far by set and quantity, and the batch at hand with its parts.

    names: parameters of interest by identity.   tied: those that embed and unembed.   called: modules that this pass came by.
    """

    model: Model
    wanted: Mapping[str, Wanted]
    names: Mapping[int, str]
    tied: frozenset[str]
    sums: Found = field(default_factory=dict)
    parts: list[_Part] = field(default_factory=list)
    batch: Batch = field(init=False)  # the hooks run inside `_step`, which sets it
    crossed: dict[str, list[Tensor]] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)

    def of(self, set: str, name: str, parameter: Tensor) -> Sums:
        """The accumulators of a parameter for one set; None for what is not wanted of it."""
        found: list[Tensor | None] = []
        for quantity in ("gradient", "square"):
            totals = self.sums.setdefault((set, quantity), {}) if quantity in self.wanted[set].quantities else None
            if totals is not None and name not in totals:
                totals[name] = torch.zeros_like(wide(parameter.detach()))
            found.append(None if totals is None else totals[name])
        return Sums(*found)

    def arrived(self, module: nn.Module, path: str, owned: dict[str, str], x: Tensor) -> None:
        """A second call in one pass is refused where squares or inputs are wanted; input norms are added up."""
        if path in self.called and any(one.quantities & {"square", "inputs"} for one in self.wanted.values()):
            raise Unsupported(f"{path} is called twice in one pass: squares of a sum need both summands at once.")
        self.called.add(path)
        if isinstance(module, nn.Linear | Conv1D) and "weight" in owned:
            _add_inputs(self, owned["weight"], x)

    @torch.no_grad()
    def returned(self, module: nn.Module, path: str, owned: dict[str, str], x: Tensor, s: Tensor) -> None:
        """Add this module's share of its parameters' gradients, for every set in the batch."""
        del path
        for set, rows in self.parts:
            if not self.wanted[set].quantities & _BACKWARD:
                continue
            sums = {key: self.of(set, name, getattr(module, key)) for key, name in owned.items()}
            tied = owned.get("weight") in self.tied
            if isinstance(module, nn.Linear | Conv1D):
                if "weight" in sums:
                    ids = self.batch.tokens[rows] if tied else None
                    crossed = linear(sums["weight"], x[rows], s[rows], turned=isinstance(module, Conv1D), ids=ids)
                    if tied:
                        self.crossed[set] = crossed
                if "bias" in sums:
                    each = wide(s[rows]).sum(1)
                    for total, value in zip(sums["bias"], (each, each.square()), strict=True):
                        if total is not None:
                            total.add_(value.sum(0))
            elif type(module) is nn.Embedding:
                lookup(
                    sums["weight"], x[rows], s[rows], padding=module.padding_idx, crossed=self.crossed.get(set) if tied else None
                )
            else:
                rerun(module, sums, x[rows], s[rows])


def moments(
    model: Model,
    wanted: Mapping[str, Wanted],
    names: Collection[str],
    *,
    batch_tokens: int = 4096,
    show: bool = False,
    label: str = "gradients",
) -> Found:
    """Every wanted quantity of every set, {(set, quantity): {parameter: values}}, from one pass over all rows.

    Args:
        wanted: the sets by name.
        names: the parameters to look at, by Hugging Face name.
        batch_tokens: largest padded batch, in tokens; changes memory, not the result beyond rounding.
    Returns: gradient and square have the parameter's shape, inputs [in_features] (of linear maps only), float32 on the model's
        device; float64 of a float64 model, and inputs always.
    Raises: DataError for an empty set; NumericsError naming the first parameter whose value is NaN or infinite; ModelError
        if input norms are wanted of a module that mixes up batch and positions, naming it.
    """
    for set, one in wanted.items():
        if not one.rows:
            raise DataError(f"{label}: {set} has no rows, so there is nothing to measure.")
    asked = [(set, quantity) for set, one in wanted.items() for quantity in sorted(one.quantities)]
    if any(quantity != "gradient" for _, quantity in asked):
        try:
            return _together(model, wanted, names, batch_tokens, show, label)
        except Unsupported:
            if any(quantity == "inputs" for _, quantity in asked):
                raise
    found: Found = {}
    for set, quantity in asked:
        of = model, wanted[set].rows, wanted[set].loss
        if quantity == "square":
            found[set, quantity] = fisher(*of, names=names, show=show)
        else:
            told = f"{label}, {set}"
            found[set, quantity] = mean_gradient(*of, names=names, batch_tokens=batch_tokens, show=show, label=told)
    return found


def _together(
    model: Model, wanted: Mapping[str, Wanted], names: Collection[str], batch_tokens: int, show: bool, label: str
) -> Found:
    """All sets in shared batches."""
    every = [(set, i) for set, one in wanted.items() for i in range(len(one.rows))]
    rows = [wanted[set].rows[i] for set, i in every]
    backward = any(one.quantities & _BACKWARD for one in wanted.values())
    with tracked(model, names) as parameters, nullcontext() if backward else torch.no_grad():
        if backward:
            verify(model, wanted, parameters)
        for p in parameters.values():
            p.requires_grad_(False)
        now = _pass(model, wanted, parameters)
        with watched(model, now):
            for chosen in progress(list(by_length(rows, max_tokens=batch_tokens)), label=label, show=show):
                _step(now, [every[k] for k in chosen], backward=backward)
    return _means(now, parameters, label)


def _pass(model: Model, wanted: Mapping[str, Wanted], parameters: Mapping[str, nn.Parameter]) -> _Pass:
    several = shared(model, names := {id(p): name for name, p in parameters.items()})
    if any("square" in one.quantities for one in wanted.values()):  # gradients add up, squares do not
        check_shared(several)
    return _Pass(model, wanted, names, frozenset(several))


def _step(now: _Pass, chosen: list[tuple[str, int]], *, backward: bool) -> None:
    """One forward and backward pass over rows of several sets; the hooks take what they need from it."""
    members = {set: [i for name, i in chosen if name == set] for set in now.wanted}
    rows: list[Encoded] = []
    now.parts = []
    for set, mine in members.items():
        if mine:
            now.parts.append(_Part(set, slice(len(rows), len(rows) + len(mine))))
            rows += [now.wanted[set].rows[i] for i in mine]
    now.batch = collate(rows, device=now.model.device)
    out = logits(now.model, now.batch)
    if backward:
        passed = Forward(answer_logprobs(out, now.batch.tokens, now.batch.answer), now.batch.answer)
        asked = [part for part in now.parts if now.wanted[part.set].quantities & _BACKWARD]
        losses = [now.wanted[set].loss(passed.part(at.start, at.stop), members[set]) for set, at in asked]
        if losses:
            torch.cat(losses).sum().backward()
    now.crossed.clear()
    now.called.clear()


def _add_inputs(now: _Pass, name: str, x: Tensor) -> None:
    """Add sum_t x_t^2 over real tokens, float64."""
    for set, rows in now.parts:
        if "inputs" in now.wanted[set].quantities:
            used = wide(x[rows][now.batch.attention[rows]])
            sums = now.sums.setdefault((set, "inputs"), {})
            sums[name] = sums.get(name, 0) + used.square().sum(0, dtype=torch.float64)


def verify(model: Model, wanted: Mapping[str, Wanted], parameters: Mapping[str, nn.Parameter]) -> None:
    """Unsupported unless, on the shortest row of every set, our gradients sum to autograd's for every parameter.

    Close means within 1e-3 of the norm (5e-2 in half precision): far above two orders of summation, far below a missing part.
    """
    shortest = [(set, min(range(len(one.rows)), key=lambda i: len(one.rows[i].tokens))) for set, one in wanted.items()]
    plain = {set: one._replace(quantities=frozenset({"gradient"})) for set, one in wanted.items()}
    now = _pass(model, plain, parameters)
    strange: list[str] = []

    def compare(p: Tensor) -> None:
        name = now.names[id(p)]
        theirs = wide(p.grad) if p.grad is not None else torch.zeros_like(wide(p))
        ours = sum((sums.pop(name) for sums in now.sums.values() if name in sums), torch.zeros_like(theirs))
        close = 5e-2 if p.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if float((ours - theirs).norm()) > close * float(theirs.norm()):
            strange.append(name)
        p.grad = None

    with ExitStack() as handles:
        for p in parameters.values():
            handles.callback(p.register_post_accumulate_grad_hook(compare).remove)
        with watched(model, now):
            _step(now, shortest, backward=True)
    for name in [*strange, *(name for sums in now.sums.values() for name in sums)]:  # these autograd never reached
        raise Unsupported(f"{name} is used outside its module.")


def _means(now: _Pass, parameters: Mapping[str, nn.Parameter], label: str) -> Found:
    """Sums divided by the number of examples (of tokens, for inputs); a parameter that no example reached has zeros."""
    found: Found = {}
    for set, one in now.wanted.items():
        for quantity in one.quantities:
            sums = now.sums.pop((set, quantity), {})
            n = sum(len(row.tokens) for row in one.rows) if quantity == "inputs" else len(one.rows)
            if quantity != "inputs":
                sums = {k: sums.pop(k) if k in sums else torch.zeros_like(wide(p.detach())) for k, p in parameters.items()}
            found[set, quantity] = check_finite_all({name: value.div_(n) for name, value in sums.items()}, f"{label}, {set}")
    return found
