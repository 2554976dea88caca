"""Exact unlearning by shards: rows are learned slice by slice, each in layers of its own, so that a slice can be taken out again.

The rows are cut into slices. Slice by slice, low-rank adapters are trained: the first slice in the last layers, the next in the
layers below, and so on, each on top of the adapters before it, which are frozen by then. An adapter has seen the rows of its own
slice and, through the frozen adapters above it, of the slices before it; never those of a later one. To delete rows, every
adapter from the first slice that holds one of them on is left out. What stays is bit for bit what training on the slices before
alone would have made: there is nothing to approximate and nothing to audit.

The price is that slices behind a deleted row are lost with it. Several chains, with the slices in different orders, lower it:
after a deletion the chain that keeps the most rows is used.

This makes a model exactly as if it had never seen the deleted rows only if the model it starts from never saw any of `rows`. The
cut into slices depends on how many rows there are, not on what they say.

Reference: Basu Roy Chowdhury et al. 2024 (S3T), arXiv:2406.16257. Their code trains slice k's layers on the rows of slices 1 to
k, which `cumulative=True` does; deletion is the same, for the slices before a deleted row are untouched by it either way.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from workbench.core.change import Change
from workbench.core.delta import Delta, applied
from workbench.core.errors import DataError, InputError
from workbench.core.names import layer_of
from workbench.core.numerics import permutation
from workbench.core.records import Examples, Provenance
from workbench.core.runtime import progress
from workbench.core.store import check_vacant, existing, new_folder, read_json, write_json
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.train.loop import fit
from workbench.train.lora import Lora, target_layers
from workbench.train.task import AnswerTask
from workbench.unlearn.training import read_lora


class Lost(NamedTuple):
    """The price of deleting rows. chain: the one that is left the most.   slices: how many of its slices are left out.

    rows: how many rows that nobody wanted to delete are left out with them.
    """

    chain: int
    slices: int
    rows: int


@dataclass(frozen=True, eq=False)
class Sharded:
    """What every slice has learned, chain by chain.

    slices: the ids of the rows of each slice.   chains: the order of the slices in each.   deltas: for each chain, what each of its
    slices added, in that order.
    """

    slices: tuple[tuple[str, ...], ...]
    chains: tuple[tuple[int, ...], ...]
    deltas: tuple[tuple[Delta, ...], ...]
    provenance: Provenance

    @property
    def delta(self) -> Delta:
        """Everything that was learned: all slices of the first chain."""
        return self._first(0, len(self.slices))

    def without(self, ids: Iterable[str]) -> Delta:
        """What was learned by slices that neither hold one of these rows nor were trained after one that does.

        Raises: DataError for an id that no slice has.
        """
        chain, kept = self._left(ids)
        return self._first(chain, kept)

    def lost(self, ids: Iterable[str]) -> Lost:
        """What `without(ids)` leaves out.

        Raises: DataError for an id that no slice has.
        """
        gone = set(ids)
        chain, kept = self._left(gone)
        left_out = [row for place in self.chains[chain][kept:] for row in self.slices[place]]
        return Lost(chain, len(self.slices) - kept, len(set(left_out) - gone))

    def save(self, folder: str | Path) -> None:
        """Write sharded.json and a Delta for every slice of every chain.

        Raises: InputError if `folder` exists and is not empty.
        """
        check_vacant(folder)
        with new_folder(folder) as aside:
            plain = {"slices": self.slices, "chains": self.chains, "provenance": self.provenance.as_dict()}
            write_json(aside / "sharded.json", plain)
            for chain, deltas in enumerate(self.deltas):
                for place, delta in enumerate(deltas):
                    delta.save(aside / _file(chain, place))

    @classmethod
    def load(cls, folder: str | Path) -> "Sharded":
        """Read what `save` wrote."""
        folder = existing(folder)
        plain = read_json(folder / "sharded.json")
        chains = tuple(tuple(order) for order in plain["chains"])
        deltas = tuple(tuple(Delta.load(folder / _file(c, place)) for place in range(len(o))) for c, o in enumerate(chains))
        return cls(tuple(tuple(ids) for ids in plain["slices"]), chains, deltas, Provenance(**plain["provenance"]))

    def _left(self, ids: Iterable[str]) -> tuple[int, int]:
        """The chain with the most rows left, the first of equals, and how many of its slices are."""
        owner = {row: place for place, rows in enumerate(self.slices) for row in rows}
        hit: set[int] = set()
        for row in ids:
            if row not in owner:
                raise DataError(f"sharded: no slice has the row {row!r}; {len(owner)} rows were learned, other ones.")
            hit.add(owner[row])
        kept = [next((k for k, place in enumerate(order) if place in hit), len(order)) for order in self.chains]
        rows = [sum(len(self.slices[place]) for place in order[:k]) for order, k in zip(self.chains, kept, strict=True)]
        best = max(range(len(rows)), key=rows.__getitem__)
        return best, kept[best]

    def _first(self, chain: int, count: int) -> Delta:
        """The first slices of a chain together; they change different weights, so nothing is added up."""
        changes: dict[str, Change] = {}
        for delta in self.deltas[chain][:count]:
            changes |= delta.changes
        options = {**self.provenance.options, "chain": chain, "kept": list(self.chains[chain][:count])}
        return Delta(changes, replace(self.provenance, options=options))


def sharded(
    model: Model,
    rows: Examples,
    *,
    slices: int = 4,
    groups: Mapping[str, str] | None = None,
    orders: int = 1,
    cumulative: bool = False,
    lora: Lora | Mapping[str, Any] | None = None,
    epochs: int = 5,
    batch_size: int = 16,
    micro_batch: int | None = None,
    lr: float = 1e-3,
    schedule: str = "linear",
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    seed: int = 0,
    show: bool = False,
) -> Sharded:
    """Learn rows so that any of them can be deleted exactly; the model, which must not have seen them, is left as it was.

    Args:
        slices: how many, at most as many as the model has layers; slice k of a chain has the k-th block of layers from the top.
        groups: by row id the group it belongs to, such as its author, whose rows are kept in one slice; None cuts row by row.
        orders: chains, at most as many as slices: rotations of one order, so that every slice stands last, where it is cheap to
            delete, in at most one. Each costs as much training as the first.
        cumulative: train each slice's layers on the rows of the slices before it too, as S3T's code does.
        lora: the adapters, or a mapping of their options; None for `Lora()`. Their targets are looked for in each block of layers.
        epochs, batch_size, micro_batch, lr, schedule, warmup, weight_decay, clip_norm: of every slice; see `train.fit`.
    Raises: InputError for numbers that cannot be, for a block of layers without targets, or for an edited model; DataError for
        groups that miss a row, or too few rows or groups; TrainingStopped if a loss is not finite.
    """
    adapted = read_lora(lora) or Lora()
    if model.ledger:
        raise InputError(f"sharded: {model!r} is edited; undo the edits first: what is learned shall belong to the model itself.")
    for name, value, most in (("slices", slices, model.n_layers), ("orders", orders, slices)):
        if not 1 <= value <= most:
            raise InputError(f"sharded: {name} is {value}, expected 1 to {most}.")
    cut = cut_rows(rows, slices, groups=groups, seed=seed)
    base = permutation(slices, seed)
    chains = tuple(tuple(base[k:] + base[:k]) for k in range(orders))
    blocks = layer_blocks(model, slices, adapted.targets)
    options = {"slices": slices, "orders": orders, "cumulative": cumulative, "lora": asdict(adapted)}
    options |= {"epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": schedule, "warmup": warmup}
    options |= {"weight_decay": weight_decay, "clip_norm": clip_norm}
    about = Provenance(
        "sharded", model.fingerprint(), {"rows": rows.fingerprint()}, options, seed, str(model.dtype), "mean over rows"
    )

    def learn(chosen: Sequence[str], block: tuple[str, ...]) -> Delta:
        """Adapters of a block of layers, trained on some rows on top of what is applied."""
        return fit(
            model,
            AnswerTask(model, [encoded[row] for row in chosen]),
            about,
            lora=replace(adapted, targets=block),
            epochs=epochs,
            batch_size=batch_size,
            micro_batch=micro_batch,
            lr=lr,
            schedule=schedule,
            warmup=warmup,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            seed=seed,
        ).delta

    encoded = {row.id: row for row in encode_all(model, rows)}
    found: list[tuple[Delta, ...]] = []
    for order in progress(chains, label="sharded", show=show):
        learned: list[Delta] = []
        with ExitStack() as before:
            for k, block in enumerate(blocks):
                seen = order[: k + 1] if cumulative else order[k : k + 1]
                learned.append(learn([row for place in seen for row in cut[place]], block))
                if not learned[-1].is_empty:
                    before.enter_context(applied(model, learned[-1]))
        found.append(tuple(learned))
    return Sharded(cut, chains, tuple(found), about)


def cut_rows(rows: Examples, slices: int, *, groups: Mapping[str, str] | None = None, seed: int = 0) -> tuple[tuple[str, ...], ...]:
    """Ids of the rows of each slice: groups, or single rows, shuffled and dealt out, each to the slice with the fewest rows so far.

    Raises: DataError if a row has no group, or if there are fewer groups than slices.
    """
    by_group: dict[str, list[str]] = {}
    for row in rows:
        if groups is not None and row.id not in groups:
            raise DataError(f"sharded: groups has no group for the row {row.id!r} of {rows.name}.")
        by_group.setdefault(row.id if groups is None else groups[row.id], []).append(row.id)
    if len(by_group) < slices:
        raise DataError(f"sharded: {rows.name} has {len(by_group)} groups of rows, too few for {slices} slices.")
    members = list(by_group.values())
    found: list[list[str]] = [[] for _ in range(slices)]
    for k in permutation(len(members), seed):
        min(found, key=len).extend(members[k])
    return tuple(tuple(one) for one in found)


def layer_blocks(model: Model, count: int, targets: Sequence[str] | None = None) -> list[tuple[str, ...]]:
    """The linear layers of each of `count` blocks of the model's layers, from the top down, as even as can be.

    Raises: InputError if a block has none.
    """
    found: list[list[str]] = [[] for _ in range(count)]
    for path in target_layers(model, targets):
        layer = layer_of(path)
        if layer != path:  # outside the layers there is no order
            from_the_top = model.n_layers - 1 - int(layer.rpartition(".")[2])
            found[from_the_top * count // model.n_layers].append(path)
    if not all(found):
        raise InputError(f"sharded: block {found.index([])} of {count} has no linear layer that lora's targets name; give others.")
    return [tuple(block) for block in found]


def _file(chain: int, place: int) -> str:
    return f"chain{chain}-slice{place}.safetensors"
