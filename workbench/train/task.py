"""What the training loop asks of a task, and the plainest task: answers to be learned."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.numerics import mean_nll
from workbench.load.batches import Encoded, collate
from workbench.load.models import Model
from workbench.trace.forward import forward


@runtime_checkable
class Task(Protocol):
    """A set of examples, each with a loss. An example is whatever the task says: a row, or a pair of rows."""

    def __len__(self) -> int:
        """How many examples an epoch has."""
        ...

    def losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """One differentiable loss for each chosen example."""
        ...

    def tokens(self, chosen: Sequence[int], epoch: int) -> int:
        """Tokens the chosen examples feed to the model, padding not counted."""
        ...


@runtime_checkable
class Observing(Task, Protocol):
    """A task that also says what its forward passes showed, beside the loss; `fit` writes it into the step's line."""

    def observed(self) -> dict[str, float]:
        """Means over the examples since the last call, by name; names other than those of the history."""
        ...


@runtime_checkable
class Named(Task, Protocol):
    """A task whose examples have names, for messages."""

    def names(self, chosen: Sequence[int], epoch: int) -> list[str]:
        """The name of each chosen example, such as the id of its row, and of what it is trained with in this epoch."""
        ...


@runtime_checkable
class Sharp(Task, Protocol):
    """A task whose loss has a part that is to be small all around the weights, such as the loss of what is forgotten.

    The two parts sum to `losses`. With `fit(..., sharpness=RHO)` the first is minimized at its worst point within RHO, the other
    where the weights are. Both must say the same for the same weights, examples and epoch, however often they are asked.
    """

    def sharp_losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """The part of each chosen example's loss that is taken at the worst point nearby."""
        ...

    def other_losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """The rest of each chosen example's loss."""
        ...


@runtime_checkable
class Stepping(Task, Protocol):
    """A task that wants to know when the weights have moved, to move something of its own, such as a multiplier."""

    def stepped(self) -> None:
        """Called once after every step of the optimizer, with the weights where that step put them."""
        ...


class AnswerTask:
    """Learn the answers of some rows: the loss of a row is the mean NLL of its answer, in nats per token.

    Args: group: rows forwarded together, those of similar length; None for all of a batch at once. Fewer rows mean less
        padding, which pays on a CPU.
    """

    def __init__(self, model: Model, rows: Sequence[Encoded], *, group: int | None = None) -> None:
        self.model = model
        self.rows = rows
        self.group = group

    def __len__(self) -> int:
        return len(self.rows)

    def losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """Mean NLL of each chosen row, the same in every epoch."""
        del epoch
        order = sorted(range(len(chosen)), key=lambda k: len(self.rows[chosen[k]].tokens))
        size = self.group or len(order)
        groups = [order[first : first + size] for first in range(0, len(order), size)]
        values = torch.cat([self._forward([self.rows[chosen[k]] for k in group]) for group in groups])
        return values[torch.tensor(order, device=values.device).argsort()]

    def _forward(self, rows: list[Encoded]) -> Float[Tensor, "row"]:
        return mean_nll(forward(self.model, collate(rows, device=self.model.device)))

    def tokens(self, chosen: Sequence[int], epoch: int) -> int:
        """Tokens of the chosen rows."""
        del epoch
        return sum(len(self.rows[i].tokens) for i in chosen)

    def names(self, chosen: Sequence[int], epoch: int) -> list[str]:
        """Ids of the chosen rows."""
        del epoch
        return [self.rows[i].id for i in chosen]
