"""What weight scores share: the choice of parameters, the forget loss, one pass over both sets, and the record that comes out."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import InputError, MismatchError, unknown
from workbench.core.numerics import Forward, check_finite, wide
from workbench.core.records import Examples, Provenance, check_disjoint
from workbench.core.registry import Member, objective
from workbench.core.runtime import announce
from workbench.core.scores import Scores
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.load.weights import transposed
from workbench.trace.gradients import ExampleLoss, Weights, nll
from workbench.trace.moments import Wanted, moments
from workbench.trace.plan import plan_pass

Patterns = str | Sequence[str]


@dataclass(frozen=True, eq=False)
class Gathered:
    """Moments of the forget and retain set, from which scores are computed without another pass.

    names: the parameters.   parts: by need, such as "forget.gradient" or "retain.square", and parameter (`trace/moments.py`).
    about: the provenance that every score made from it shares.   shared: several scores will read it.
    """

    names: tuple[str, ...]
    parts: Mapping[str, Weights]
    about: Provenance
    shared: bool

    def take(self, need: str, name: str) -> Tensor:
        """One parameter's values, freed here unless other scores will ask for them. Not to be written to."""
        return self.parts[need][name] if self.shared else self.parts[need].pop(name)

    def _holds(self, name: str, made: Tensor) -> bool:
        """Whether `made` is one of the shared tensors itself, which a score must not hand out."""
        return any(name in part and part[name].data_ptr() == made.data_ptr() for part in self.parts.values())

    def scores(
        self,
        method: str,
        model: Model,
        formula: Callable[[str, Tensor], Tensor],
        options: Mapping[str, Any],
        *,
        names: Sequence[str] | None = None,
        seed: int | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Scores:
        """Scores of every parameter (or those in `names`): formula(its name, its weights in at least float32)."""
        kept = self.names if names is None else names
        weights = {name: p.detach() for name, p in model.hf.named_parameters() if name in kept}
        tensors = {}
        for name in kept:
            made = formula(name, wide(weights[name])).float().cpu().contiguous()
            check_finite(f"{method}: the scores of {name}", made)
            tensors[name] = made.clone() if self._holds(name, made) else made
        about = replace(self.about, method=method, options={**self.about.options, **options}, seed=seed)
        return Scores(
            tensors, replace(about, notes={**(notes or {}), "coverage": coverage(model, tensors)}), transposed(model.hf, tensors)
        )


def gather(
    model: Model,
    forget: Examples,
    retain: Examples,
    needs: Collection[str],
    *,
    forget_loss: ExampleLoss | str = "nll",
    include: Patterns = "*",
    exclude: Patterns = (),
    batch_tokens: int = 4096,
    gathered: Gathered | None = None,
    shared: bool = True,
    beside: int = 0,
    show: bool = False,
) -> Gathered:
    """One pass over the rows of both sets for everything in `needs`.

    Args:
        needs: "forget." or "retain." with gradient, square or inputs.
        forget_loss: the loss that will be optimized: "nll" (mean NLL a token), an objective's name, or a function that gives
            one value an example. An objective stands for its gradient at the model itself, which is its own reference. To
            score for learning other answers, such as a refusal, pass forget rows that have them (`Examples.answered`).
        include, exclude: patterns of Hugging Face parameter names, such as "*.mlp.*" or ["*norm*", "*embed*"].
        batch_tokens: largest padded batch, in tokens; changes memory, not the result beyond rounding.
        gathered: what was gathered for these rows on this model already; it is checked and handed back.
        shared: keep the moments for several scores; False frees each as the one score is made.
        beside: float32 numbers a weight that will be held beside the moments, for the memory plan.
        show: say the memory plan and draw a progress bar.
    Raises: DataError if the sets share rows; InputError for a pattern that fits nothing; MemoryPlanError if it would not fit;
        MismatchError if `gathered` is of another model or other rows.
    """
    data = {"forget": forget.fingerprint(), "retain": retain.fingerprint()}
    loss = find_loss(forget_loss)
    asked = {"forget_loss": loss.__name__, "include": listed(include), "exclude": listed(exclude)}
    if gathered is not None:
        return _fitting(gathered, needs, model, data, asked)
    check_disjoint(forget, retain)
    names = choose_parameters(model, include, exclude)
    wanted = {}
    for set, rows, its_loss in (("forget", forget, loss), ("retain", retain, nll)):
        quantities = frozenset(need.split(".")[1] for need in needs if need.startswith(set + "."))
        if quantities:
            wanted[set] = Wanted(encode_all(model, rows), quantities, its_loss)
    every = [row for one in wanted.values() for row in one.rows]
    sums = sum(len(one.quantities - {"inputs"}) for one in wanted.values())
    plain = all(one.quantities == {"gradient"} for one in wanted.values())
    plan = plan_pass(model, every, names, sums=sums, beside=beside, autograd=plain, batch_tokens=batch_tokens, job="attribution")
    announce(f"attribution: {plan}", show=show)
    found = moments(model, wanted, names, batch_tokens=batch_tokens, show=show, label="attribution")
    about = Provenance(
        "gathered",
        model.fingerprint(),
        data,
        asked,
        dtype=str(model.dtype),
        reduction="mean over examples, float32",
        tokens=sum(len(row.tokens) for row in every),
    )
    return Gathered(tuple(names), {f"{set}.{quantity}": values for (set, quantity), values in found.items()}, about, shared)


def _fitting(
    gathered: Gathered, needs: Collection[str], model: Model, data: Mapping[str, str], asked: Mapping[str, Any]
) -> Gathered:
    """`gathered` itself; MismatchError or InputError if it is not what this score is asked about."""
    if gathered.about.model != model.fingerprint() or gathered.about.data != data:
        raise MismatchError("gathered: it was gathered on another model or other rows; gather again for these.")
    for key, value in asked.items():
        matters = key != "forget_loss" or any(need.startswith("forget.") and need != "forget.inputs" for need in needs)
        if matters and gathered.about.options[key] != value:
            raise MismatchError(f"gathered: its {key} is {gathered.about.options[key]!r}, but {value!r} was asked for.")
    lacking = [need for need in needs if need not in gathered.parts]
    if lacking:
        raise InputError(f"gathered: it lacks {', '.join(lacking)} and has {', '.join(gathered.parts)}; gather with these needs.")
    return gathered


def listed(patterns: Patterns) -> list[str]:
    """One pattern or several, as a list."""
    return [patterns] if isinstance(patterns, str) else list(patterns)


def choose_parameters(model: Model, include: Patterns, exclude: Patterns) -> list[str]:
    """Names of the floating-point parameters that fit a pattern of `include` and none of `exclude`, in the model's order.

    Raises: InputError naming a pattern that fits no parameter, or if nothing is left.
    """
    every = [name for name, p in model.hf.named_parameters() if p.is_floating_point()]
    for pattern in (*listed(include), *listed(exclude)):
        if not any(fnmatchcase(name, pattern) for name in every):
            raise InputError(f"the pattern {pattern!r} fits no parameter; they are called {every[0]}, ..., {every[-1]}.")

    def fits(name: str, patterns: Patterns) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in listed(patterns))

    kept = [name for name in every if fits(name, include) and not fits(name, exclude)]
    if not kept:
        raise InputError(f"include={include!r} and exclude={exclude!r} leave no parameter to score.")
    return kept


def coverage(model: Model, names: Collection[str]) -> float:
    """Share of the model's weights that lie in these parameters."""
    sizes = {name: p.numel() for name, p in model.hf.named_parameters()}
    return sum(sizes[name] for name in names) / sum(sizes.values())


def find_loss(forget_loss: ExampleLoss | str) -> ExampleLoss:
    """The loss of a name: "nll", or a registered objective whose reference is the model itself, as before the first step.

    Raises: UnknownNameError for another name; InputError for an objective of other answers, of logits or of states.
    """
    if not isinstance(forget_loss, str):
        return forget_loss
    if forget_loss == "nll":
        return nll
    if forget_loss.replace("-", "_") not in objective.names():
        raise unknown("forget_loss", forget_loss, ["nll", *objective.names()])
    member = objective[forget_loss]
    if not _of_own_answers(member):
        raise InputError(
            f"forget_loss {member.name!r} is not read from the log-probabilities of the rows' own answers. Those that are: nll, "
            f"{', '.join(one.name for one in objective if _of_own_answers(one))}. To score for learning other answers, take 'nll' "
            "and rows that have them (Examples.answered)."
        )

    def loss(passed: Forward, rows: list[int]) -> Float[Tensor, "batch"]:
        del rows
        return member.function(passed, Forward(passed.logprob.detach(), passed.mask))

    loss.__name__ = member.name
    return loss


def _of_own_answers(member: Member) -> bool:
    """Whether an objective is a loss of what a pass says about the rows' own answers, token by token."""
    return (member.about["answers"], member.about["reads"], member.about["procedure"]) == ("own", "logprob", "descent")
