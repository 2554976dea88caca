"""MUSE's suite: what a model still says of passages and questions it should have forgotten, whether they can be told, what it kept.

    VerbMem    rouge_l_f on forget_text   how a passage goes on, after its beginning
    KnowMem    rouge_l_f on forget_qa     questions
    PrivLeak   privleak on forget_text    Min-40% of forget against holdout passages, beside the same of a retrained model
    utility    rouge_l_f on retain_qa     questions

Scalability and sustainability, MUSE's other two, are these four after larger forget sets and after one request upon another;
`study.muse` runs them. ROUGE is from 0 to 1 here and PrivLeak in percent; MUSE reports all of them times 100.

Text is read as it stands, also by a model with a chat template: passages are no turns, and questions stand in MUSE's own frame.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from workbench.core.errors import DataError, InputError, TooLongError, unknown
from workbench.core.measurements import Measurements
from workbench.core.records import Examples
from workbench.evaluate.answers import Answers
from workbench.evaluate.suites.lines import REFERENCE, TOKENS, Given, Line, leak_of, mean, measured, share, told_from
from workbench.evaluate.table import Table, TokenTable, answers
from workbench.evaluate.tokens import BATCH_TOKENS, tokens
from workbench.load.models import Model
from workbench.load.passages import Passages, asked, continuations, whole, without_chat

TEXTS = ("forget_text", "retain_text", "holdout_text")
QUESTIONS = ("forget_qa", "retain_qa")
NEEDED = ("forget_text", *QUESTIONS)
MEMBERS, OTHERS = "forget_whole", "holdout_whole"  # passages from their second word on, which nothing is generated for
STOPS = ("\n\n", "\nQuestion", "Question:")
NO_END = {"end": False}  # a passage is cut, and its end says nothing
F = {"stemmer": False}

LINES = (
    Line("rouge_l_f", "forget_text", mean, F, better="lower", note="MUSE's VerbMem, not times 100"),
    Line("exact_memorization", "forget_text", mean, NO_END, needs=(TOKENS,)),
    Line("extraction_strength", "forget_text", mean, NO_END, needs=(TOKENS,)),
    Line("rouge_l_f", "forget_qa", mean, F, better="lower", note="MUSE's KnowMem, not times 100"),
    Line("rouge_l_f", "retain_qa", mean, F, note="MUSE's utility, not times 100"),
    *(
        Line(name, split, reduce)
        for split in ("forget_text", "forget_qa")
        for name, reduce in (("gibberish", mean), ("empty_answer", share))
    ),
    Line("rouge_l_f", "retain_text", mean, F, needs=("retain_text",)),
    Line("auc", MEMBERS, told_from(OTHERS, options=NO_END), unit="AUC", better="reference", needs=(OTHERS,)),
    Line("privleak", MEMBERS, leak_of(OTHERS, options=NO_END), unit="percent", better="zero", needs=(OTHERS, REFERENCE)),
)


def muse(tables: Mapping[str, Table], reference: Mapping[str, Table] | None = None, *, seed: int = 0) -> Measurements:
    """MUSE's numbers from what `read_muse` read.

    Args:
        tables: of the model.
        reference: of a model retrained without the forget set; only MEMBERS and OTHERS are looked at. Without it, or without
            holdout passages, there is no PrivLeak.
        seed: of every bootstrap, which draws passages or questions.
    Raises: DataError if forget_text, forget_qa or retain_qa is missing, or the reference has no holdout passages.
    Reference: Shi et al. 2025 (MUSE), arXiv:2407.06460. ROUGE-L F of words, without a stemmer.
    """
    absent = [split for split in NEEDED if split not in tables]
    if absent:
        raise DataError(f"muse: no {', '.join(absent)} among {', '.join(tables) or 'no splits'}; it needs {', '.join(NEEDED)}.")
    if reference is not None:
        short = [split for split in (MEMBERS, OTHERS) if split not in tables or split not in reference]
        if short:
            raise DataError(
                f"muse: a reference is given, but no {', '.join(short)}. PrivLeak tells forget from holdout passages by model and "
                "reference; give holdout_text, or no reference."
            )
    cut = {split: _stopped(table) if split in QUESTIONS else answers(table) for split, table in tables.items()}
    return Measurements(measured(LINES, Given(tables, cut, reference or {}, seed)))


def read_muse(
    model: Model,
    data: Mapping[str, Any],
    *,
    prompt_tokens: int = 32,
    new_tokens: int = 128,
    answer_tokens: int = 32,
    max_tokens: int | None = None,
    shots: Examples | None = None,
    batch_tokens: int = BATCH_TOKENS,
    show: bool = False,
) -> dict[str, TokenTable]:
    """Everything `muse` needs to know of a model. Arguments as of `run_muse`."""
    check_muse(data)
    plain, options = without_chat(model), {"batch_tokens": batch_tokens, "show": show}
    read = {}
    for split in ("forget_text", "retain_text"):
        if split in data:
            rows = continuations(plain, data[split], prompt_tokens=prompt_tokens, new_tokens=new_tokens)
            read[split] = tokens(plain, rows, generate=new_tokens, **options)
    for split in QUESTIONS:
        read[split] = tokens(plain, asked(data[split], shots=shots), generate=answer_tokens, **options)
    return read | read_privacy(model, data, max_tokens=max_tokens, **options)


def read_privacy(
    model: Model,
    data: Mapping[str, Any],
    *,
    max_tokens: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    show: bool = False,
) -> dict[str, TokenTable]:
    """What PrivLeak needs to know of a model, and of the retrained one; nothing without holdout passages."""
    if "holdout_text" not in data:
        return {}
    plain = without_chat(model)
    try:
        return {
            name: tokens(plain, whole(plain, data[split], max_tokens=max_tokens), batch_tokens=batch_tokens, show=show)
            for name, split in ((MEMBERS, "forget_text"), (OTHERS, "holdout_text"))
        }
    except TooLongError as error:
        raise TooLongError(f"muse, PrivLeak: {error} Or give max_tokens={model.context}, which cuts their ends.") from error


def run_muse(
    model: Model,
    data: Mapping[str, Any],
    *,
    reference: Model | Mapping[str, Table] | None = None,
    prompt_tokens: int = 32,
    new_tokens: int = 128,
    answer_tokens: int = 32,
    max_tokens: int | None = None,
    shots: Examples | None = None,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
    show: bool = False,
) -> Measurements:
    """`read_muse`, then `muse`.

    Args:
        data: Passages forget_text, and retain_text and holdout_text if there are some; Examples forget_qa and retain_qa.
        reference: a model retrained without the forget set, or what it says (`read_privacy`).
        prompt_tokens: of a passage's beginning.   new_tokens: of its continuation, the true one and the model's.
        answer_tokens: of an answer, which is also cut at one of STOPS.   shots: solved questions in front of every question.
        max_tokens: of a passage that PrivLeak looks at, such as the number a model was trained on; None for all.
        batch_tokens, show: as in `tokens`.   seed: of the bootstrap.
    Raises: DataError for a split that is missing or of the wrong kind, and for a passage that is too short or too long.
    """
    check_muse(data)
    if isinstance(reference, Model):
        if "holdout_text" not in data:
            raise DataError("muse: a reference is given, but no holdout_text, so there is no PrivLeak. Give both or neither.")
        reference = read_privacy(reference, data, max_tokens=max_tokens, batch_tokens=batch_tokens, show=show)
    lengths = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "answer_tokens": answer_tokens, "max_tokens": max_tokens}
    return muse(read_muse(model, data, **lengths, shots=shots, batch_tokens=batch_tokens, show=show), reference, seed=seed)


def check_muse(data: Mapping[str, Any]) -> None:
    """DataError unless the splits that MUSE needs are there, passages where it reads passages and questions where it asks."""
    for split, rows in data.items():
        if split not in (*TEXTS, *QUESTIONS):
            raise unknown("split of muse", split, (*TEXTS, *QUESTIONS))
        wanted = Passages if split in TEXTS else Examples
        if not isinstance(rows, wanted):
            raise InputError(f"muse: {split} is a {type(rows).__name__}, expected {wanted.__name__}; read it with load.passages.")
    absent = [split for split in NEEDED if split not in data]
    if absent:
        raise DataError(f"muse: no {', '.join(absent)} among {', '.join(data) or 'no splits'}; it needs {', '.join(NEEDED)}.")


def _stopped(table: Table) -> Answers:
    """The answers with each generated text cut at the first of STOPS."""
    given = answers(table)
    return replace(given, generated=tuple(None if text is None else cut_at_stop(text) for text in given.generated))


def cut_at_stop(text: str) -> str:
    """The text before the first of STOPS."""
    ends = [place for place in (text.find(stop) for stop in STOPS) if place >= 0]
    return text[: min(ends)] if ends else text
