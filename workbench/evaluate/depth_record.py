"""What the unlearning-depth score is made of: losses by row and layer, the score's formula, and its control."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from workbench.core.measurements import Measurement, Measurements
from workbench.core.records import Provenance
from workbench.core.statistics import LEVEL, RESAMPLES, Estimate, mean_estimate

if TYPE_CHECKING:
    import pandas as pd

THRESHOLD = 0.05


class Lost(NamedTuple):
    """What the full model loses with another model's states at one layer, nats per token, float64."""

    retrained: Float64[np.ndarray, "row layer"]
    unlearned: Float64[np.ndarray, "row layer"]


def depth_scores(
    retrained: Float[np.ndarray, "row layer"], unlearned: Float[np.ndarray, "row layer"], *, threshold: float = THRESHOLD
) -> Float64[np.ndarray, "row"]:
    """The depth of every row from its losses; NaN for a row without an encoding layer.

    sum_{l in E} clip(D_2l, 0, D_1l) / sum_{l in E} D_1l, E = {l : D_1l > threshold}, which is the formula of `depth.py`, for
    D_1 clip(D_2 / D_1, 0, 1) = clip(D_2, 0, D_1) where D_1 > 0. So nothing is divided by one small loss.
    """
    encoding = retrained > threshold
    weight = np.where(encoding, retrained, 0.0).astype(np.float64)
    gone = np.clip(unlearned, 0.0, weight).sum(1)
    return np.divide(gone, weight.sum(1), out=np.full(len(weight), np.nan), where=encoding.any(1))


@dataclass(frozen=True, eq=False)
class Depth:
    """What patching showed, row by row, in float64.

    ids: of the rows with an entity.   layers: numbers from 0.   threshold: nats per token.
    logprob: [row], the full model's mean log-probability of the entity's tokens, nats per token.
    lost: of these rows.   control: of rows that all models know, or None.   without: how many rows have no entity.
    """

    ids: tuple[str, ...]
    layers: tuple[int, ...]
    threshold: float
    logprob: Float64[np.ndarray, "row"]
    lost: Lost
    control: Lost | None
    without: int
    seed: int
    provenance: Provenance

    @property
    def stage_1(self) -> Float64[np.ndarray, "row layer"]:
        """What the retrained model's states cost, of the rows and then of the control's: the same for every unlearned model."""
        return self.lost.retrained if self.control is None else np.concatenate([self.lost.retrained, self.control.retrained])

    @property
    def encoding(self) -> Bool[np.ndarray, "row layer"]:
        """Which layers encode which row's entity: the retrained model's states cost more than the threshold there."""
        return self.lost.retrained > self.threshold

    @property
    def score(self) -> Float64[np.ndarray, "row"]:
        """The depth of every row, 0 to 1; NaN for a row none of whose layers encodes its entity."""
        return depth_scores(*self.lost, threshold=self.threshold)

    @property
    def estimate(self) -> Estimate:
        """Mean depth over the rows that have one, with its bootstrap interval; NaN where nothing is defined, never 0."""
        scored = self.score[np.isfinite(self.score)]
        if len(scored) < 2:
            return Estimate(float(scored[0]) if len(scored) else np.nan, np.nan, np.nan, len(scored))
        return mean_estimate(scored, seed=self.seed)

    @property
    def beyond_control(self) -> Estimate | None:
        """Mean depth of what the losses exceed the control's by: D_l less its mean over the control rows, for both models.

        So states that the full model cannot read, of another basis or a broken model, count as nothing lost, not as erased. The
        interval draws forget and control rows anew. NaN where no row's loss with the retrained model's states exceeds the control's
        by more than the threshold. None without a control. Not part of the published score.
        """
        if self.control is None:
            return None
        known, n, m = self.control, len(self.ids), len(self.control.retrained)
        rng = np.random.default_rng(self.seed)

        def mean(rows: np.ndarray, others: np.ndarray) -> tuple[float, int]:
            over = (one[rows] - other[others].mean(0) for one, other in zip(self.lost, known, strict=True))
            scored = depth_scores(*over, threshold=self.threshold)
            scored = scored[np.isfinite(scored)]
            return (float(scored.mean()) if len(scored) else np.nan), len(scored)

        value, scored = mean(np.arange(n), np.arange(m))
        drawn = np.array([mean(rng.integers(0, n, n), rng.integers(0, m, m))[0] for _ in range(RESAMPLES)])
        drawn = drawn[np.isfinite(drawn)]
        if scored < 2 or len(drawn) < RESAMPLES * LEVEL:
            return Estimate(value, np.nan, np.nan, scored)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value, float(low), float(high), scored)

    def frame(self) -> "pd.DataFrame":
        """One line a row: id, logprob, encoding (how many layers), score, and a note where there is none."""
        import pandas as pd

        reason = f"no layer loses more than {self.threshold:g} nats per token with the retrained model's states"
        columns = {"id": self.ids, "logprob": self.logprob, "encoding": self.encoding.sum(1), "score": self.score}
        return pd.DataFrame(columns | {"note": np.where(np.isfinite(self.score), "", reason)})

    def by_layer(self) -> "pd.DataFrame":
        """One line a layer: encoding (of how many rows), mean losses with intervals, those of the control, and the share erased.

        erased: sum over the rows it encodes of clip(D_2, 0, D_1), over their sum of D_1; the depth of the layer.
        """
        import pandas as pd

        erased = depth_scores(self.lost.retrained.T, self.lost.unlearned.T, threshold=self.threshold)
        sets = {"": self.lost} | ({} if self.control is None else {"control_": self.control})
        lines = []
        for j, layer in enumerate(self.layers):
            line = {"layer": layer, "encoding": int(self.encoding[:, j].sum()), "erased": erased[j]}
            for kind, lost in sets.items():
                for name, values in lost._asdict().items():
                    found = mean_estimate(values[:, j], seed=self.seed)
                    line |= {kind + name: found.value, f"{kind}{name}_low": found.low, f"{kind}{name}_high": found.high}
            lines.append(line)
        return pd.DataFrame(lines)

    def measurements(self, split: str = "forget") -> Measurements:
        """unlearning_depth; with a control also unlearning_depth_beyond_control, and what the states cost on the control rows."""
        bare = int(np.isnan(self.score).sum())
        notes = [f"{bare} of {len(self.score)} rows left out: no layer encodes them"] if bare else []
        notes += [f"{self.without} rows have no entity"] if self.without else []
        notes += ["too few rows for an interval"] if len(self.score) - bare < 2 else []
        notes += ["no control: states that cannot be read count as erased"] if self.control is None else []
        kept = {"unit": "share", "better": "higher"}
        rows = [Measurement.of("unlearning_depth", split, self.estimate, **kept, note="; ".join(notes))]
        beyond = self.beyond_control
        if self.control is not None and beyond is not None:
            note = "" if np.isfinite(beyond.low) else "too few rows for an interval"
            if np.isnan(beyond.value):
                note = "the retrained model's states cost as much on rows that all models know"
            rows.append(Measurement.of("unlearning_depth_beyond_control", split, beyond, **kept, note=note))
            for name, lost in self.control._asdict().items():
                found = mean_estimate(lost.mean(1), seed=self.seed)
                note = "mean over layers and rows that all models know; 0 where the full model reads the states as its own"
                rows.append(Measurement.of(f"depth_control_{name}", split, found, unit="nats_per_token", better="lower", note=note))
        return Measurements(rows)

    def __repr__(self) -> str:
        found, beyond = self.estimate, self.beyond_control
        more = "" if beyond is None else f"; beyond control {beyond.value:.3f} [{beyond.low:.3f}, {beyond.high:.3f}]"
        return f"Depth({found.value:.3f} [{found.low:.3f}, {found.high:.3f}] over {found.n} of {len(self.ids)} rows{more})"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.by_layer().to_html(index=False, float_format="%.4g")
