"""Where the probability goes: the first-order prediction of what one step on a preference pair does at the token where it begins.

Both answers share their first tokens; where they first differ the model chooses between y+ and y-. h is the final hidden state
there, W the rows of the unembedding, p = softmax(W h). A step that prefers y+ moves h along W_{y+} - W_{y-} (the gradient of every
loss of logit_{y+} - logit_{y-}, DPO's too, is a multiple of it). Per unit of that step

    d logit_z / dt = <W_z, W_{y+} - W_{y-}>
    d ln p_z / dt  = d logit_z / dt - sum_v p_v d logit_v / dt
    d p_z / dt     = p_z d ln p_z / dt

For z = y+, d ln p_z / dt is |W_{y+}|^2 - <W_{y+}, W_{y-}> - sum_v p_v <W_v, W_{y+} - W_{y-}>: the two terms taken off can make it
negative, and the probability of the chosen token then falls although training prefers it. This is the part of the hidden state
alone: a step on W itself adds |h|^2 (delta_{z,y+} - delta_{z,y-}) to d logit_z / dt.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from markupsafe import Markup
from torch import Tensor

from workbench.core.errors import DataError, InputError, ModelError
from workbench.core.numerics import wide
from workbench.core.picture import table
from workbench.core.records import PreferencePairs, Provenance
from workbench.core.runtime import progress
from workbench.core.svg import clean, number, tag
from workbench.load.batches import Encoded, EncodedPair, collate, encode_pairs
from workbench.load.models import Model
from workbench.load.unembedding import unembedding
from workbench.score.alike import starts_alike
from workbench.score.states import Answers, answers
from workbench.trace.forward import check_predicted

if TYPE_CHECKING:
    import pandas as pd

_BLOCK = 8192  # rows of the unembedding turned to float32 at once
_SHOWN = 8  # pairs, and tokens of a pair, on the page
_BEHIND = {"final_logit_softcapping": None, "logit_scale": 1, "logits_scaling": 1}  # of a config, and what changes no logit
_LINEAR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest logit


@dataclass(frozen=True, eq=False)
class MassShift:
    """What one small step on each pair would do, per unit of the step along W_{y+} - W_{y-}; everything float64.

    ids: of the pairs.   chosen, rejected: [pair] the two tokens.   change: [pair] d ln p(y+)/dt = own - shared - drift.
    own: |W_{y+}|^2.   shared: <W_{y+}, W_{y-}>.   drift: sum_v p_v <W_v, W_{y+} - W_{y-}>.
    gain_ids, gain: [pair k] the tokens that gain the most probability, and d p/dt of each, largest first.
    mean: [d_vocab] d p/dt of every token, averaged over the pairs; it sums to 0.
    tokens: text of every token id that is named in one of these, or gains or loses most on average.
    """

    ids: tuple[str, ...]
    chosen: Int[np.ndarray, "pair"]
    rejected: Int[np.ndarray, "pair"]
    change: Float[np.ndarray, "pair"]
    own: Float[np.ndarray, "pair"]
    shared: Float[np.ndarray, "pair"]
    drift: Float[np.ndarray, "pair"]
    gain_ids: Int[np.ndarray, "pair k"]
    gain: Float[np.ndarray, "pair k"]
    mean: Float[np.ndarray, "d_vocab"]
    tokens: dict[int, str]
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        falls = int((self.change < 0).sum())
        notes = (f"{key}: {value}" for key, value in self.provenance.notes.items())
        return "\n".join([f"MassShift({len(self)} pairs; of {falls} the chosen token would lose probability)", *notes])

    def frame(self) -> "pd.DataFrame":
        """A line a pair, indexed by id: both tokens, change and its terms, and the tokens that gain with how much."""
        import pandas as pd

        columns = {name: getattr(self, name) for name in ("change", "own", "shared", "drift")}
        words = {side: [self.tokens[int(i)] for i in getattr(self, side)] for side in ("chosen", "rejected")}
        gained = {"gain_tokens": [[self.tokens[int(i)] for i in row] for row in self.gain_ids], "gain": self.gain.tolist()}
        return pd.DataFrame(words | columns | gained, index=pd.Index(self.ids, name="id"))

    def by_token(self) -> "pd.DataFrame":
        """Columns token and mean, a line a token id: those that gain and lose most on average over the pairs, gains first."""
        import pandas as pd

        order = _ends(self.mean, self.gain_ids.shape[1])
        rows = [{"id": i, "token": self.tokens[i], "mean": self.mean[i]} for i in order]
        return pd.DataFrame(rows).set_index("id")

    def _repr_html_(self) -> str:
        gains = self.by_token()
        average = table(
            ("token", "mean d p/dt"), [(_visible(t), number(v)) for t, v in zip(gains["token"], gains["mean"], strict=True)]
        )
        order = np.argsort(self.change, kind="stable")[:_SHOWN].tolist()
        rows = [(self.ids[i], *self._words(i), *(number(float(v[i])) for v in self._terms()), self._gained(i)) for i in order]
        heads = ("id", "chosen", "rejected", "d ln p(chosen)/dt", "own", "shared", "drift", "gains most")
        said = Markup("").join(tag("p", line) for line in repr(self).split("\n"))
        return str(said + tag("p", "On average over the pairs:") + average + tag("p", "Lowest change first:") + table(heads, rows))

    def _words(self, i: int) -> tuple[str, str]:
        return _visible(self.tokens[int(self.chosen[i])]), _visible(self.tokens[int(self.rejected[i])])

    def _terms(self) -> tuple[np.ndarray, ...]:
        return self.change, self.own, self.shared, self.drift

    def _gained(self, i: int) -> str:
        pairs = zip(self.gain_ids[i][:_SHOWN], self.gain[i][:_SHOWN], strict=True)
        return ", ".join(f"{_visible(self.tokens[int(t)])} {number(float(g))}" for t, g in pairs if g > 0)


@torch.no_grad()
def mass_shift(
    model: Model, pairs: PreferencePairs, *, k: int = 20, batch_size: int = 16, end: bool = True, show: bool = False
) -> MassShift:
    """What a step that prefers each pair's chosen answer does to every token's probability where the two answers first differ.

    See the module for the formula. The unembedding is read in blocks of rows, and probabilities are held for one batch of pairs.

    Args:
        k: tokens kept of each pair, all of a smaller vocabulary.   batch_size: pairs at a time.
        end: whether answers end with the end-of-text token, see `encode_pairs`.
    Returns: a record of the pairs in which a token differs. Those with equal answers are left out (and, of a tokenizer without
        an end-of-text token, those of which one answer begins the other), and the notes count them.
    Raises: InputError for a bad k or batch_size; DataError if no pair is left, if nothing stands before the token where two answers
        differ, or as `encode_pairs`; ModelError if the logits are not W h plus a bias (Gemma-2's softcap, Cohere's and Granite's
        scale), where the formula would not hold: asked of the config, and of one pair's logits.
    Reference: Razin et al. 2024, arXiv:2410.08847, the theory for answers of a single token.
    """
    weight = unembedding(model)
    if k < 1 or batch_size < 1:
        raise InputError(f"mass_shift: k is {k} and batch_size {batch_size}; both must be at least 1.")
    _check_config(model)
    k = min(k, len(weight))
    every = encode_pairs(model, pairs, end=end)
    coded = [pair for pair in every if _fork(pair) < min(len(pair.chosen.tokens), len(pair.rejected.tokens))]
    if not coded:
        raise DataError(
            f"mass_shift: {pairs.name}: in no pair does a token of one answer differ from the other's; none is preferred."
        )
    check_predicted([_until_fork(pair) for pair in coded])
    order = sorted(range(len(coded)), key=lambda i: -_fork(coded[i]))
    n, precise = len(coded), np.float64
    both, terms = np.empty((2, n), np.int64), np.empty((4, n), precise)
    gain_ids, gain, total = np.empty((n, k), np.int64), np.empty((n, k), precise), np.zeros(len(weight))
    for first in progress(range(0, n, batch_size), label="mass shift", show=show):
        group = order[first : first + batch_size]
        found = answers(model, collate([_until_fork(coded[i]) for i in group], device=model.device))
        if first == 0:
            _check_linear(model, weight, found)
        ends = torch.tensor([_ends_of(coded[i]) for i in group], device=model.device).T
        moved, values = _moves(weight, wide(found.logits).double().softmax(-1), ends)
        top = moved.topk(k, dim=-1)
        both[:, group], terms[:, group] = ends.cpu().numpy(), values.cpu().numpy()
        gain_ids[group], gain[group] = top.indices.cpu().numpy(), top.values.cpu().numpy()
        total += moved.sum(0).cpu().numpy()
    mean = total / n
    named = {*both.ravel().tolist(), *gain_ids.ravel().tolist(), *_ends(mean, k)}
    left = len(every) - n
    provenance = Provenance(
        method="mass_shift",
        model=model.fingerprint(),
        data={"pairs": pairs.fingerprint()},
        options={"k": k, "batch_size": batch_size, "end": end},
        dtype=str(model.dtype).removeprefix("torch."),
        notes={"left out": f"{left} of {len(every)} pairs, where no token differs"} if left else {},
    )
    tokens = {i: str(model.tokenizer.decode([i])) for i in sorted(named)}
    return MassShift(
        ids=tuple(pair.id for pair in coded),
        chosen=both[0],
        rejected=both[1],
        change=terms[0],
        own=terms[1],
        shared=terms[2],
        drift=terms[3],
        gain_ids=gain_ids,
        gain=gain,
        mean=mean,
        tokens=tokens,
        provenance=provenance,
    )


def _fork(pair: EncodedPair) -> int:
    """The position of the first token in which two rows differ, or the end of the shorter one."""
    return starts_alike(pair.chosen.tokens, pair.rejected.tokens)


def _ends_of(pair: EncodedPair) -> tuple[int, int]:
    at = _fork(pair)
    return pair.chosen.tokens[at], pair.rejected.tokens[at]


def _until_fork(pair: EncodedPair) -> Encoded:
    """What both rows share, and the chosen token as the only answer."""
    at = _fork(pair)
    return Encoded(pair.id, pair.chosen.tokens[: at + 1], at)


def _moves(
    weight: Float[Tensor, "d_vocab d"], p: Float[Tensor, "pair d_vocab"], ends: Int[Tensor, "side pair"]
) -> tuple[Float[Tensor, "pair d_vocab"], Float[Tensor, "term pair"]]:
    """d p/dt of every token, and change, own, shared, drift of the chosen one."""
    chosen, rejected = (wide(weight[side]) for side in ends)
    along = chosen - rejected
    blocks = [along @ wide(weight[first : first + _BLOCK]).T for first in range(0, len(weight), _BLOCK)]
    rises = torch.cat(blocks, dim=-1).double()
    drift = (p * rises).sum(-1)
    own, shared = chosen.double().square().sum(-1), (chosen.double() * rejected.double()).sum(-1)
    return p * (rises - drift[:, None]), torch.stack([own - shared - drift, own, shared, drift])


def _check_config(model: Model) -> None:
    """ModelError if the config says that something changes the logits behind the unembedding, however little it does to these."""
    config = model.hf.config.get_text_config()
    said = {name: getattr(config, name, None) for name in _BEHIND}
    found = ", ".join(f"{name} is {value}" for name, value in said.items() if value not in (None, _BEHIND[name]))
    if found:
        raise _not_linear(model, f"; its config says that {found}")


def _not_linear(model: Model, why: str = "") -> ModelError:
    return ModelError(
        f"mass_shift: the logits of {model.name} are not the unembedding times the final hidden state (a softcap or a scale "
        f"lies between), so the prediction would not hold for it{why}."
    )


def _check_linear(model: Model, weight: Float[Tensor, "d_vocab d"], found: Answers) -> None:
    """ModelError unless the model's logits at one position are W h, up to a bias and rounding."""
    module = model.hf.get_output_embeddings()
    bias = getattr(module, "bias", None)
    plain = torch.cat(
        [wide(weight[i : i + _BLOCK]) @ found.hidden[0].to(wide(weight[:1]).dtype) for i in range(0, len(weight), _BLOCK)]
    )
    plain = plain if bias is None else plain + wide(bias)
    said = wide(found.logits[0])
    if float((plain - said).abs().max()) > _LINEAR[found.logits.dtype] * float(said.abs().max()):
        raise _not_linear(model)


def _ends(mean: Float[np.ndarray, "d_vocab"], k: int) -> list[int]:
    """The ids with the k largest and the k smallest values, largest first; all of them where there are no more."""
    order = np.argsort(-mean, kind="stable")
    return order.tolist() if len(order) <= 2 * k else [*order[:k].tolist(), *order[-k:].tolist()]


def _visible(token: str) -> str:
    """A token with its white space made visible."""
    return clean(token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥"))
