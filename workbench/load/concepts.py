"""ConceptVectors' rows: a concept, the one value vector said to carry it, questions about it, and questions about others.

    [{"Concept": "Poland", "Layer": 23, "Dim": 743, "QA": [...], "unrelated_QA": [...],
      "text_completion": [{"First_half": ..., "Second_half": ...}], "wikipedia_content": ...}, ...]

A place means something in one model only: the files are about Llama-2-7B-chat (llama2-7b_concepts*.json) and OLMo-7B
(olmo-7b_concepts*.json). `own_concept` makes such a row for places found in another model, so that the same protocol runs there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from workbench.core.components import Place
from workbench.core.errors import DataError, InputError, MismatchError, ModelError, unknown
from workbench.core.records import Examples, Rows
from workbench.core.store import existing, read_json
from workbench.load.datasets import text_of
from workbench.load.models import Model

QUESTION = "Question: {text}\n Answer:"
COMPLETION = "Please complete the following paragraph: {text}"


class Known(NamedTuple):
    """The model a file is about, by what its config says. Llama-2-7B and its chat version have the same config."""

    title: str
    type: str
    n_layers: int
    d_mlp: int
    d_model: int
    d_vocab: int

    def __str__(self) -> str:
        return f"{self.type}, {self.n_layers} layers, d_mlp {self.d_mlp}, d_model {self.d_model}, {self.d_vocab} tokens"


MODELS = {
    "llama2-7b": Known("Llama-2-7B-chat", "llama", 32, 11008, 4096, 32000),
    "olmo-7b": Known("OLMo-7B", "olmo", 32, 11008, 4096, 50304),
}


@dataclass(frozen=True)
class Concept:
    """One concept, where it is said to lie, and what to ask.

    id: "model/layer/dim"; names are not unique in the files.   model: one of MODELS, or the base fingerprint of your own.
    places: (layer, neuron) of its value vectors; one in the published files.
    qa, unrelated_qa: questions.   completion: (first half, second half) of sentences about it.   text: its Wikipedia article.
    question, start: how questions and first halves are put to the model, with {text}; None: as a user turn of the model's chat
        template, or as they stand where it has none.
    """

    id: str
    name: str
    model: str
    places: tuple[Place, ...]
    qa: tuple[str, ...]
    unrelated_qa: tuple[str, ...]
    completion: tuple[tuple[str, str], ...] = ()
    text: str = ""
    question: str | None = None
    start: str | None = None


class ConceptRows(Rows[Concept]):
    """Rows of Concept."""


def concepts(path: str | Path, *, model: str | None = None) -> ConceptRows:
    """Read a ConceptVectors JSON file.

    The questions' surrounding white space is removed (the files have a space in front and a line break behind, which the
    published code leaves in the prompt). Questions are asked as the published code does, "Question: ...\\n Answer:".

    Args:
        path: a .json file in ConceptVectors' format.
        model: which of MODELS it is about; None takes it from the file's name.
    Raises: InputError for a missing file, or one whose name does not say its model; UnknownNameError for another model; DataError
        naming file and entry for a broken one, or a place that stands twice.
    Reference: Hong et al. 2024, arXiv:2406.11614; github.com/yihuaihong/ConceptVectors.
    """
    path = existing(path)
    if model is None:
        model = model_of(path)
        if model is None:
            raise InputError(f"{path}: the name does not say which model it is about; pass model=, one of {', '.join(MODELS)}.")
    if model not in MODELS:
        raise unknown("model of ConceptVectors", model, MODELS)
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path}: holds a {type(entries).__name__}, expected a list of concepts.")
    return ConceptRows((_concept(entry, model, f"{path}, entry {i}") for i, entry in enumerate(entries)), path.name)


def model_of(path: Path) -> str | None:
    """Which of MODELS a file is about, by its name; None if that does not say."""
    return next((name for name in MODELS if path.name.startswith(name)), None)


def own_concept(
    model: Model,
    name: str,
    places: Sequence[Place],
    qa: Examples,
    unrelated_qa: Examples,
    *,
    completion: Sequence[tuple[str, str]] = (),
    question: str | None = None,
    start: str | None = None,
) -> Concept:
    """A concept in your own model: places that `probe.find_concept` found, and the prompts of rows as questions.

    Args:
        places: (layer, neuron) of its value vectors.   qa, unrelated_qa: rows whose prompts are asked.
        completion: (first half, second half) of texts; none leaves that part of the protocol out.
        question, start: as in Concept.
    Raises: InputError for a place the model lacks; DataError if a question stands in both sets.
    """
    for layer, index in places:
        if not (0 <= layer < model.n_layers and 0 <= index < model.d_mlp):
            raise InputError(f"own_concept: {model.name} has no value vector ({layer}, {index}).")
    if not places:
        raise InputError("own_concept: places is empty; name at least one value vector as (layer, neuron).")
    asked, other = (tuple(row.prompt for row in rows) for rows in (qa, unrelated_qa))
    if set(asked) & set(other):
        raise DataError(f"own_concept: {len(set(asked) & set(other))} question(s) stand in qa and in unrelated_qa.")
    key = model.base_fingerprint()
    where = tuple(Place(*place) for place in places)
    id = f"{key[:12]}/" + "+".join(f"{layer}.{index}" for layer, index in where)
    return Concept(id, name, key, where, asked, other, tuple(completion), question=question, start=start)


def check_model(model: Model, concept: Concept) -> None:
    """ModelError if the concept's places are those of another published model, MismatchError if of another model of your own."""
    if concept.model not in MODELS:
        if concept.model != model.base_fingerprint():
            raise MismatchError(
                f"concept {concept.name!r} was found in model {concept.model[:12]}, and {model.name!r} is "
                f"{model.base_fingerprint()[:12]}: its value vectors are other ones."
            )
        return
    known = MODELS[concept.model]
    config = model.hf.config
    here = Known(model.name, config.model_type, model.n_layers, model.d_mlp, model.d_model, model.d_vocab)
    if here[1:] != known[1:]:
        layer, index = concept.places[0]
        raise ModelError(
            f"concept {concept.name!r} is value vector {layer}/{index} of {known.title} ({known}), which in {model.name!r} "
            f"({here}) is not there or means something else; find places there with probe.find_concept, and use own_concept."
        )


def _concept(entry: Any, model: str, where: str) -> Concept:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: a {type(entry).__name__}, expected an object with Concept, Layer, Dim and QA.")
    place = Place(*(_whole(entry, key, where) for key in ("Layer", "Dim")))
    known = MODELS[model]
    if not (place.layer < known.n_layers and place.index < known.d_mlp):
        raise DataError(f"{where}: {known.title} has no value vector ({place.layer}, {place.index}).")
    halves = _listed(entry, "text_completion", where)
    return Concept(
        id=f"{model}/{place.layer}/{place.index}",
        name=text_of(entry, ("Concept",), where),
        model=model,
        places=(place,),
        qa=_texts(entry, "QA", where),
        unrelated_qa=_texts(entry, "unrelated_QA", where),
        completion=tuple(_half(half, f"{where}, text_completion") for half in halves),
        text=text_of(entry, ("wikipedia_content",), where),
        question=QUESTION,
        start=COMPLETION,
    )


def _whole(entry: Mapping[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if type(value) is not int or value < 0:
        raise DataError(f"{where}: {key} is {value!r}, expected a whole number from 0.")
    return value


def _listed(entry: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = entry.get(key)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {key} is {'absent' if value is None else repr(value)[:40]}, expected a list that is not empty.")
    return value


def _texts(entry: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = _listed(entry, key, where)
    if not all(isinstance(text, str) and text.strip() for text in values):
        raise DataError(f"{where}: {key} holds something that is no question.")
    return tuple(text.strip() for text in values)


def _half(half: Any, where: str) -> tuple[str, str]:
    if not isinstance(half, Mapping):
        raise DataError(f"{where}: a {type(half).__name__}, expected First_half and Second_half.")
    return text_of(half, ("First_half",), where), text_of(half, ("Second_half",), where)
