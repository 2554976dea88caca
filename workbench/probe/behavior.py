"""Behavior probes: texts with labels -> a linear probe at every layer, judged on held-out rows beside its controls.

One forward pass reads all sites of all layers; every probe, the shuffled-label controls and the bag-of-words baseline are fitted
on the same training rows and judged on the same held-out rows and the same bootstrap resamples.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from workbench.core.errors import InputError
from workbench.core.records import Provenance
from workbench.core.registry import Member, probe
from workbench.core.runtime import progress
from workbench.core.store import text_sha256
from workbench.load.models import Model
from workbench.load.texts import encode_texts
from workbench.probe import measure
from workbench.probe.fitters import LinearProbe
from workbench.probe.judge import Judge, confidence
from workbench.probe.sweep import At, ProbeSweep
from workbench.probe.task import Task, task_of
from workbench.probe.words import bag_of_words
from workbench.trace.features import features


class Found(NamedTuple):
    """One probe with all that is measured of it; see `ProbeSweep`."""

    probe: LinearProbe
    values: Float64[np.ndarray, "metric resample"]
    shuffled: Float64[np.ndarray, "metric control"]
    cross_validated: float
    calibration: Float64[np.ndarray, "4"]
    reliability: Float64[np.ndarray, "bin 3"]


def fit(
    model: Model,
    texts: Sequence[str],
    labels: Sequence[Any],
    *,
    sites: Sequence[str] = ("resid_post",),
    layers: Sequence[int] | None = None,
    method: str = "logistic",
    options: Mapping[str, Any] | None = None,
    positive: str | int | float | None = None,
    pool: str = "mean",
    bos: bool = False,
    chat: bool = False,
    max_tokens: int | None = None,
    held_out: float = 0.3,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    controls: int = 5,
    batch_tokens: int = 4096,
    show: bool = False,
) -> ProbeSweep:
    """A linear probe of the labels at every site and layer, from one forward pass over the texts.

    The rows are split by label; rows of one group, and rows with the same text, stay on one side. Probes see the training rows.
    On the held-out rows: AUC (more than two classes: mean of one against the rest), accuracy and balanced accuracy; of numeric
    labels Spearman's correlation and R^2. Intervals are bootstrapped over held-out rows, or over whole groups where there are any;
    an AUC of exactly 1 has the interval [1, 1], of which a bootstrap can say no more.

    Controls: `shuffled`, the same fit to permuted training labels; `words`, a bag of words and word pairs of the texts. A probe is
    said to beat the words only where the paired interval of the difference lies above 0, and its own above chance; each layer is
    asked by itself, so of forty layers without any gain one may seem to have it by chance. `best` chooses the layer on the
    training rows.

    Args:
        texts, labels: one label a text. Two or more classes (bool, int or str), or finite numbers for method "ridge".
        sites: of a block, by canonical name; see `workbench.load.sites`.   layers: all without.
        method: a registered probe; see `workbench methods`.   options: its options by name.
        positive: which of two classes is positive; the last in order (True, 1) without.
        pool, bos: how a text's tokens become one vector; see `trace.features`.
        chat: read each text as one user turn, where the tokenizer has a chat template.
        max_tokens: of a text, longer ones lose their end; the model's context without. The baseline sees whole texts.
        held_out: share of the rows (of each label) that judge.
        groups: a key a row, such as an author or a template: what the probe must generalize over.
        seed: of split, permutations and bootstrap.   controls: how many label permutations.
    Raises: DataError for one class, too few rows of a class (on a side), labels that are not one a text or not finite, texts of
        fewer than two tokens; UnknownNameError for a method, option, pool, site or class; NumericsError for NaN features.
    Reference: shuffled labels after Hewitt and Liang 2019, arXiv:1909.03368. Model Surgery (arXiv:2407.08770) reports accuracy
        alone, on a random split, without either control.
    """
    member = probe[method]
    chosen_options = member.check_options(dict(options or {}))
    if controls < 0:
        raise InputError(f"probe.fit: controls is {controls}, expected 0 or more label permutations.")
    numeric = member.about["targets"] == "numbers"
    task = task_of(texts, labels, groups, numeric=numeric, positive=positive, held_out=held_out, seed=seed)
    rows = encode_texts(model, texts, max_tokens=max_tokens, chat=chat)
    read = features(model, rows, sites=sites, layers=layers, pool=pool, bos=bos, batch_tokens=batch_tokens, show=show)
    truth, held = task.truth[task.held], task.held
    strata = truth if task.classes else np.zeros(len(held), dtype=np.int64)
    judge = Judge(truth, len(task.classes), measure.resamples(strata, task.groups[held], seed=seed))
    words, strength = _words(task, texts, judge)
    places = progress(list(read), label="probes", show=show)
    found = [_one(read[place].numpy(), task, judge, member, chosen_options, controls, seed) for place in places]
    gains = np.array([_estimates(one.values - words, len(held)) for one in found])
    values = np.array([_estimates(one.values, len(held)) for one in found])
    notes = {
        "base_model": model.base_fingerprint(),
        "texts_cut": rows.cut,
        "groups": int(task.groups.max()) + 1,
        "groups_held_out": len(np.unique(task.groups[held])),
        "folds": len(task.inner),
        "words_inverse_regularization": strength,
    }
    if task.classes:
        notes["rows_by_class"] = {str(c): int((task.truth == i).sum()) for i, c in enumerate(task.classes)}
    chosen = {
        "sites": list(sites), "layers": None if layers is None else list(layers), "options": chosen_options, "pool": pool,
        "bos": bos, "chat": chat, "max_tokens": max_tokens, "held_out": held_out, "grouped": groups is not None,
        "controls": controls,
    }  # fmt: skip
    told = [[text, str(label), int(group)] for text, label, group in zip(texts, labels, task.groups, strict=True)]
    about = Provenance(
        method, model.fingerprint(), {"texts": text_sha256(told)}, chosen, seed, str(model.dtype), pool, read.tokens, notes
    )
    return ProbeSweep(
        places=tuple(At(*place) for place in read),
        probes=tuple(one.probe for one in found),
        metrics=judge.metrics,
        classes=task.classes,
        value=values[:, :, 0],
        low=values[:, :, 1],
        high=values[:, :, 2],
        chance=judge.chance(),
        shuffled=np.array([one.shuffled for one in found]),
        words=_estimates(words, len(held)),
        gain=gains,
        cross_validated=np.array([one.cross_validated for one in found]),
        calibration=np.array([one.calibration for one in found]),
        reliability=np.array([one.reliability for one in found]),
        held=held,
        n_train=len(task.train),
        provenance=about,
    )


def _one(
    x: Float[np.ndarray, "n d"], task: Task, judge: Judge, member: Member, options: dict[str, Any], controls: int, seed: int
) -> Found:
    """Fit at one place, and measure."""

    def trained(rows: np.ndarray, truth: np.ndarray) -> LinearProbe:
        return member.function(x[rows], truth, **options)

    truth, n_classes = task.truth[task.train], len(task.classes)
    found = trained(task.train, truth)
    decision = found.decision(x[task.held])
    plain = Judge.plain(judge.truth, n_classes)
    shuffled = np.empty((len(judge.metrics), controls))
    for k in range(controls):
        control = trained(task.train, np.random.default_rng([seed, k]).permutation(truth))
        shuffled[:, k] = plain(control.decision(x[task.held]), log_odds=found.log_odds)[:, 0]
    inner = []
    for seen, asked in task.inner:
        one = trained(task.train[seen], truth[seen]).decision(x[task.train[asked]])
        inner.append(Judge.plain(truth[asked], n_classes)(one, log_odds=found.log_odds)[0, 0])
    calibration, table = np.full(4, np.nan), np.empty((0, 3))
    if found.log_odds:
        p, right = confidence(decision, judge.truth)
        table = measure.reliability(p, right)
        calibration = np.array([measure.calibration_error(table), *measure.calibration_noise(p, seed=seed)[:3]])
    return Found(
        replace(found, classes=task.classes),
        judge(decision, log_odds=found.log_odds),
        shuffled,
        float(np.mean(inner)) if inner else float("nan"),
        calibration,
        table,
    )


def _words(task: Task, texts: Sequence[str], judge: Judge) -> tuple[Float64[np.ndarray, "metric resample"], float]:
    """The bag-of-words baseline on the same rows and resamples, and its inverse regularization."""

    def headline(decision: np.ndarray, truth: np.ndarray) -> float:
        return float(Judge.plain(truth, len(task.classes))(decision, log_odds=True)[0, 0])

    train, held = [str(texts[i]) for i in task.train], [str(texts[i]) for i in task.held]
    labels, classes = task.truth[task.train], bool(task.classes)
    decision, strength = bag_of_words(train, labels, task.inner, headline, held, classes=classes)
    return judge(decision, log_odds=True), strength


def _estimates(values: Float64[np.ndarray, "metric resample"], n: int) -> Float64[np.ndarray, "metric 3"]:
    """Value, low and high of every metric."""
    return np.array([measure.estimate(one, n)[:3] for one in values])
