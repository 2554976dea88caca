"""The methods that `validate_data` compares: each a matrix [query train] on the models that saw every row, one for each seed.

methods:
  EK-FAC:           {influence: ekfac, damping: 1e-8}             a registered influence with its options
  TracIn:           {influence: gradient_similarity, kind: dot, checkpoints: true}
  loss:             {score: loss}                                 a registered score of single rows, as it is, for every query
  same topic:       {labels: group}                               1 where row and query share their group, else 0
  right and topic:  {labels: clean}                               1 where they do and the row is clean

`checkpoints: true` and `moments: true` stand for what the training on all rows kept. Labels are the keys `group` and `clean` of the
rows' JSON lines.
"""

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.core.delta import applied
from workbench.core.errors import DataError, StudyError
from workbench.core.influence import Influence
from workbench.core.records import Examples, Provenance
from workbench.core.registry import example_score, influence
from workbench.core.store import existing, text_sha256
from workbench.load.datasets import json_rows
from workbench.load.models import Model
from workbench.study.bank import Bench, retrain
from workbench.study.file import mapping
from workbench.train.loop import Trained

KINDS = ("influence", "score", "labels")
LABELS = ("group", "clean")
KEPT = ("checkpoints", "moments")
DEFAULTS: dict[str, dict[str, Any]] = {
    "random": {"influence": "random"},
    "BM25": {"influence": "text_match"},
    "loss": {"score": "loss"},
    "EL2N": {"score": "el2n"},
    "gradient norm": {"score": "grad_norm"},
    "gradient dot": {"influence": "gradient_similarity", "kind": "dot"},
    "gradient cosine": {"influence": "gradient_similarity", "kind": "cosine"},
    "TracIn": {"influence": "gradient_similarity", "kind": "dot", "checkpoints": True},
    "LESS": {"influence": "gradient_similarity", "kind": "cosine", "checkpoints": True, "moments": True},
    "EK-FAC": {"influence": "ekfac"},
}


@dataclass(frozen=True)
class Method:
    """name: in the tables.   kind: influence, score or labels.   member: which one.   options: of that member."""

    name: str
    kind: str
    member: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        """As it is written in a study file."""
        return {self.kind: self.member, **self.options}


def method(name: str, raw: Any) -> Method:
    """One line of `methods`, checked against the registries.

    Raises: StudyError if it does not say which method; UnknownNameError for a member or an option nobody knows; InputError for a
        value that an option cannot take.
    """
    body = dict(mapping(f"method {name!r}", raw))
    kinds = [kind for kind in KINDS if kind in body]
    if len(kinds) != 1:
        raise StudyError(f"method {name!r} is {raw!r}, expected exactly one of the keys {', '.join(KINDS)}.")
    kind = kinds[0]
    member = str(body.pop(kind))
    if kind == "labels":
        if member not in LABELS or body:
            raise StudyError(f"method {name!r} is {raw!r}, expected labels: group or labels: clean, and nothing else.")
        return Method(name, kind, member)
    found = {"influence": influence, "score": example_score}[kind][member]
    if found.about.get("rows") == "pairs":
        raise StudyError(f"method {name!r}: {member} scores preference pairs, and these are rows.")
    for key in KEPT:
        if key in body and body[key] is not True:
            raise StudyError(f"method {name!r}: {key} is {body[key]!r}, expected true, or nothing.")
    found.check_options({key: None if key in KEPT else value for key, value in body.items()})
    return Method(name, kind, found.name, body)


@dataclass(frozen=True)
class Labels:
    """What the rows' JSON lines say. train, query: the group of every row.   clean: of every training row, where asked for."""

    train: list[str | bool]
    query: list[str | bool]
    clean: list[str | bool]


@dataclass(eq=False)
class Full:
    """The models that saw every row, trained when they are first asked for; and where what is computed on them is kept."""

    on: Bench
    folder: Path
    trained: dict[int, Trained] = field(default_factory=dict)

    def model(self, seed: int) -> Trained:
        """Trained on all rows with a seed, with its checkpoints and moments."""
        if seed not in self.trained:
            fingerprint = self.on.train.fingerprint()
            self.trained[seed] = retrain(
                self.on.model, self.on.rows, self.on.recipe, seed=seed, data=fingerprint, snapshots=True, moments=True
            )
        return self.trained[seed]


def place(full: Full, method: Method, seed: int, labels: Labels | None) -> Path:
    """The file of one method on the model of one seed: its name is a hash of all that decides the values."""
    causes: list[Any] = [*full.on.causes, method.plain, seed]
    if method.kind == "labels" and labels is not None:
        causes.append([labels.train, labels.query, labels.clean if method.member == "clean" else []])
    if method.member == "ekfac":
        causes.append(_version("kronfluence"))
    return full.folder / "influence" / f"{text_sha256(causes)}.safetensors"


def computed(full: Full, method: Method, seed: int, labels: Labels | None) -> Influence:
    """One method on the model of one seed, from its file or computed and kept, with the seconds it took in provenance.notes."""
    path = place(full, method, seed, labels)
    if not path.exists():
        on, trained = full.on, full.model(seed)  # its training is no part of the method's seconds
        begin = time.perf_counter()
        if method.kind == "labels" and labels is not None:
            found = _labelled(on, method, labels)
        else:
            found = called(on.model, method, on.query, on.train, trained)
        notes = {**found.provenance.notes, "seconds": time.perf_counter() - begin}
        replace(found, provenance=replace(found.provenance, notes=notes)).save(path)
    return Influence.load(path)


def mean_values(found: Sequence[Influence]) -> Float[np.ndarray, "query train"]:
    """Mean over the seeds' models of one method."""
    return np.mean([one.values for one in found], axis=0)


def called(model: Model, method: Method, query: Examples, train: Examples, trained: Trained) -> Influence:
    """A registered member on the model that `trained` leads to, or from its start over its checkpoints."""
    given = {"checkpoints": trained.checkpoints, "moments": trained.moments}
    options = {key: given.get(key, value) for key, value in method.options.items()}
    if method.kind == "influence":
        function = influence[method.member].function
        if "checkpoints" in options:
            return function(model, query, train, **options)
        with applied(model, trained.delta):
            return function(model, query, train, **options)
    with applied(model, trained.delta):
        scores = example_score[method.member].function(model, train, **options)
    return Influence(np.tile(scores.values, (len(query), 1)), tuple(query.ids), tuple(train.ids), scores.provenance)


def _labelled(on: Bench, method: Method, labels: Labels) -> Influence:
    """What the rows' own labels say: no model is asked."""
    values = np.equal.outer(np.array(labels.query), np.array(labels.train)).astype(np.float64)
    if method.member == "clean":
        values *= np.array([bool(one) for one in labels.clean])
    about = Provenance("labels", on.model.fingerprint(), {"train": on.train.fingerprint()}, {"labels": method.member})
    return Influence(values, tuple(on.query.ids), tuple(on.train.ids), about)


def _version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_labels(methods: Sequence[Method], sources: Mapping[str, str], train: Examples, query: Examples) -> Labels | None:
    """The labels that these methods ask for, None if none does; read once, before anything is computed.

    Raises: as `labels_of`.
    """
    asked = {one.member for one in methods if one.kind == "labels"}
    if not asked:
        return None
    clean = labels_of(sources["train"], "clean", train) if "clean" in asked else []
    return Labels(labels_of(sources["train"], "group", train), labels_of(sources["query"], "group", query), clean)


def labels_of(source: str, key: str, rows: Examples) -> list[str | bool]:
    """The value of `key` of every row of a JSON lines file.

    Raises: DataError for another kind of source, or a row without the key.
    """
    if not source.endswith((".jsonl", ".json")):
        raise DataError(f"{source}: labels are read from JSON lines, and this is none. Leave the methods with 'labels' out.")
    found: list[str | bool] = []
    for row, where in json_rows(existing(source)):
        value = row.get(key)
        if not isinstance(value, str | bool):
            raise DataError(f"{where}: no {key!r}, which a method with 'labels' needs; write it there or leave the method out.")
        found.append(value)
    if len(found) != len(rows):
        raise DataError(f"{source}: {len(found)} labels for {len(rows)} rows.")
    return found
