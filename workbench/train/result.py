"""What a training leaves behind: the Delta, a history, and an audit of what it really did."""

from dataclasses import dataclass, field

from workbench.core.delta import Delta
from workbench.train.optimizers import Checkpoint, Moments


@dataclass(frozen=True)
class Audit:
    """What the training really did.

    moved: share of all the model's weights whose bits, in its own dtype, differ afterwards.
    moved_of_trainable: the same of those that were allowed to move; with adapters, of the weights they add to.
    trainable: how many numbers were trained: weights, or entries of adapters.
    tokens: tokens fed, padding not counted; a second pass, for sharpness, is not counted.   stopped: why it ended before its last
    step, or "".
    part: share that was kept of the last stretch between two checks, below 1 only where a partial check stopped the run; or of a
    whole change that was taken in part, as a negated one is, see `unlearn.task_vector`.
    """

    moved: float
    moved_of_trainable: float
    trainable: int
    steps: int
    tokens: int
    seconds: float
    stopped: str = ""
    part: float = 1.0


@dataclass(frozen=True, eq=False)
class Trained:
    """delta: what to add to the weights.   history: one dict a step (epoch, step, loss, lr, grad_norm) and check.   audit.

    A step's line also has `sharpness`, where that is limited, and what the task observed, see `task.Observing`.
    checkpoints: the weights after every epoch, where asked for.   moments: what Adam remembered in the state that is returned,
    where asked for; after a check that was partial, in the last state measured within the limit, where the stretch began of which a
    part was kept; after an update that was undone, because it broke the model, with that update's gradient.
    """

    delta: Delta
    history: list[dict[str, float]]
    audit: Audit
    checkpoints: list[Checkpoint] = field(default_factory=list)
    moments: Moments | None = None
