"""ProbeSweep: one linear probe a site and layer, how well each tells held-out rows apart, and the controls beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int

from workbench.core.direction import Direction
from workbench.core.errors import InputError, MismatchError, unknown
from workbench.core.records import Provenance
from workbench.core.store import load_tensors, save_tensors
from workbench.load.models import Model
from workbench.load.texts import encode_texts
from workbench.probe.fitters import LinearProbe
from workbench.trace.features import features

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_TABLES = ("value", "low", "high", "chance", "shuffled", "words", "gain", "cross_validated", "calibration", "reliability", "held")


class At(NamedTuple):
    """Where a probe reads."""

    site: str
    layer: int


@dataclass(frozen=True, eq=False)
class ProbeSweep:
    """Probes of one behavior at many places, all fitted and judged on the same rows. Intervals are 95 %.

    places: site and layer of each probe.   probes: the functions themselves.
    metrics: what is measured on held-out rows; probes are compared by the first.
    value, low, high: [probe metric], with the bootstrap interval over held-out rows (or groups).
    chance: [metric].   shuffled: [probe metric control], from probes fitted to permuted training labels.
    words: [metric 3], the bag-of-words baseline on the same rows: value, low, high.
    gain: [probe metric 3], probe minus baseline, with the paired interval.
    cross_validated: [probe], the first metric, mean over folds of the training rows; what `best` goes by. NaN without folds.
    calibration: [probe 4], expected calibration error, and mean, low, high of what true probabilities would show; NaN without any.
    reliability: [probe bin 3], mean confidence, share right, held-out rows.
    classes: sorted, the positive one last; none of numbers.
    held: positions of the n rows that judge.   n_train: how many others trained.
    """

    places: tuple[At, ...]
    probes: tuple[LinearProbe, ...]
    metrics: tuple[str, ...]
    classes: tuple[Any, ...]
    value: Float64[np.ndarray, "probe metric"]
    low: Float64[np.ndarray, "probe metric"]
    high: Float64[np.ndarray, "probe metric"]
    chance: Float64[np.ndarray, "metric"]
    shuffled: Float64[np.ndarray, "probe metric control"]
    words: Float64[np.ndarray, "metric 3"]
    gain: Float64[np.ndarray, "probe metric 3"]
    cross_validated: Float64[np.ndarray, "probe"]
    calibration: Float64[np.ndarray, "probe 4"]
    reliability: Float64[np.ndarray, "probe bin 3"]
    held: Int[np.ndarray, "held"]
    n_train: int
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.places)

    @property
    def n(self) -> int:
        """Held-out rows."""
        return len(self.held)

    @property
    def beats_words(self) -> Bool[np.ndarray, "probe"]:
        """Whether a probe's interval lies above chance and that of its gain over bag of words above 0, in the first metric.

        Of each probe by itself. Without the first condition a probe that knows nothing would beat words that mislead.
        """
        return self._beats(0)

    def best(self, site: str | None = None) -> At:
        """The place with the best cross-validated metric on the training rows.

        The held-out rows have no say in it, so the metrics at this place are those of a probe that was not picked by them.

        Args: site: among the layers of this site; all without.
        Raises: InputError if there were too few rows to cross-validate.
        """
        mine = self._of(site)
        if not np.isfinite(self.cross_validated[mine]).any():
            raise InputError(
                "ProbeSweep.best: too few training rows (or groups) of a class to cross-validate, so no layer can be chosen "
                "without looking at the held-out rows. Name the layer, or give more rows."
            )
        return self.places[mine[int(np.nanargmax(self.cross_validated[mine]))]]

    def index(self, layer: int | None = None, site: str | None = None) -> int:
        """Position of a probe. Without a layer it is that of `best`; the site may be left out where there is one."""
        if layer is None:
            return self.places.index(self.best(site))
        sites = list(dict.fromkeys(place.site for place in self.places))
        if site is None and len(sites) > 1:
            raise InputError(f"ProbeSweep: which site? There are {', '.join(sites)}; give site=.")
        mine = [i for i in self._of(site) if self.places[i].layer == layer]
        if not mine:
            layers = ", ".join(str(self.places[i].layer) for i in self._of(site))
            raise InputError(f"ProbeSweep: there is no probe at layer {layer}; the layers are {layers}.")
        return mine[0]

    def direction(self, layer: int | None = None, *, site: str | None = None, cls: Any = None) -> Direction:
        """The unit vector of a probe in raw activation space; along it the decision grows fastest.

        Args:
            layer, site: see `index`.
            cls: the class that is positive; the last of two (`classes[-1]`) without. With more than two it must be named, and the
                direction is that of the class's own row, which sums to 0 with the others' where the probe is a softmax.
        Raises: UnknownNameError for a class there is not.
        """
        i = self.index(layer, site)
        weight = self.probes[i].weight
        vector, positive = weight[0], self.classes[-1] if self.classes else None
        if len(self.classes) > 2 or cls is not None:
            if cls not in self.classes:
                raise unknown("class of the probe", str(cls), map(str, self.classes))
            row = self.classes.index(cls)
            vector = weight[row] if len(self.classes) > 2 else weight[0] * (1 if row else -1)
            positive = cls
        found = dict(zip(self.metrics, _or_none(self.value[i].tolist()), strict=True))
        notes = {"positive": positive, "n": self.n, **found, "beats_words": bool(self.beats_words[i])}
        notes[f"{self.metrics[0]}_interval"] = _or_none([float(self.low[i, 0]), float(self.high[i, 0])])
        about = Provenance(
            f"probe {self.provenance.method}",
            self.provenance.model,
            self.provenance.data,
            self.provenance.options,
            self.provenance.seed,
            self.provenance.dtype,
            notes=notes,
            versions=self.provenance.versions,
        )
        return Direction(torch.from_numpy(vector.copy()), self.places[i].site, self.places[i].layer, about)

    def directions(self, *, site: str | None = None, cls: Any = None) -> list[Direction]:
        """One direction a layer, in the order of the layers; of more than two classes, and without `cls`, one a layer and class."""
        if site is None and len({place.site for place in self.places}) > 1:
            raise InputError("ProbeSweep.directions: there are several sites; give site=.")
        chosen = sorted((self.places[i] for i in self._of(site)), key=lambda place: place.layer)
        classes = self.classes if len(self.classes) > 2 and cls is None else (cls,)
        return [self.direction(place.layer, site=place.site, cls=one) for place in chosen for one in classes]

    def scores(
        self,
        model: Model,
        texts: Sequence[str],
        layer: int | None = None,
        *,
        site: str | None = None,
        other_model: bool = False,
        batch_tokens: int = 4096,
    ) -> Float64[np.ndarray, "n row"]:
        """A probe's decisions on new texts, read as the training texts were: x w + b, [n 1] or [n class].

        Args:
            model: the one the probe was fitted on, with or without edits.
            other_model: allow another model of this shape, such as one that was trained further.
        Raises: MismatchError for another model otherwise; ShapeError if its activations have another width.
        """
        i, options = self.index(layer, site), self.provenance.options
        if not other_model and model.base_fingerprint() != self.provenance.notes["base_model"]:
            raise MismatchError(
                f"ProbeSweep.scores: the probe was fitted on another model than {model.name}. Pass other_model=True if its "
                "activations mean the same."
            )
        rows = encode_texts(model, texts, max_tokens=options["max_tokens"], chat=options["chat"])
        where = self.places[i]
        read = features(
            model,
            rows,
            sites=[where.site],
            layers=[where.layer],
            pool=options["pool"],
            bos=options["bos"],
            batch_tokens=batch_tokens,
        )
        return self.probes[i].decision(read[where].numpy())

    def frame(self) -> "pd.DataFrame":
        """One row a probe and metric.

        site, layer, metric, value, low, high, n; chance; shuffled, shuffled_low, shuffled_high: mean and range of the controls;
        words, gain, gain_low, gain_high, beats_words: against bag of words; cross_validated: on training rows. Calibration error
        has no interval but beside it, as chance, what true probabilities would show.
        """
        import pandas as pd

        lines = []
        for i, place in enumerate(self.places):
            for m, metric in enumerate(self.metrics):
                line = {"site": place.site, "layer": place.layer, "metric": metric, "value": self.value[i, m]}
                line |= {"low": self.low[i, m], "high": self.high[i, m], "n": self.n, "chance": self.chance[m]}
                control = self.shuffled[i, m]
                if control.size:
                    line |= {"shuffled": control.mean(), "shuffled_low": control.min(), "shuffled_high": control.max()}
                line |= {"words": self.words[m, 0], **dict(zip(("gain", "gain_low", "gain_high"), self.gain[i, m], strict=True))}
                line |= {"beats_words": bool(self._beats(m)[i])}
                line |= {"cross_validated": self.cross_validated[i]} if m == 0 else {}
                lines.append(line)
            if np.isfinite(self.calibration[i, 0]):
                error = {"metric": "calibration_error", "value": self.calibration[i, 0], "chance": self.calibration[i, 1]}
                lines.append({"site": place.site, "layer": place.layer, **error, "n": self.n})
        return pd.DataFrame(lines)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The first metric by layer with its interval, a line a site; shuffled labels, bag of words and chance beside it."""
        from workbench.probe.chart import plot

        return plot(self, ax)

    def said(self) -> str:
        """The result in one sentence."""
        from workbench.probe.chart import said

        return said(self)

    def __repr__(self) -> str:
        return f"ProbeSweep({self.provenance.method!r}, {len(self)} probes; {self.said()})"

    def _repr_html_(self) -> str:
        from workbench.probe.chart import html

        return html(self)

    def save(self, path: str | Path) -> None:
        """Write safetensors, exactly."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in _TABLES}
        for i, probe in enumerate(self.probes):
            tensors |= {f"weight.{i}": torch.from_numpy(probe.weight), f"intercept.{i}": torch.from_numpy(probe.intercept)}
        about = {
            "kind": "probe_sweep",
            "places": [list(place) for place in self.places],
            "probes": [{"log_odds": probe.log_odds, "notes": probe.notes} for probe in self.probes],
            "metrics": list(self.metrics),
            "classes": list(self.classes),
            "n_train": self.n_train,
            "provenance": self.provenance.as_dict(),
        }
        save_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> "ProbeSweep":
        """Read what `save` wrote."""
        tensors, about = load_tensors(path, "probe_sweep")
        arrays = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
        classes = tuple(about["classes"])
        probes = tuple(
            LinearProbe(arrays[f"weight.{i}"], arrays[f"intercept.{i}"], classes, one["log_odds"], one["notes"])
            for i, one in enumerate(about["probes"])
        )
        return cls(
            places=tuple(At(*place) for place in about["places"]),
            probes=probes,
            metrics=tuple(about["metrics"]),
            classes=classes,
            n_train=about["n_train"],
            provenance=Provenance(**about["provenance"]),
            **{name: arrays[name] for name in _TABLES},
        )

    def _beats(self, metric: int) -> Bool[np.ndarray, "probe"]:
        return (self.gain[:, metric, 1] > 0) & (self.low[:, metric] > self.chance[metric])

    def _of(self, site: str | None) -> list[int]:
        """Positions of the probes of a site, all without."""
        if site is not None and site not in {place.site for place in self.places}:
            raise unknown("site of the sweep", site, {place.site for place in self.places})
        return [i for i, place in enumerate(self.places) if site in (None, place.site)]


def _or_none(values: list[float]) -> list[float | None]:
    """JSON has no NaN."""
    return [value if value == value else None for value in values]
