"""Which rows did a change make a model forget? Every row before and after, with a p-value, and the false discoveries held down."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from workbench.core.delta import Delta, applied
from workbench.core.discovery import benjamini_hochberg, conformal_p, sign_flip_p
from workbench.core.errors import DataError, MismatchError
from workbench.core.numerics import wide
from workbench.core.records import Examples, Provenance
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.unlearn.cache import answer_logprob_rows

if TYPE_CHECKING:
    import pandas as pd


class Changed(NamedTuple):
    """NLLs of rows before and after a change. before, after: [row] mean per answer token, in nats, float64.

    tokens: of each row, ln p before minus ln p after of every answer token, [token] in nats; its mean is the row's change.
    """

    ids: list[str]
    before: Float[np.ndarray, "row"]
    after: Float[np.ndarray, "row"]
    tokens: list[Float[np.ndarray, "_"]]

    @property
    def change(self) -> Float[np.ndarray, "row"]:
        """Rise of the mean NLL of each row, in nats per token; above 0 is forgetting."""
        return self.after - self.before


def difference(before: Model, after: Model | Delta) -> Delta:
    """What to add to `before` so that it becomes `after`; a Delta comes back as it is.

    Raises: MismatchError naming the first difference that no change of weights can make up for (architecture, tokenizer,
        parameters and shapes, dtype, settings), or if a Delta belongs to another model.
    """
    if isinstance(after, Delta):
        if after.provenance.model not in (before.fingerprint(), before.base_fingerprint()):
            raise MismatchError(
                f"diagnose: AFTER is a Delta of model {after.provenance.model[:12]}, but BEFORE ({before.name}) is "
                f"{before.fingerprint()[:12]}. Give the model that the Delta was computed on."
            )
        return after
    _check_alike(before, after)
    theirs = dict(after.hf.named_parameters())
    differences = {
        name: (wide(theirs[name].detach().cpu()) - wide(mine.detach().cpu())).float() for name, mine in before.hf.named_parameters()
    }
    about = Provenance("difference of two models", before.fingerprint(), notes={"after": after.fingerprint()})
    return Delta.of(differences, about)


def _check_alike(before: Model, after: Model) -> None:
    kinds = [type(model.hf).__name__ for model in (before, after)]
    if kinds[0] != kinds[1]:
        raise MismatchError(f"diagnose: BEFORE is a {kinds[0]}, AFTER a {kinds[1]}; a pair has one architecture.")
    if before.d_vocab != after.d_vocab:
        raise MismatchError(f"diagnose: BEFORE has a vocabulary of {before.d_vocab} tokens, AFTER one of {after.d_vocab}.")
    mine, theirs = before.shapes(), after.shapes()
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        if mine.get(name) != theirs.get(name):
            raise MismatchError(
                f"diagnose: {name} is {mine.get(name) or 'absent'} in BEFORE and {theirs.get(name) or 'absent'} in AFTER. The "
                "two must be one model before and after it was trained or edited."
            )
    if before.dtype != after.dtype:
        raise MismatchError(f"diagnose: BEFORE is {before.dtype}, AFTER {after.dtype}; load both in one dtype.")
    if before.text_key() != after.text_key():
        raise MismatchError("diagnose: BEFORE and AFTER have different tokenizers, so their answers are not the same tokens.")
    settings = [m.settings() for m in (before, after)]
    for key in sorted({*settings[0], *settings[1]}):
        if settings[0].get(key) != settings[1].get(key):
            raise MismatchError(
                f"diagnose: the setting {key} is {settings[0].get(key)!r} in BEFORE and {settings[1].get(key)!r} in AFTER; no "
                "change of weights stands for that."
            )


def check_control(control: Examples | None, sets: Mapping[str, Examples]) -> None:
    """DataError naming the shared rows, if a (prompt, response) of `control` stands in one of `sets`, by the words for it."""
    if control is None:
        return
    kept = {(row.prompt, row.response) for row in control}
    for what, rows in sets.items():
        shared = [row.id for row in rows if (row.prompt, row.response) in kept]
        if shared:
            raise DataError(
                f"diagnose: control ({control.name}) and {what} ({rows.name}) share {len(shared)} rows: {', '.join(shared[:5])}"
                f"{' ...' if len(shared) > 5 else ''}. Control rows are those that nothing happened to; take these out of control."
            )


def token_logprobs(model: Model, rows: Examples) -> list[Float[np.ndarray, "_"]]:
    """ln p of every answer token of each row, in nats, float64."""
    found: list[Tensor] = answer_logprob_rows(model, encode_all(model, rows))
    return [row.double().cpu().numpy() for row in found]


def compare(model: Model, delta: Delta, rows: Examples) -> Changed:
    """Every row under the model as it is and with `delta` applied; one forward pass each."""
    before = token_logprobs(model, rows)
    with applied(model, delta):
        after = token_logprobs(model, rows)
    return Changed(
        rows.ids,
        np.array([-row.mean() for row in before]),
        np.array([-row.mean() for row in after]),
        [b - a for b, a in zip(before, after, strict=True)],
    )


def discovered(
    changed: Changed, control: Changed | None, *, level: float = 0.05, seed: int = 0, asked: Sequence[bool] | None = None
) -> "pd.DataFrame":
    """One line a row: before, after, change, and whether it was forgotten or improved.

    With control rows the p-value is conformal: the row is compared with rows to which, somebody says, nothing happened; it is valid
    if they are exchangeable with the rows that were not affected either, so they should be of the same kind. Without, the signs of
    the changes of the row's own tokens are flipped; that takes tokens for independent, which they are not, and "nothing happened"
    for no change at all, so that a drift of the whole model counts as forgetting of every row. A row whose NLL did not rise has
    p = 1, which only makes the test stricter. The discoveries are Benjamini and Hochberg's at `level`, forgotten and improved rows
    each on their own.

    Args: asked: whether the row's prompt was trained on; all False without.
    Returns: columns before, after, change (nats per answer token), p, q (adjusted), forgotten, p_improved, q_improved, improved,
        tokens, asked; indexed by id, in the order of the rows.
    """
    import pandas as pd

    columns: dict[str, object] = {"before": changed.before, "after": changed.after, "change": changed.change}
    for word, sign, ending in (("forgotten", 1.0, ""), ("improved", -1.0, "_improved")):
        change = sign * changed.change
        if control is None:
            p = np.array([sign_flip_p(sign * row, seed=seed) for row in changed.tokens])
        else:
            p = conformal_p(change, sign * control.change)
        p = np.where(change > 0, p, 1.0)
        found = benjamini_hochberg(p, level=level)
        columns |= {f"p{ending}": p, f"q{ending}": found.adjusted, word: found.found}
    columns |= {"tokens": [len(row) for row in changed.tokens], "asked": list(asked or [False] * len(changed.ids))}
    return pd.DataFrame(columns, index=pd.Index(changed.ids, name="id"))
