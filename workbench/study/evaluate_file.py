"""A suite on one's own model in three lines of YAML.

    model: ../models/mine              # paths are relative to the file; hub ids stay as they are
    data: ../data/tofu-mini            # what the suite asks, see ASKED
    reference: ../models/retrained     # optional: a model that never saw the forget rows

and, also optional, delta (a file of a Delta that is applied while the model is measured), device, dtype, seed, and every option of
the suite. A ConceptVectors file whose name does not say which model it is about has that under `about`, such as llama2-7b.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.components import Place
from workbench.core.delta import Delta, applied
from workbench.core.errors import StudyError, unknown
from workbench.core.measurements import Measurements
from workbench.core.registry import Member
from workbench.core.store import existing
from workbench.evaluate.suites import RUNS, SPLITS, suite
from workbench.evaluate.suites.muse import QUESTIONS, TEXTS
from workbench.evaluate.suites.tofu import HOLDOUT
from workbench.load.concepts import MODELS, Concept, concepts, model_of, own_concept
from workbench.load.datasets import examples
from workbench.load.models import Model, check_source, load
from workbench.load.multiple_choice import questions
from workbench.load.passages import passages
from workbench.study.file import known, read_file, resolve
from workbench.study.head import count, listing

COMMON = ("model", "delta", "device", "dtype", "seed")
ASKED = {
    "tofu": {"data": "the folder with forget, retain, real_authors and world_facts, or a source for each and their root"},
    "muse": {"data": "the folder with forget_text, retain_text and holdout_text, or a source for each split"},
    "multiple_choice": {"questions": "a .jsonl file of questions, choices and answers"},
    "conceptvectors": {"concepts": "a ConceptVectors .json file, or name, places, qa and unrelated_qa of a concept of your own"},
    "lm_eval": {"tasks": "a list of the harness' tasks"},
}
"""The key that a file of each suite must have beside model, and what it holds."""
MORE = {"tofu": ("retain_rows",), "muse": ("questions", "shots"), "conceptvectors": ("about",)}
"""Further keys that are no options of the suite's function."""
RETAIN_ROWS = 400
PATHS = ("model", "delta", "reference", "include_path", "data", "questions", "concepts")


@dataclass(frozen=True)
class Plan:
    """What is measured on which model, checked. asked: what the suite's own keys hold, unread.   options: of the suite."""

    suite: str
    model: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    delta: str = ""
    reference: str = ""
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0


def read_keys(path: str | Path) -> dict[str, Any]:
    """What a file says, its paths made relative to the working directory.

    Raises: StudyError or InputError for a file that cannot be read.
    """
    found = read_file(path, keys="model, what the suite asks (data, questions, concepts or tasks), and more")
    return {key: _resolved(value, Path(path).parent) if key in PATHS else value for key, value in found.items()}


def plan(name: str, keys: Mapping[str, Any], *, where: str) -> Plan:
    """What a file or a command line says of a suite, checked.

    Args: keys: model and the key in ASKED, and any other of COMMON and MORE, or option of the suite.   where: named in messages.
    Raises: UnknownNameError, with the nearest name, for an unknown suite or key; StudyError for what is missing.
    """
    if name not in RUNS:
        raise unknown("suite", name, RUNS)
    member = Member(name, RUNS[name])
    own = [*ASKED[name], *MORE.get(name, ())]
    options = [key for key in member.options if key not in ("seed", "show", "reference", *own)]
    with_reference = ["reference"] if "reference" in member.options else []
    known(f"key of a measurement with {name}", keys, [*COMMON, *with_reference, *own, *options])
    for key, what in {"model": "a folder or a hub id", **ASKED[name]}.items():
        if not keys.get(key):
            raise StudyError(f"{where}: there is no {key!r}; it is {what}.")
    texts = {key: str(keys[key]) for key in ("model", "delta", "reference", "device", "dtype") if key in keys}
    for key in {"model", "reference"} & texts.keys():
        check_source(texts[key])
    given = member.check_options({key: keys[key] for key in options if key in keys})
    seed = count(f"{where}: seed", keys.get("seed", 0), least=0)
    return Plan(name, asked={key: keys[key] for key in own if key in keys}, options=given, seed=seed, **texts)


def evaluate(one: Plan, *, show: bool = False) -> Measurements:
    """Load what a plan names and measure it.

    Raises: as the suite; MismatchError for a Delta of another model.
    """
    data: Any = READERS[one.suite](one)
    model = load(one.model, device=one.device, dtype=one.dtype)
    untouched = one.model if one.suite == "conceptvectors" and one.delta else ""
    gold = one.reference or untouched
    reference = load(gold, device=one.device, dtype=one.dtype) if gold else None
    if data is None:
        data = _own_concepts(reference or model, one.asked["concepts"])
    options = dict(one.options)
    if "shots" in one.asked:
        n = count("shots", one.asked["shots"])
        options["shots"], data["retain_qa"] = data["retain_qa"][:n], data["retain_qa"][n:]
    with applied(model, Delta.load(one.delta)) if one.delta else nullcontext():
        return suite(one.suite, model, data=data, reference=reference, options=options, seed=one.seed, show=show)


def _resolved(value: Any, folder: Path) -> Any:
    """Texts as paths relative to the working directory where they are paths; so are the texts of a mapping."""
    if isinstance(value, Mapping):
        return {key: _resolved(one, folder) for key, one in value.items()}
    return resolve(value, folder) if isinstance(value, str) else value


def _tofu(one: Plan) -> dict[str, Any]:
    """TOFU's rows, of retain the first `retain_rows`; and of holdout where there are some."""
    data = one.asked["data"]
    if isinstance(data, Mapping):
        known("key of data", data, [*SPLITS, HOLDOUT, "root"])
        splits = [split for split in (*SPLITS, HOLDOUT) if split in data]
        rows = {split: examples(str(data[split]), root=data.get("root")) for split in splits}
    else:
        there = any((Path(str(data)) / f"{HOLDOUT}{more}").exists() for more in (".jsonl", ".json", "_perturbed.jsonl"))
        rows = {split: examples(f"tofu:{split}", root=str(data)) for split in (*SPLITS, *([HOLDOUT] if there else []))}
    if "retain" in rows:
        rows["retain"] = rows["retain"][: count("retain_rows", one.asked.get("retain_rows", RETAIN_ROWS))]
    return rows


def _muse(one: Plan) -> dict[str, Any]:
    """Passages and questions from a folder of SPLIT.jsonl or SPLIT.txt, or from a source each.

    Questions that are not in the folder are TOFU's forget and retain under `questions`.
    """
    data, asked = one.asked["data"], one.asked.get("questions")
    if isinstance(data, Mapping):
        known("key of data", data, [*TEXTS, *QUESTIONS, "root"])
        source = {split: str(value) for split, value in data.items() if split != "root"}
        root = data.get("root")
    else:
        found = {split: sorted(Path(str(data)).glob(f"{split}.*")) for split in (*TEXTS, *QUESTIONS)}
        source = {split: str(files[0]) for split, files in found.items() if files}
        root = None
    if asked is not None:
        source |= {split: f"tofu:{split.removesuffix('_qa')}" for split in QUESTIONS}
        root = str(asked)
    return {split: passages(at) if split in TEXTS else examples(at, root=root) for split, at in source.items()}


def _concepts(one: Plan) -> list[Concept] | None:
    """Concepts from a file of ConceptVectors; None for one of the model's own, which is made once the model is there."""
    asked, about = one.asked["concepts"], one.asked.get("about")
    if isinstance(asked, Mapping):
        known("key of concepts", asked, ["name", "places", "qa", "unrelated_qa"])
        absent = [key for key in ("name", "places", "qa", "unrelated_qa") if not asked.get(key)]
        if absent:
            raise StudyError(
                f"concepts: there is no {', '.join(absent)}; a concept of your own has name, places, qa and unrelated_qa."
            )
        return None
    if about is None and model_of(existing(str(asked))) is None:
        raise StudyError(f"{asked}: the name does not say which model it is about; say so with about, one of {', '.join(MODELS)}.")
    return list(concepts(str(asked), model=None if about is None else str(about)))


def _own_concepts(untouched: Model, asked: Mapping[str, Any]) -> list[Concept]:
    """A concept of the model's own."""
    places = [Place(*place) for place in asked["places"]]
    rows = (examples(str(asked[key])) for key in ("qa", "unrelated_qa"))
    return [own_concept(untouched, str(asked["name"]), places, *rows)]


READERS = {
    "tofu": _tofu,
    "muse": _muse,
    "multiple_choice": lambda one: questions(str(one.asked["questions"])),
    "lm_eval": lambda one: list(listing("tasks", one.asked["tasks"], str)),
    "conceptvectors": _concepts,
}
"""What reads the data of a suite; None where that takes the model."""
