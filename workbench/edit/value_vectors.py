"""Ablation of MLP value vectors themselves: noise, zero, a direction taken out, a factor, the mean vector of the layer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from workbench.core.components import Place
from workbench.core.delta import Delta
from workbench.core.direction import Direction
from workbench.core.errors import InputError, ShapeError, unknown
from workbench.core.numerics import generator, wide
from workbench.core.registry import edit
from workbench.edit.finish import finish, named
from workbench.edit.lines import Lines, lines_of
from workbench.edit.matched import matched_random
from workbench.edit.places import check_control, chosen_of, elsewhere, listed, tensor_of
from workbench.load.models import Model

KINDS = ("noise", "zero", "project_out", "scale", "mean")


@edit(where="places", unit="down_column")
@torch.no_grad()
def ablate_value_vectors(
    model: Model,
    places: Sequence[Place | tuple[int, int]],
    *,
    kind: str = "noise",
    std: float = 1.0,
    absolute: bool = False,
    factor: float = 0.5,
    direction: Direction | None = None,
    control: str = "",
    seed: int = 0,
) -> Delta:
    """Change some value vectors, the columns v_j [d_model] of W_out.

        noise         v <- v + std ||v|| / sqrt(d) e       e ~ N(0, I): noise about std times as long as the vector
        zero          v <- 0
        project_out   v <- v - (v . u) u                   u a direction: the vector without what it writes along u
        scale         v <- factor v
        mean          v <- mean of the layer's value vectors

    Args:
        places: (layer, neuron), from 0.
        std: of the noise, relative to the vector; 0 changes nothing.
        absolute: noise of `std` itself in every entry, v <- v + std e. The published value is 0.1.
        factor: of kind "scale"; 1 changes nothing, 0 is "zero".
        direction: u of kind "project_out", such as a Direction found at mlp_out or resid_post.
        control: "place", the same done to as many other vectors of every layer by chance; "change", the same vectors, each moved as
            far in a random direction.
        seed: of the noise and of the controls.
    Returns: columns of W_out (rows in GPT-2), in the weights alone. "mean" ends at the mean rounded to the model's dtype.
    Raises: InputError for a vector that does not exist, no place, the same twice, or a missing direction; ShapeError for a
        direction of another width; ModelError in a mixture of experts.
    Reference: Hong et al. 2024, "ConceptVectors", arXiv:2406.11614, whose noise is absolute. Their released "Needle" is not
        this: it then also ascends the loss on that column, with weight decay on everything else.
    """
    check_control(control)
    _check(model, kind, std, factor, direction)
    lines = [lines_of(model, "down", layer) for layer in range(model.n_layers)]
    chosen = chosen_of("value vector", places, [len(one) for one in lines])
    options = {"places": listed(chosen), "kind": kind, "std": std, "absolute": absolute, "factor": factor, "control": control}
    if control == "place":
        chosen = elsewhere(chosen, {layer: range(len(lines[layer])) for layer in chosen}, seed=seed)
    source, changes = generator(seed), {}
    for layer, found in chosen.items():
        vectors = lines[layer].read(model, tensor_of(found))
        match kind:
            case "noise":
                moved = _noise(vectors, std, source, absolute=absolute)
            case "zero":
                moved = -vectors
            case "project_out" if direction is not None:
                moved = -_along(vectors, direction)
            case "scale":
                moved = (factor - 1.0) * vectors
            case _:
                moved = _mean(model, lines[layer]) - vectors
        changes[lines[layer].parameter] = lines[layer].change(tensor_of(found), moved)
    options |= {"edited": listed(chosen), "direction": named(direction) if direction else None}
    made = finish(model, "ablate_value_vectors", changes, options=options, why="columns of W_out", seed=seed)
    return matched_random(made, seed=seed) if control == "change" else made


def _noise(vectors: Float[Tensor, "k d_model"], std: float, source: Generator, *, absolute: bool) -> Float[Tensor, "k d_model"]:
    drawn = torch.randn(vectors.shape, generator=source).to(vectors)
    if absolute:
        return std * drawn
    return std * torch.linalg.vector_norm(vectors, dim=1, keepdim=True) / vectors.shape[1] ** 0.5 * drawn


def _along(vectors: Float[Tensor, "k d_model"], direction: Direction) -> Float[Tensor, "k d_model"]:
    """What the vectors have along the direction."""
    unit = direction.vector.to(vectors)
    return torch.outer(vectors @ unit, unit)


def _mean(model: Model, lines: Lines) -> Float[Tensor, "d_model"]:
    """Mean of all value vectors of the layer, summed in float64."""
    weight = model.hf.get_parameter(lines.parameter).detach()
    return (weight.sum(lines.dim, dtype=torch.float64) / len(lines)).to(wide(weight[:0]).dtype)


def _check(model: Model, kind: str, std: float, factor: float, direction: Direction | None) -> None:
    if kind not in KINDS:
        raise unknown("kind of ablation", kind, KINDS)
    if not (std >= 0 and torch.isfinite(torch.tensor([std, factor])).all()):
        raise InputError(f"ablate_value_vectors: std is {std} and factor {factor}; expected finite numbers, std >= 0.")
    if (kind == "project_out") != (direction is not None):
        raise InputError(
            f"ablate_value_vectors: kind is {kind!r} and direction {direction!r}. A direction goes with 'project_out'."
        )
    if direction is not None and len(direction.vector) != model.d_model:
        raise ShapeError(
            f"ablate_value_vectors: the direction has {len(direction.vector)} features, value vectors have {model.d_model}. "
            "Was it found on another model, or at a site of another width?"
        )
