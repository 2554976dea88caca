"""Can a linear probe still tell the right answer from false ones, from the hidden states of each layer?

Every question has one right answer and several false ones in its words ("... in Manama, Bahrain" / "... in Doha, Qatar"). The
model reads each; its residual stream behind a layer, pooled over the answer's tokens, is what the probe sees. The probe is fitted
on other questions, and judged on this one by how many of the false answers it puts below the right one:

    AUC_i = (1/m) sum_j [1 if f(right_i) > f(false_ij), 1/2 if equal, 0 otherwise],   f(h) = w h + b

0.5 is chance. Answers are compared within their question alone, so neither the question's topic nor how one fold's probe is scaled
against another's counts. What a probe finds may be style instead of knowledge: the floor is what it finds in a retrained model,
which has never seen the rows (`reference`), and what it finds where any answer, drawn at random, is called right (`shuffled`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from workbench.core.errors import DataError, InputError, MismatchError, unknown
from workbench.core.measurements import Measurement, Measurements
from workbench.core.numerics import permutation
from workbench.core.records import Example, Examples, Provenance
from workbench.core.runtime import progress
from workbench.core.statistics import Estimate, mean_estimate
from workbench.evaluate.answer_probe import first_answers, held_out, shuffled, within_auc
from workbench.evaluate.best_layer import best_layer, excess
from workbench.load.batches import encode
from workbench.load.models import Model
from workbench.trace.answer_states import all_or
from workbench.trace.features import features

if TYPE_CHECKING:
    import pandas as pd

RIGHT = ("paraphrase", "response")
FOLDS = 5
SHUFFLES = 5


@dataclass(frozen=True, eq=False)
class ProbeRecovery:
    """How well held-out answers are told apart, question by question.

    ids: of the questions.   layers: numbers from 0.   right: which answer stood for the right one.
    auc: [question layer], float64; 0.5 is chance.   shuffled: the same of probes for which a random answer was the right one.
    reference: of a retrained model, or None.
    """

    ids: tuple[str, ...]
    layers: tuple[int, ...]
    right: str
    auc: Float64[np.ndarray, "question layer"]
    shuffled: Float64[np.ndarray, "control question layer"]
    reference: "ProbeRecovery | None"
    seed: int
    provenance: Provenance

    @property
    def best(self) -> Estimate:
        """Mean over the questions at the layer where it is largest, see `best_layer`; no probe is refitted for its interval."""
        return best_layer(self.auc, seed=self.seed)

    @property
    def excess(self) -> Estimate | None:
        """`best` less the reference's, questions drawn in pairs; None without a reference."""
        return None if self.reference is None else excess(self.auc, self.reference.auc, seed=self.seed)

    def frame(self) -> "pd.DataFrame":
        """One line a question and layer: id, layer, auc."""
        import pandas as pd

        n, layers = self.auc.shape
        return pd.DataFrame({"id": np.repeat(self.ids, layers), "layer": list(self.layers) * n, "auc": self.auc.ravel()})

    def by_layer(self) -> "pd.DataFrame":
        """One line a layer: auc with its interval; mean, least and largest of the shuffled probes; the reference's."""
        import pandas as pd

        lines = []
        for j, layer in enumerate(self.layers):
            found, control = mean_estimate(self.auc[:, j], seed=self.seed), self.shuffled[:, :, j].mean(1)
            line: dict[str, float] = {"layer": layer, "auc": found.value, "auc_low": found.low, "auc_high": found.high}
            line |= {"shuffled": control.mean(), "shuffled_low": control.min(), "shuffled_high": control.max()}
            lines.append(line if self.reference is None else line | {"reference": float(self.reference.auc[:, j].mean())})
        return pd.DataFrame(lines)

    def measurements(self, split: str = "forget") -> Measurements:
        """probe_auc of the best layer, probe_auc_shuffled, chosen alike, and with a reference probe_auc_excess."""
        kept = {"unit": "auc", "better": "lower"}
        note = f"best of {len(self.layers)} layers, {self.layers[int(self.auc.mean(0).argmax())]}; chance is 0.5"
        rows = [Measurement.of("probe_auc", split, self.best, **kept, note=note)]
        control = self.shuffled.mean(1).max(1)
        spread = Estimate(float(control.mean()), float(control.min()), float(control.max()), self.best.n)
        note = f"control: range over {len(control)} probes for which a random answer was right, each at its best layer"
        rows.append(Measurement.of("probe_auc_shuffled", split, spread, unit="auc", note=note))
        over = self.excess
        if self.reference is not None and over is not None:
            note = f"over the retrained model's best layer, {self.reference.best.value:.4g}; paired; 0 is the goal"
            rows.append(Measurement.of("probe_auc_excess", split, over, **kept, note=note))
        return Measurements(rows)

    def __repr__(self) -> str:
        found, over = self.best, self.excess
        more = "" if over is None else f"; {over.value:+.3f} over the reference"
        return f"ProbeRecovery(AUC {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] over {found.n} questions{more})"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.by_layer().to_html(index=False, float_format="%.4g")


def probe_recovery(
    model: Model,
    examples: Examples,
    *,
    reference: ProbeRecovery | None = None,
    right: str = "paraphrase",
    layers: Sequence[int] | None = None,
    pool: str = "mean",
    C: float = 0.1,
    folds: int = FOLDS,
    shuffles: int = SHUFFLES,
    batch_tokens: int = 4096,
    seed: int = 0,
    show: bool = False,
) -> ProbeRecovery:
    """How well a probe of every layer tells right from false answers of questions it was not fitted on.

    Args:
        model: as it stands, with the edits that are applied to it.
        examples: forget rows with false answers (`perturbed`).
        reference: what this function found for a retrained model on the same questions and layers.
        right: "paraphrase", which TOFU's false answers are variants of, so that wording gives nothing away; or "response", the
            answer that was trained on, whose wording differs from theirs: the reference says how far that alone goes.
        layers: numbers from 0, None for all.
        pool: of the states over the answer's tokens: "mean", "last" or "max".
        C: inverse strength of the probe's L2 regularization, on features of variance 1.
        folds: groups of questions; each is judged by a probe fitted on the others.
        shuffles: control probes.
        batch_tokens: largest padded batch, in tokens.   seed: of folds, shuffles and bootstrap.
    Raises: DataError for rows without false answers or a right one, or fewer questions than 2 folds; InputError for a bad option or
        a model in training mode; MismatchError for a reference on other questions; NumericsError if a probe does not converge.
    Reference: Hewitt & Liang 2019, arXiv:1909.03368, for the control; that probes find knowledge after unlearning, Patil et al.
        2024, arXiv:2309.17410.
    """
    if right not in RIGHT:
        raise unknown("right answer", right, RIGHT)
    if folds < 2 or shuffles < 1 or not C > 0:
        raise InputError(f"probe_recovery: folds {folds}, shuffles {shuffles}, C {C}; expected at least 2, at least 1, above 0.")
    asked = all_or(model, layers)
    answers = [_answers(example, right) for example in examples]
    if len(answers) < 2 * folds:
        raise DataError(f"probe_recovery: {len(answers)} questions in {folds} folds; expected at least {2 * folds}. Lower folds.")
    _check_reference(reference, tuple(examples.ids), asked, right)
    rows = [
        encode(model, example.prompt, text, id=f"{example.id}, answer {j}")
        for example, texts in zip(examples, answers, strict=True)
        for j, text in enumerate(texts)
    ]
    states = features(model, rows, sites=["resid_post"], layers=asked, pool=pool, batch_tokens=batch_tokens, show=show)
    question = np.repeat(np.arange(len(answers)), [len(texts) for texts in answers])
    fold = np.empty(len(answers), dtype=np.int64)
    fold[permutation(len(answers), seed)] = np.arange(len(answers)) % folds
    truths = [first_answers(question), *shuffled(question, count=shuffles, seed=seed)]
    found = np.empty((len(truths), len(answers), len(asked)))
    for j, layer in enumerate(progress(asked, label="probe_recovery", show=show)):
        x = states["resid_post", layer].numpy().astype(np.float64)
        if not np.ptp(x, axis=0).any():
            raise DataError(
                f"probe_recovery: at layer {layer} all {len(x)} answers have the same state, so none can be told apart."
            )
        for t, truth in enumerate(truths):
            found[t, :, j] = within_auc(held_out(x, truth, fold[question], C=C), truth, question)
    return ProbeRecovery(
        ids=tuple(examples.ids),
        layers=asked,
        right=right,
        auc=found[0],
        shuffled=found[1:],
        reference=reference,
        seed=seed,
        provenance=Provenance(
            "probe_recovery",
            model.fingerprint(),
            {"examples": examples.fingerprint()},
            {"right": right, "layers": list(asked), "pool": pool, "C": C, "folds": folds, "shuffles": shuffles},
            seed=seed,
            dtype=str(model.dtype).removeprefix("torch."),
            tokens=states.tokens,
        ),
    )


def _answers(example: Example, right: str) -> list[str]:
    """The right answer and then the false ones."""
    true = example.paraphrase if right == "paraphrase" else example.response
    if true is None or not example.perturbed:
        raise DataError(
            f"row {example.id!r}: it has no {'false answers (perturbed)' if true is not None else right}, which the probe needs. "
            "Take rows that have both, such as TOFU's *_perturbed files."
        )
    return [true, *example.perturbed]


def _check_reference(reference: ProbeRecovery | None, ids: tuple[str, ...], layers: tuple[int, ...], right: str) -> None:
    if reference is not None and (reference.ids, reference.layers, reference.right) != (ids, layers, right):
        raise MismatchError(
            f"probe_recovery: the reference has {len(reference.ids)} questions, layers {list(reference.layers)} and right answers "
            f"{reference.right!r}, the model {len(ids)}, {list(layers)} and {right!r}; they must be the same, in one order."
        )
