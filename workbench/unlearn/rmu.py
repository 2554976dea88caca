"""Representation misdirection: the states of forget rows go to a fixed random vector, those of retain rows stay."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import InputError, ShapeError
from workbench.core.mask import Mask
from workbench.core.numerics import States, generator, token_mean, wide
from workbench.core.records import Provenance
from workbench.core.registry import objective
from workbench.load.batches import Encoded, collate
from workbench.load.models import Model
from workbench.trace.forward import states
from workbench.train.lora import Lora, target_layers
from workbench.unlearn.cache import positions_of, states_pass
from workbench.unlearn.pairs import Pairing, Side, Weighting

POSITIONS = ("all", "answer", "predicting")
BELOW = 2
"""How many layers below the steered one also move where no mask is given."""


@objective(retain="states", needs_reference=True, reads="states")
def rmu(
    policy: States,
    reference: States | None = None,
    *,
    layer: int | None = None,
    steering: Literal["uniform", "gaussian"] | Tensor = "uniform",
    coefficient: float = 2.0,
    adaptive: bool = False,
    positions: Literal["all", "answer", "predicting"] = "all",
) -> Float[Tensor, "batch"]:
    """Representation misdirection for unlearning: how far states are from where they should be.

    (1/|T|) sum_{t in T} ||h_t - a_t||^2 / d_model,   over the counted positions T of each example.

    h: states after block `layer`, a: what they should be, which on a forget row is coefficient * u, u a unit vector fixed before
    training, and on a retain row the reference's states. `run` adds retain_weight times this very distance on a retain row (the
    paper's alpha). Nothing behind the layer is run.

    Without a mask, the down-projections (value vectors) of the layer and the two below it move, as in the authors' runs; a mask, or
    LoRA, decides for itself. Weights behind the layer have no gradient and cannot move.

    Args:
        policy: states of a batch, [batch pos d_model], and the positions that count.   reference: what they should be.
        layer: the block after which states are read, from 0; None for the middle one, n_layers // 2.
        steering: "uniform": every entry of u uniform in [0, 1) before normalization, as published; two such vectors have a cosine
            of about 0.75. "gaussian": isotropic. Or a vector [d_model], of which the direction is taken.
        coefficient: length of the vector; of OpenUnlearning (the authors': 20, and 6.5 for Zephyr-7B).
        adaptive: in units of the mean norm of each forget row's states before training, where one coefficient fits no two layers.
        positions: "all" tokens, as published; the "answer"'s; or those "predicting" it, from the last prompt token on.
    Returns: distance of each example, [batch], squared units of the residual stream, >= 0.
    Raises: ShapeError if the two differ in shape; InputError for an option that cannot be.
    Reference: Li et al. 2024, arXiv:2403.03218; the adaptive coefficient is Dang et al. 2024's, arXiv:2408.06223. OpenUnlearning
        divides the sums of a batch by a column of its lengths, [b] by [b 1], so that every example is divided by every length: the
        mean sum times the mean reciprocal length; it trains all weights and runs all layers.
    """
    del layer, steering, coefficient, adaptive, positions  # they make the states and the reference
    if reference is None or reference.hidden.shape != policy.hidden.shape:
        came = "none" if reference is None else str(tuple(reference.hidden.shape))
        raise ShapeError(f"rmu: policy is {tuple(policy.hidden.shape)}, reference is {came}. Both must come from the same batch.")
    apart = wide(policy.hidden[policy.mask]) - wide(reference.hidden[policy.mask])
    return token_mean(apart.square().mean(-1), policy.mask)


class Steered(Pairing):
    """Forget rows whose states are drawn to a vector, each with a retain partner whose states are held.

    Args:
        distance: of states and what they should be, a value an example: `rmu`.
        site: where states are read.   positions: see `rmu`.
        targets: what the states of each forget row should be, [d_model] a row.
        before: the reference's states of retain rows at the counted positions, by row.
    """

    def __init__(
        self,
        model: Model,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded],
        *,
        distance: Callable[[States, States], Float[Tensor, "batch"]],
        site: str,
        positions: str,
        targets: Float[Tensor, "row d_model"],
        before: dict[int, Float[Tensor, "_ d_model"]],
        weighting: Weighting,
        seed: int = 0,
    ) -> None:
        super().__init__(model, [Side(forget)], retain, weighting, seed)
        self.distance = distance
        self.site = site
        self.positions = positions
        self.targets = targets
        self.before = before

    def losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """Loss of each chosen pair, from one pass over both halves that ends at the site."""
        partners = self.partners(chosen, epoch)
        found = self._states([self.sides[0].rows[i] for i in chosen] + [self.retain[i] for i in partners])
        n = len(chosen)
        total = self._forget(chosen, States(found.hidden[:n], found.mask[:n]))
        return total + self._kept(partners, States(found.hidden[n:], found.mask[n:])) if partners else total

    def sharp_losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """The forget half alone, weighted."""
        del epoch
        return self._forget(chosen, self._states([self.sides[0].rows[i] for i in chosen]))

    def other_losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """The retain half alone, weighted; zeros without a retain term."""
        partners = self.partners(chosen, epoch)
        if not partners:
            return torch.zeros(len(chosen), device=self.model.device)
        return self._kept(partners, self._states([self.retain[i] for i in partners]))

    def _states(self, rows: list[Encoded]) -> States:
        batch = collate(rows, device=self.model.device)
        return States(states(self.model, batch, self.site), positions_of(batch, self.positions))

    def _forget(self, chosen: Sequence[int], found: States) -> Float[Tensor, "example"]:
        wanted = self.targets[list(chosen)].to(found.hidden.device)[:, None].expand_as(found.hidden)
        return self.weighting.forget * self.distance(found, States(wanted, found.mask))

    def _kept(self, partners: Sequence[int], found: States) -> Float[Tensor, "example"]:
        return self.weighting.retain * self.distance(found, states_pass([self.before[i] for i in partners], found))


def steering_vector(kind: str | Tensor, d_model: int, *, seed: int) -> Float[Tensor, "d_model"]:
    """The unit vector u, float64: drawn from the seed, or the direction of the one that is given.

    Raises: InputError for another kind, or a vector of another length or without a direction.
    """
    if isinstance(kind, Tensor):
        if kind.shape != (d_model,) or not bool(torch.isfinite(kind).all()) or not bool(kind.any()):
            raise InputError(
                f"rmu: steering is a tensor of shape {tuple(kind.shape)}, expected a finite vector [{d_model}], not all 0."
            )
        drawn = kind.detach().cpu().double()
    elif kind in ("uniform", "gaussian"):
        draw = torch.rand if kind == "uniform" else torch.randn
        drawn = draw(d_model, generator=generator(seed), dtype=torch.float64)
    else:
        raise InputError(f"rmu: steering is {kind!r}, expected 'uniform', 'gaussian' or a vector [{d_model}].")
    return drawn / drawn.norm()


def steered_layer(model: Model, given: dict[str, Any]) -> int:
    """The layer of the options.

    Raises: InputError for one that the model lacks, or other options that cannot be.
    """
    if given["positions"] not in POSITIONS:
        raise InputError(f"rmu: positions is {given['positions']!r}, expected one of {', '.join(POSITIONS)}.")
    if not given["coefficient"] > 0:
        raise InputError(f"rmu: coefficient is {given['coefficient']}, expected a length above 0.")
    layer = model.n_layers // 2 if given["layer"] is None else given["layer"]
    if not 0 <= layer < model.n_layers:
        raise InputError(f"rmu: layer is {layer}, but the model's layers are 0 to {model.n_layers - 1}.")
    return layer


def value_weights(model: Model, layer: int) -> Mask:
    """The down-projections of a layer and the two below it: what moves where no mask is given."""
    names = [model.sites.parameter(f"blocks.{one}.mlp.out") for one in range(max(0, layer - BELOW), layer + 1)]
    shapes = model.shapes()
    about = Provenance("value_weights", model.fingerprint(), options={"layers": [max(0, layer - BELOW), layer]})
    return Mask.of({name: torch.ones(shapes[name], dtype=torch.bool) for name in names}, about)


def check_reached(model: Model, mask: Mask | None, lora: Lora | None, layer: int) -> None:
    """InputError if no weight of a mask, or none that adapters add to, can change the states after a layer."""
    if mask is not None:
        names, what = [name for name, count in mask.counts().items() if count], f"all {mask.count:,} weights of the mask lie"
    elif lora is not None:
        names, what = [f"{path}." for path in target_layers(model, lora.targets)], "all layers that lora's targets name lie"
    else:
        return
    behind = [model.sites.path(f"blocks.{one}.resid_post") + "." for one in range(layer + 1, model.n_layers)]
    behind += [model.sites.path(name) + "." for name in ("ln_final", "unembed")]
    if all(name.startswith(tuple(behind)) for name in names):
        raise InputError(
            f"rmu: {what} behind layer {layer}, whose states they cannot change. "
            "Choose weights of layers up to it, or a later layer."
        )
