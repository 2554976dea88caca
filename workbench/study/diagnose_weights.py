"""Which modules carry what a change made a model forget? Every module's part of the change is taken back alone, and done alone.

    undone_m = NLL(before + Delta) - NLL(before + Delta without m)     the forgetting that goes when m is put back
    alone_m  = NLL(before + m) - NLL(before)                           the forgetting that m causes by itself

Where the two differ, modules work together: neither sums to the whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.delta import Delta, applied
from workbench.core.errors import unknown
from workbench.core.names import layer_of
from workbench.core.records import Examples
from workbench.core.runtime import progress
from workbench.core.statistics import Estimate, bootstrap, mean_estimate
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.trace.forward import row_nll

if TYPE_CHECKING:
    import pandas as pd

GROUPINGS = ("matrix", "layer")
HALF = 0.5  # of the forgetting that the blamed modules carry by their single effects
THIRD = 3  # at most one module in so many is blamed


class Bench(NamedTuple):
    """A change and the rows it is judged on: NLLs [row], mean per answer token in nats, without it and with it."""

    model: Model
    delta: Delta
    rows: Sequence[Encoded]
    before: Float[np.ndarray, "row"]
    after: Float[np.ndarray, "row"]

    def under(self, delta: Delta) -> Float[np.ndarray, "row"]:
        """NLL of every row with another change applied."""
        with applied(self.model, delta):
            return row_nll(self.model, self.rows).numpy()

    def take(self, positions: Sequence[int]) -> "Bench":
        """The same change on some of the rows."""
        chosen = list(positions)
        return self._replace(rows=[self.rows[i] for i in chosen], before=self.before[chosen], after=self.after[chosen])


class Effects(NamedTuple):
    """modules: a frame, one line a module.   undone: [module row] forgetting that goes when the module is put back, in nats."""

    modules: "pd.DataFrame"
    undone: Float[np.ndarray, "module row"]


def bench(model: Model, delta: Delta, rows: Examples) -> Bench:
    """Measure the rows without and with the change."""
    coded = encode_all(model, rows)
    on = Bench(model, delta, coded, row_nll(model, coded).numpy(), np.zeros(len(coded)))
    return on._replace(after=on.under(delta))


def pieces(delta: Delta, by: str = "matrix") -> dict[str, Delta]:
    """A change cut into its modules, each a Delta of its own; together they are the whole.

    Args: by: "matrix": every tensor with two axes or more is a module, the norms and biases of a layer are one together; "layer":
        a layer is a module. A tensor outside the layers stands by itself, and so does a change of activations at a site.
    Raises: UnknownNameError for another `by`.
    """
    if by not in GROUPINGS:
        raise unknown("grouping of modules", by, GROUPINGS)
    groups: dict[str, list[str]] = {}
    for name, change in delta.changes.items():
        layer = layer_of(name)
        small = len(change.shape) < 2 and layer != name
        key = layer if by == "layer" else (f"{layer}, norms and biases" if small else name)
        groups.setdefault(key, []).append(name)
    found = {key: Delta({n: delta.changes[n] for n in names}, delta.provenance) for key, names in groups.items()}
    for hook in delta.hooks:
        key = f"hook at {hook.site}"
        found[key] = Delta({}, delta.provenance, (*(found[key].hooks if key in found else ()), hook))
    return found


def joined(parts: Iterable[Delta], whole: Delta) -> Delta:
    """Some pieces of one change as one Delta."""
    parts = list(parts)
    changes = {name: change for part in parts for name, change in part.changes.items()}
    there = [hook for part in parts for hook in part.hooks]
    return Delta(changes, whole.provenance, tuple(h for h in whole.hooks if any(h is one for one in there)))


def without(cut: Mapping[str, Delta], names: Iterable[str], whole: Delta) -> Delta:
    """The change with these modules put back."""
    gone = set(names)
    return joined((part for name, part in cut.items() if name not in gone), whole)


def share(part: Float[np.ndarray, "row"], whole: Float[np.ndarray, "row"]) -> Estimate:
    """Mean of `part` over mean of `whole`, as a share of 1, with an interval that draws rows, both of a row together.

    NaN where the mean of `whole` is not above 0: there is nothing to have a share of. The interval alone is NaN where that of the
    mean of `whole` reaches 0.
    """
    nan = float("nan")
    total = mean_estimate(whole)
    if total.value <= 0:
        return Estimate(nan, nan, nan, len(whole))
    if total.low <= 0:
        return Estimate(float(part.mean() / whole.mean()), nan, nan, len(whole))
    return bootstrap(lambda both: both[..., 0].mean(axis=1) / both[..., 1].mean(axis=1), np.stack([part, whole], axis=1))


def effects(on: Bench, cut: Mapping[str, Delta], *, show: bool = False) -> Effects:
    """The effect of every module on the rows, undone and alone: two forward passes a module.

    Returns: a frame indexed by module: parameters, delta_norm, weight_norm, ratio (NaN where it is not defined), undone and alone
        (nats per token, means over rows with _low and _high), undone_share and alone_share (of the whole change's forgetting).
    """
    import pandas as pd

    weights = dict(on.model.hf.named_parameters())
    whole, lines, rows = on.after - on.before, [], []
    for name, part in progress(list(cut.items()), label="modules", show=show):
        undone = on.after - on.under(without(cut, [name], on.delta))
        alone = on.under(part) - on.before
        norm = sum(change.norm() ** 2 for change in part.changes.values()) ** 0.5
        size = sum(float(weights[n].detach().double().square().sum()) for n in part.changes) ** 0.5
        line = {
            "module": name,
            "parameters": sum(weights[n].numel() for n in part.changes),
            "delta_norm": norm,
            "weight_norm": size,
            "ratio": norm / size if size else float("nan"),
        }
        for word, values in (("undone", undone), ("alone", alone)):
            found, of = mean_estimate(values), share(values, whole)
            line |= {word: found.value, f"{word}_low": found.low, f"{word}_high": found.high, f"{word}_share": of.value}
        lines.append(line)
        rows.append(undone)
    return Effects(pd.DataFrame(lines).set_index("module"), np.stack(rows))


def blamed(names: Sequence[str], undone: Float[np.ndarray, "module row"], whole: Float[np.ndarray, "row"]) -> list[str]:
    """The fewest modules whose single effects add up to half of the forgetting, at most a third of all, at least one.

    Args: undone: what goes when each module is put back, on the rows that may choose.   whole: the forgetting of those rows.
    """
    mean = undone.mean(axis=1)
    order = np.argsort(-mean, kind="stable")[: max(1, len(names) // THIRD)]
    reached = np.cumsum(mean[order]) >= HALF * whole.mean()
    count = int(np.argmax(reached)) + 1 if bool(reached.any()) else len(order)
    return [str(names[i]) for i in order[:count]]


def matched(names: Sequence[str], squares: Float[np.ndarray, "module"], chosen: Sequence[str], seed: int) -> list[str]:
    """Other modules drawn by chance, as many as together changed as much as the chosen: sum of ||Delta||^2 nearest to theirs.

    A module that changed more carries more, whichever it is; as many modules would not be a fair comparison.

    Args: squares: ||Delta||^2 of every module.
    """
    mine = {name: i for i, name in enumerate(names)}
    aim = squares[[mine[name] for name in chosen]].sum()
    others = np.array([i for name, i in mine.items() if name not in set(chosen)])
    order = np.random.default_rng(seed).permutation(others)
    count = int(np.argmin(np.abs(np.cumsum(squares[order]) - aim))) + 1
    return [str(names[i]) for i in order[:count]]
