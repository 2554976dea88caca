"""The models of a study of MUSE: one that learned all documents, and some that never saw those to forget.

A document is a passage of running text or a solved question. Every model is another one fine-tuned to documents, kept as a Delta.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workbench.core.delta import Delta, apply
from workbench.core.errors import StudyError
from workbench.core.records import Example, Examples, Provenance
from workbench.core.store import text_sha256
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.load.passages import asked, whole, without_chat
from workbench.study.folder import state
from workbench.train.loop import fit
from workbench.train.task import AnswerTask


@dataclass(frozen=True)
class Sizes:
    """How much of the data is used, the first rows of each split.

    passages: of each text split.   questions: of each question split, as documents; `asked` of them are put to the models.
    max_tokens: of a passage; its beginning and continuation, prompt_tokens and new_tokens, must lie in what is learned.
    prompt_tokens, new_tokens, answer_tokens: see `evaluate.suites.muse`.
    Raises: StudyError if they do not, or more questions are put than are learned.
    """

    passages: int = 40
    questions: int = 80
    asked: int = 40
    max_tokens: int = 128
    prompt_tokens: int = 32
    new_tokens: int = 64
    answer_tokens: int = 32

    def __post_init__(self) -> None:
        if self.prompt_tokens + self.new_tokens > self.max_tokens:
            raise StudyError(
                f"muse.sizes: prompt_tokens {self.prompt_tokens} and new_tokens {self.new_tokens} are more than max_tokens "
                f"{self.max_tokens}: a continuation that was never learned cannot be forgotten. Lower one, or raise max_tokens."
            )
        if self.asked > self.questions:
            raise StudyError(
                f"muse.sizes: asked is {self.asked}, but only {self.questions} questions are learned; expected at most as many."
            )


@dataclass(frozen=True)
class FineTuning:
    """How documents are learned: with a cosine schedule and 5 % warm-up, one value a document."""

    epochs: int = 14
    lr: float = 2e-3
    batch_size: int = 8


@dataclass(frozen=True, eq=False)
class Documents:
    """forget, retain: documents, passages first.   data: what is measured, see `run_muse`."""

    forget: Examples
    retain: Examples
    data: Mapping[str, Any]

    @property
    def all(self) -> Examples:
        """Both, forget first."""
        return Examples([*self.forget, *self.retain], "forget and retain")

    def mixed(self, name: str = "forget") -> Examples:
        """The documents to forget with passages and questions evenly mixed, so that every part of them has both."""
        n = sum(row.id.startswith("text:") for row in self.forget)
        place = {i: (i + 0.5) / n if i < n else (i - n + 0.5) / (len(self.forget) - n) for i in range(len(self.forget))}
        return Examples((self.forget[i] for i in sorted(place, key=lambda i: place[i])), name)


def documents(model: Model, data: Mapping[str, Any], sizes: Sizes) -> Documents:
    """What is learned and what is asked; documents have the ids "text:SIDE:ID" and "qa:SIDE:ID".

    Args: data: forget_text, retain_text, holdout_text, forget_qa, retain_qa.
    """
    made = {}
    for side in ("forget", "retain"):
        text, solved = data[f"{side}_text"][: sizes.passages], data[f"{side}_qa"][: sizes.questions]
        texts = whole(model, text, max_tokens=sizes.max_tokens)
        rows = [*_named(f"text:{side}", texts), *_named(f"qa:{side}", asked(solved))]
        made[side] = Examples(rows, side)
    measured = {split: rows[: sizes.passages if split.endswith("_text") else sizes.asked] for split, rows in data.items()}
    return Documents(made["forget"], made["retain"], measured)


def learned(folder: Path, name: str, base: Model, rows: Examples, how: FineTuning, *, seed: int, show: bool = False) -> Model:
    """A model fine-tuned to documents, from the run's folder or made and kept there; `base` itself, changed.

    The file carries a hash of all that decides the model, so that other settings make another one.
    """
    key = text_sha256([*state(base), rows.fingerprint(), asdict(how), seed])
    path = folder / "models" / f"{name}-{key[:12]}.safetensors"
    if not path.exists():
        about = Provenance("fine_tuning", base.fingerprint(), {"documents": rows.fingerprint()}, asdict(how), seed, str(base.dtype))
        task = AnswerTask(base, encode_all(base, rows), group=4)
        fit(
            base,
            task,
            about,
            epochs=how.epochs,
            batch_size=how.batch_size,
            lr=how.lr,
            schedule="cosine",
            warmup=0.05,
            seed=seed,
            show=show,
        ).delta.save(path)
    apply(base, Delta.load(path))
    return base


def plain(model: Model, name: str) -> Model:
    """A model as a study of running text reads it, without a chat template, under another name."""
    made = without_chat(model)
    made.name = name
    return made


def _named(kind: str, rows: Examples) -> list[Example]:
    """Rows under ids that no other kind and side has: files without ids all count from 0."""
    return [replace(row, id=f"{kind}:{row.id}") for row in rows]
