"""Model Surgery's probe: a softmax head with two rows, saved by torch, read as the direction it means.

    p(bad | x) = softmax(W x + b)_1 = sigmoid((W1 - W0) x + b1 - b0)

so only W1 - W0 has a meaning, and its gradient is opposite in the two rows: their common part C = (W0 + W1) / 2 is never trained.
Each entry of both rows starts uniform in +-1/sqrt(d) (`nn.Linear`), with variance 1/(3d), so an entry of C has variance 1/(6d) and
E |C|^2 = 1/6: a norm of 0.408 at any width. Their edit adds W1 = C + (W1 - W0) / 2, and with it that random part, to the weights.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from workbench.core.direction import Direction
from workbench.core.errors import InputError, ShapeError
from workbench.core.numerics import check_finite
from workbench.core.records import Provenance
from workbench.core.store import existing, file_sha256
from workbench.load.models import Model

UNTRAINED_NORM = math.sqrt(1 / 6)
"""Expected norm of (W0 + W1) / 2 under PyTorch's initialization of `nn.Linear(d, 2)`; weight decay shrinks it."""


def load_softmax_head(
    path: str | Path, *, layer: int, site: str = "resid_post", model: Model | None = None, d_model: int | None = None
) -> Direction:
    """The direction of a softmax head with two rows: (W1 - W0) / 2, normalized; row 1 is the behavior.

    Args:
        path: torch's state dict, read with weights_only=True, or safetensors; a [2, d] matrix whose name ends in "weight", at any
            depth, and the bias beside it where there is one.
        layer, site: where the head reads. Model Surgery's code reads the last hidden state of transformers, which is behind the
            final norm (and is then used on all layers' gate rows); the file does not say.
        model, d_model: to check the width, the layer and the site against.
    Returns: a Direction; its provenance notes `difference_norm` |W1 - W0| / 2 (their alpha times it is the length their edit adds
        along the direction), `intercept` (b1 - b0) / 2, and of the common part its norm, the norm expected of one never trained,
        its share of |W1|^2, and cos(W0, W1).
    Raises: InputError for a missing or unreadable file, one that holds Python objects, or no or several such matrices; ShapeError
        for another shape or width; NumericsError for NaN.
    Reference: Wang et al. 2025, arXiv:2407.08770.
    """
    path = existing(path)
    weight, bias = _find(_tensors(path), path)
    if weight.ndim != 2 or len(weight) != 2:
        raise ShapeError(f"{path}: the weight is {tuple(weight.shape)}, expected [2, d_model]: a row for each of two classes.")
    if model is not None:
        width = model.sites.at(site, layer=layer).shape.rsplit(" ", 1)[-1] if layer >= 0 else "d_model"
        d_model = d_model if d_model is not None else {"d_model": model.d_model, "d_mlp": model.d_mlp}.get(width)
    if d_model is not None and weight.shape[1] != d_model:
        raise ShapeError(
            f"{path}: the head reads {weight.shape[1]} features, but {d_model} were expected. Is it for another model?"
        )
    weight = weight.double()
    check_finite(f"{path}: weight", weight)
    common, half = (weight[0] + weight[1]) / 2, (weight[1] - weight[0]) / 2
    if not float(half.norm()) > 0:
        raise InputError(f"{path}: the two rows are equal, so the head has no direction.")
    notes = {
        "positive": "row 1",
        "difference_norm": float(half.norm()),
        "intercept": None if bias is None else float(bias.double()[1] - bias.double()[0]) / 2,
        "common_norm": float(common.norm()),
        "common_norm_if_untrained": UNTRAINED_NORM,
        "common_share_of_row_1": float(common.square().sum() / weight[1].square().sum()),
        "cosine_of_rows": float(torch.nn.functional.cosine_similarity(weight[0], weight[1], dim=0)),
    }
    fingerprint = model.fingerprint() if model is not None else ""
    about = Provenance("softmax_head", fingerprint, {"file": file_sha256(path)}, {"site": site, "layer": layer}, notes=notes)
    return Direction(half, site, layer, about)


def _tensors(path: Path) -> dict[str, Any]:
    """What the file holds, by dotted name."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        held = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}).") from error
    except UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors (or is no file of torch's). Python objects can run code when they are read, so it "
            "was not read. Save head.state_dict(), not the module."
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        said = str(error).split("\n", 1)[0] or type(error).__name__
        raise InputError(f"{path}: torch cannot read it ({said}).") from error
    return {"weight": held} if isinstance(held, Tensor) else dict(_flat(held, ""))


def _flat(held: Any, prefix: str) -> list[tuple[str, Any]]:
    if not isinstance(held, Mapping):
        return [(prefix, held)]
    return [pair for key, value in held.items() for pair in _flat(value, f"{prefix}.{key}".lstrip("."))]


def _find(held: dict[str, Any], path: Path) -> tuple[Tensor, Tensor | None]:
    """The one matrix, and the bias beside it."""
    named = [name for name, value in held.items() if isinstance(value, Tensor) and name.split(".")[-1] == "weight"]
    if len(named) != 1:
        listed = ", ".join(list(held)[:8]) or "nothing"
        raise InputError(f"{path}: expected one tensor named weight, found {len(named)} (the file holds {listed}).")
    bias = held.get(named[0].removesuffix("weight") + "bias")
    return held[named[0]], bias if isinstance(bias, Tensor) and bias.numel() == 2 else None
