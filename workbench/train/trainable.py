"""What may move in a training: all weights, those of a mask, or low-rank adapters; and the Delta that comes of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from workbench.core.delta import Delta
from workbench.core.errors import InputError
from workbench.core.mask import Mask
from workbench.core.records import Provenance
from workbench.load.models import Model
from workbench.train.lora import Lora, adapters, low_rank
from workbench.train.masters import Master, difference, masters


@dataclass(frozen=True, eq=False)
class Trainable:
    """made: the masters the optimizer holds.   change: makes the Delta of what they are now.   reached: weights that can move."""

    made: list[Master]
    change: Callable[[Provenance], Delta]
    reached: int

    @property
    def entries(self) -> int:
        """How many numbers are trained: as many as weights are reached, or fewer with adapters."""
        return sum(m.initial.numel() for m in self.made)


def check_apart(mask: Mask | None, lora: Lora | None) -> None:
    """InputError for adapters inside a mask."""
    if mask is not None and lora is not None:
        raise InputError(
            "train: mask and lora are both given, but a low-rank change has entries all over a weight matrix and does not stay "
            "inside single weights. Give one of them; lora's targets choose whole layers."
        )


@contextmanager
def trainable(model: Model, mask: Mask | None, lora: Lora | None) -> Iterator[Trainable]:
    """What may move, ready to be trained; on exit the model is as it was.

    Raises: InputError for adapters inside a mask; as `masters` and `adapters`.
    """
    if lora is None:
        with masters(model, mask) as made:
            yield Trainable(made, partial(difference, made), sum(m.initial.numel() for m in made))
        return
    check_apart(mask, lora)
    with adapters(model, lora) as parts:
        made = [master for one in parts for master in (one.down, one.up)]
        sizes = (one.shape[0] * one.shape[1] for one in parts)
        yield Trainable(made, partial(low_rank, parts), sum(sizes))
