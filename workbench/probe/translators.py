"""TunedLens: affine translators of the residual stream to the last layer's, and how close to the model they read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from workbench.core.errors import MismatchError, unknown
from workbench.core.numerics import wide
from workbench.core.picture import table
from workbench.core.records import Provenance
from workbench.core.store import load_tensors, save_tensors
from workbench.core.svg import number, tag
from workbench.load.models import Model
from workbench.probe.lens import EMBED, lens_table, unembed
from workbench.probe.lens_table import LensTable

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Affine maps of the residual stream to the last layer's, and what they are worth on held-out texts.

    layers: names, "embed" and numbers, without the last layer, which needs none.   matrix, bias: A and b of each, float32.
    kl: KL(model || tuned lens) in nats per token, mean over held-out texts: value, low, high.   plain: the same of the logit lens.
    gain: plain - kl, paired.   n: held-out texts.
    """

    layers: tuple[str, ...]
    matrix: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    kl: Float64[np.ndarray, "layer 3"]
    plain: Float64[np.ndarray, "layer 3"]
    gain: Float64[np.ndarray, "layer 3"]
    n: int
    provenance: Provenance

    def translate(self, resid: Float[Tensor, "*batch d_model"], *, layer: str) -> Float[Tensor, "*batch d_model"]:
        """A h + b, computed in float32 or wider, in h's dtype; of the last layer h itself."""
        if layer == str(self.provenance.notes["last"]):
            return resid
        if layer not in self.layers:
            raise unknown("layer of the tuned lens", layer, self.layers)
        i, h = self.layers.index(layer), wide(resid)
        return (h @ self.matrix[i].to(h).T + self.bias[i].to(h)).to(resid)

    def read(
        self,
        model: Model,
        text: str | tuple[str, str] | Sequence[int] | Int[Tensor, "pos"],
        *,
        layers: Sequence[int | str] | None = None,
        target: str | int | None = None,
        positions: Sequence[int] | None = None,
        k: int = 5,
        chat: bool = False,
        other_model: bool = False,
    ) -> LensTable:
        """The table of `logit_lens`, through the translators; its arguments and errors.

        Args: layers: None for those of this lens and the last.   other_model: allow another model than it was fitted on.
        Raises: MismatchError for another model otherwise.
        """
        if not other_model and model.base_fingerprint() != self.provenance.notes["base_model"]:
            raise MismatchError(
                f"tuned lens: it was fitted on another model than {model.name}. Pass other_model=True if its layers mean the same."
            )
        last = self.provenance.notes["last"]
        asked = [*(layer if layer == EMBED else int(layer) for layer in self.layers), last] if layers is None else layers
        options = {"site": "resid_post", "norm": "final", "target": target, "k": k, "lens": self.provenance.data}
        return lens_table(
            model,
            text,
            lambda resid, layer: unembed(model, self.translate(resid, layer=layer)),
            Provenance("tuned_lens", model.fingerprint(), options=options),
            layers=asked,
            site="resid_post",
            target=target,
            positions=positions,
            k=k,
            chat=chat,
        )

    def frame(self) -> "pd.DataFrame":
        """One line a layer: KL of the tuned lens and of the logit lens, and the gain, in nats per token, with 95 % intervals."""
        import pandas as pd

        lines = []
        for i, layer in enumerate(self.layers):
            line: dict[str, object] = {"layer": layer, "n": self.n}
            for name, values in (("kl", self.kl), ("plain", self.plain), ("gain", self.gain)):
                line |= dict(zip((name, f"{name}_low", f"{name}_high"), values[i].tolist(), strict=True))
            lines.append(line)
        return pd.DataFrame(lines)

    def __repr__(self) -> str:
        better = int((self.gain[:, 1] > 0).sum())
        return (
            f"TunedLens({len(self.layers)} layers, closer to the model than the logit lens at {better} of them; "
            f"KL in nats per token on {self.n} held-out texts)"
        )

    def _repr_html_(self) -> str:
        def said(values: Float64[np.ndarray, "3"]) -> str:
            return f"{number(values[0])} [{number(values[1])}, {number(values[2])}]"

        rows = [[layer, *map(said, values)] for layer, *values in zip(self.layers, self.kl, self.plain, self.gain, strict=True)]
        return str(tag("div", tag("p", repr(self)), table(["layer", "tuned lens", "logit lens", "gain"], rows)))

    def save(self, path: str | Path) -> None:
        """Write safetensors, exactly."""
        tables = {name: torch.from_numpy(getattr(self, name)) for name in ("kl", "plain", "gain")}
        about = {"kind": "tuned_lens", "layers": list(self.layers), "n": self.n, "provenance": self.provenance.as_dict()}
        save_tensors(path, {"matrix": self.matrix, "bias": self.bias, **tables}, about)

    @classmethod
    def load(cls, path: str | Path) -> "TunedLens":
        """Read what `save` wrote."""
        tensors, about = load_tensors(path, "tuned_lens")
        kl, plain, gain = (tensors[name].numpy().copy() for name in ("kl", "plain", "gain"))
        made = Provenance(**about["provenance"])
        return cls(tuple(about["layers"]), tensors["matrix"], tensors["bias"], kl, plain, gain, about["n"], made)
