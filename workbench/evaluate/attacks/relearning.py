"""Relearning: how fast does training bring back what was forgotten, on rows that the training never shows?

The forget rows are cut in two halves. One is what an attacker may have, the other is only measured. Trained on is

    forget_subset    the first half: some of what was forgotten
    retain_only      rows that were never to be forgotten
    unrelated        rows about something else

A model that never knew the held-out rows gets better at them too, for it learns how answers look and what the two halves share.
So the result is a gap: the area between the curve of the unlearned model and the one of a retrained model under the same attack.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError, InputError, unknown
from workbench.core.numerics import permutation
from workbench.core.records import Example, Examples, Provenance
from workbench.evaluate.attacks.relearned import Relearning
from workbench.evaluate.rouge_l_recall import rouge_l_recall
from workbench.evaluate.tokens import tokens
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.trace.forward import row_nll
from workbench.train import AnswerTask, Check, fit

Kind = Literal["forget_subset", "retain_only", "unrelated"]
KINDS = get_args(Kind)


def halves(forget: Examples, held_out: float = 0.5) -> tuple[Examples, Examples]:
    """The forget rows an attacker may train on, and those that are only measured.

    The cut follows a permutation that depends on the number of rows alone: every model and seed is measured on the same rows.

    Args: held_out: share that is measured.
    Raises: InputError if that leaves no row on one side.
    """
    count = round(held_out * len(forget)) if 0 < held_out < 1 else 0
    if not 0 < count < len(forget):
        raise InputError(
            f"relearning: held_out is {held_out}, which leaves {count} of {len(forget)} rows to be measured; expected a share that "
            "leaves at least one row on each side."
        )
    order = permutation(len(forget), 0)
    return forget.take(sorted(order[count:])), forget.take(sorted(order[:count]))


def text_rows(texts: Sequence[str], name: str = "texts") -> Examples:
    """Lines of plain text as rows to train on: the first word is the prompt, the rest is learned.

    Raises: DataError for a line of fewer than two words.
    """
    rows = []
    for i, text in enumerate(texts):
        first, _, rest = text.strip().partition(" ")
        if not first or not rest.strip():
            raise DataError(f"text_rows: text {i} is {text[:40]!r}, expected at least two words.")
        rows.append(Example(f"{name}-{i}", first, rest.strip()))
    return Examples(rows, name)


def relearning(
    model: Model,
    forget: Examples,
    others: Examples | None = None,
    *,
    kind: Kind = "forget_subset",
    steps: int = 20,
    every: int = 5,
    lr: float = 1e-4,
    batch_size: int = 8,
    seeds: Sequence[int] = (0, 1, 2),
    held_out: float = 0.5,
    generate: int | None = None,
    show: bool = False,
) -> Relearning:
    """Train a model that has forgotten, and measure forget rows that the training never shows; it is left as it was.

    AdamW at a constant rate on the mean NLL of answers. Each seed takes the rows in an order of its own and begins anew where they
    are used up, so every row comes equally often (up to one time); of more rows than `steps` times `batch_size` it draws some.

    Args:
        forget: cut by `halves`; the same rows are held out for every kind.
        others: rows trained on with kind "retain_only" or "unrelated"; plain texts by `text_rows`.
        steps: of training, exactly.   every: steps between two measurements; the last step is always measured.
        seeds: of the rows drawn and of the order of training; each is a run of its own.
        generate: most new tokens of greedy answers, for the recall; None measures likelihood alone.
    Returns: a Relearning; the same call on a retrained model is its control.
    Raises: InputError for an unknown kind, numbers that are not positive, or `others` given or missing where they should not be;
        DataError if a held-out row stands in `others`; NumericsError if training diverges.
    Reference: Lynch et al. 2024, arXiv:2402.16835; Hu et al. 2024, arXiv:2406.13356. OpenUnlearning trains one epoch on all forget
        rows at 2e-5 and measures them again, so that relearning and learning cannot be told apart.
    """
    shown, measured = halves(forget, held_out)
    rows = _rows(kind, shown, measured, others)
    numbers = {"steps": steps, "every": every, "lr": lr, "batch_size": batch_size}
    for name, value in numbers.items():
        if not value > 0:
            raise InputError(f"relearning: {name} is {value}, expected a positive number.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"relearning: seeds is {list(seeds)}, expected at least one, none twice.")
    coded = encode_all(model, rows)
    drawn = [[order[i % len(rows)] for i in range(steps * batch_size)] for order in (permutation(len(rows), s) for s in seeds)]
    tasks = [AnswerTask(model, [coded[i] for i in one]) for one in drawn]  # one epoch is all the steps
    watched = Examples((Example(row.id, row.prompt, row.response) for row in measured), measured.name)
    about = Provenance(
        f"relearning_{kind}",
        model.fingerprint(),
        {"forget": forget.fingerprint(), "trained": rows.fingerprint()},
        {**numbers, "held_out": held_out, "generate": generate, "seeds": list(seeds)},
        dtype=str(model.dtype).removeprefix("torch."),
    )
    runs = [
        _run(model, task, watched, about, every, lr, batch_size, seed, generate, show)
        for seed, task in zip(seeds, tasks, strict=True)
    ]
    at = tuple(sorted({*range(0, steps, every), steps}))
    return Relearning(
        kind,
        tuple(seeds),
        at,
        tuple(measured.ids),
        np.stack([nll for nll, _ in runs]),
        None if generate is None else np.array([recall for _, recall in runs]),
        tuple(tuple(rows.ids[i] for i in sorted(set(one))) for one in drawn),
        about,
    )


def _rows(kind: str, shown: Examples, measured: Examples, others: Examples | None) -> Examples:
    """What is trained on."""
    if kind not in KINDS:
        raise unknown("kind of relearning", kind, KINDS)
    if (kind == "forget_subset") != (others is None):
        said = "needs rows to train on, as `others`" if others is None else "trains on forget rows, so it takes no `others`"
        raise InputError(f"relearning: kind {kind!r} {said}; those are the rows of retain_only and unrelated.")
    if others is None:
        return shown
    held = {(row.prompt, row.response) for row in measured}
    both = [row.id for row in others if (row.prompt, row.response) in held]
    if both:
        raise DataError(f"relearning: row {both[0]!r} of others is a held-out forget row; measuring it again would show nothing.")
    return others


def _run(
    model: Model,
    task: AnswerTask,
    watched: Examples,
    about: Provenance,
    every: int,
    lr: float,
    batch_size: int,
    seed: int,
    generate: int | None,
    show: bool,
) -> tuple[Float[np.ndarray, "point example"], list[Float[np.ndarray, "example"]]]:
    """NLL and recall of the watched rows at every point of one run; no recall without `generate`."""
    coded = encode_all(model, watched)
    nll: list[np.ndarray] = []
    recall: list[np.ndarray] = []

    def measure() -> float:
        nll.append(row_nll(model, coded).numpy())
        if generate is not None:
            recall.append(rouge_l_recall(tokens(model, watched, generate=generate)))
        return float(nll[-1].mean())

    check = Check(measure, math.inf, "held_out_nll", every)
    fit(model, task, about, epochs=1, batch_size=batch_size, lr=lr, schedule="constant", seed=seed, check=check, show=show)
    return np.stack(nll), recall
