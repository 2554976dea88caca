"""From a formula on tensors to a registered weight score.

    @weight_score("forget.gradient")
    def snip(weight, forget_gradient):
        return (weight * forget_gradient).abs()

gives `snip(model, forget, retain, *, forget_loss=, include=, ...) -> Scores`: one pass for what the formula needs, then the
formula on each parameter. Its arguments after `weight` are its needs, in order, each of the parameter's shape and at least
float32; matrices are [out in], also where the model stores the transpose.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from workbench.attribute.gather import Gathered, Patterns, gather
from workbench.core.records import Examples
from workbench.core.registry import attribution
from workbench.core.scores import Scores
from workbench.load.models import Model
from workbench.load.weights import transposed
from workbench.trace.gradients import ExampleLoss


@runtime_checkable
class WeightScore(Protocol):
    """What `weight_score` makes of a formula. The keyword arguments are those of `attribute.gather`."""

    def __call__(
        self,
        model: Model,
        forget: Examples,
        retain: Examples,
        *,
        forget_loss: ExampleLoss | str = "nll",
        include: Patterns = "*",
        exclude: Patterns = (),
        batch_tokens: int = 4096,
        gathered: Gathered | None = None,
        show: bool = False,
    ) -> Scores: ...


def weight_score(*needs: str) -> Callable[[Callable[..., Tensor]], WeightScore]:
    """Register a formula of (weight, *needs) as an attribution under the formula's name and docstring."""

    def register(formula: Callable[..., Tensor]) -> WeightScore:
        def score(
            model: Model,
            forget: Examples,
            retain: Examples,
            *,
            forget_loss: ExampleLoss | str = "nll",
            include: Patterns = "*",
            exclude: Patterns = (),
            batch_tokens: int = 4096,
            gathered: Gathered | None = None,
            show: bool = False,
        ) -> Scores:
            found = gather(
                model,
                forget,
                retain,
                needs,
                forget_loss=forget_loss,
                include=include,
                exclude=exclude,
                batch_tokens=batch_tokens,
                gathered=gathered,
                shared=False,
                show=show,
            )
            turned = transposed(model.hf, found.names)

            def oriented(name: str, weight: Tensor) -> Tensor:
                seen = [weight, *(found.take(need, name) for need in needs)]
                return formula(*(t.T for t in seen)).T if name in turned else formula(*seen)

            return found.scores(score.__name__, model, oriented, {})

        score.__name__ = score.__qualname__ = getattr(formula, "__name__", "score")
        score.__doc__, score.__module__ = formula.__doc__, formula.__module__
        return attribution(needs=needs)(score)

    return register
