"""CHES, the centered hidden embedding similarity of a preference pair, and the numbers it is compared with.

    S+ = sum over the positions that predict a token of the chosen answer of the final hidden state; S- of the rejected one
    CHES                     <S+, S-> - |S+|^2  =  S+ . (S- - S+)
    length-normalized        m+ . (m- - m+)       m = S / number of answer tokens

A higher score: training on the pair lowers the probability of the chosen answer more (likelihood displacement). The form with the
difference in it is the same number and keeps its digits where <S+, S-> and |S+|^2 are large and close, as they are for most pairs.

The positions run from the last prompt token to the one before the answer's last token, which is the end-of-text token where the
tokenizer has one. "Centered" means the term -|S+|^2; no mean over data is taken off. The authors' `ches.py` is this score for rows
padded on the left that end in end-of-text; padded on the right it also adds up the pads, and divides by the padded length. Their
experiments' code reads prompt and answer without end-of-text and keeps the last position: the same sum.

The two answers share a prompt, and the prompt is read twice all the same: a cache of its keys and values would change the shapes,
and with them the rounding, of what the chosen and the rejected answer see, and saves nothing where prompts are short.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import InputError
from workbench.core.records import PreferencePairs, Provenance
from workbench.core.registry import example_score
from workbench.core.runtime import progress
from workbench.load.batches import EncodedPair, collate, encode_pairs
from workbench.load.models import Model
from workbench.score.alike import edit_distance, starts_alike
from workbench.score.pair_scores import PairScores
from workbench.score.states import answers

HIGHER = "training on the pair lowers ln p(chosen) more"


COLUMNS = (
    "ches_sum",
    "ches_mean",
    "logprob_chosen",
    "logprob_rejected",
    "last_hidden",
    "edit_distance",
    "length",
    "length_chosen",
    "length_rejected",
    "starts_alike",
)


@example_score(rows="pairs")
@torch.no_grad()
def ches(
    model: Model,
    pairs: PreferencePairs,
    *,
    length_normalize: bool = True,
    batch_size: int = 16,
    side: str = "right",
    end: bool = True,
    show: bool = False,
) -> PairScores:
    """CHES of every preference pair, and eight other numbers about it, from one forward pass over both answers.

    m+ . (m- - m+), where m is the mean of the final hidden states (after the final norm) that predict the answer's tokens; see the
    module. Sums are float32 (float64 of a float64 model), the products float64, whatever the model's dtype.

    Args:
        length_normalize: False gives S+ . (S- - S+), which grows with the answers' lengths.
        batch_size: pairs at a time, so twice as many rows; pairs of similar length go together.
        side: of the padding, "right" or "left"; changes nothing beyond rounding.
        end: whether answers end with the end-of-text token, where the tokenizer has one. Keep it for answers of a single token:
            without it both are predicted from one hidden state, S+ = S-, and CHES is 0 by construction.
    Returns: values by pair, and as columns
        ches_sum, ches_mean: CHES without and with normalization.
        logprob_chosen, logprob_rejected: ln p(answer | prompt), nats, end-of-text included with `end`.
        last_hidden: <h+, h->, of the hidden states that predict the last token of each answer. With `end` that is the state at
            the answer's last own token, as in the authors' experiments; without, the one before it.
        edit_distance: minus the Levenshtein distance of the answers' tokens over the longer one's length: 0 if equal, -1 if
            nothing is shared. Higher is more alike, as the authors store it. End-of-text is not counted.
        length, length_chosen, length_rejected: answer tokens of both, and of each, that are predicted.
        starts_alike: how many first tokens the answers share, end-of-text not counted.
        A pair whose answers are the same tokens, or differ in the last token alone, scores exactly 0, for the same hidden states
        predict both; the notes count such pairs.
    Raises: InputError for a bad option; DataError naming the pairs that do not fit the context or have an empty answer;
        NumericsError if a hidden state or log-probability is not finite.
    Reference: Razin et al. 2024, arXiv:2410.08847, Definitions 2 and 3.
    """
    if batch_size < 1:
        raise InputError(f"ches: batch_size is {batch_size}, expected at least 1.")
    coded = encode_pairs(model, pairs, end=end)
    order = sorted(range(len(coded)), key=lambda i: -max(len(coded[i].chosen.tokens), len(coded[i].rejected.tokens)))
    groups = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    table = np.empty((len(coded), len(COLUMNS)))
    for group in progress(groups, label="ches", show=show):
        table[group] = _read(model, [coded[i] for i in group], side=side, end=end)
    columns = {name: table[:, j].copy() for j, name in enumerate(COLUMNS)}
    provenance = Provenance(
        method="ches",
        model=model.fingerprint(),
        data={"pairs": pairs.fingerprint()},
        options={"length_normalize": length_normalize, "batch_size": batch_size, "side": side, "end": end},
        dtype=str(model.dtype).removeprefix("torch."),
        reduction="mean" if length_normalize else "sum",
        tokens=sum(len(row.tokens) for pair in coded for row in (pair.chosen, pair.rejected)),
        notes=_notes(coded, can_end=model.tokenizer.eos_token_id is not None),
    )
    values = columns["ches_mean" if length_normalize else "ches_sum"].copy()
    return PairScores("ches", tuple(pair.id for pair in coded), values, HIGHER, provenance, columns=columns, pairs=pairs)


def _read(model: Model, coded: list[EncodedPair], *, side: str, end: bool) -> Float[np.ndarray, "pair column"]:
    """One padded batch of chosen and rejected answers; the columns are COLUMNS."""
    rows = [pair.chosen for pair in coded] + [pair.rejected for pair in coded]
    found = answers(model, collate(rows, device=model.device, side=side))
    n = len(coded)
    sums, last, logprobs = (value.double().cpu() for value in (found.hidden_sums(), found.last_hidden(), found.logprobs()))
    same = torch.tensor([pair.chosen.tokens == pair.rejected.tokens for pair in coded])
    shared = torch.tensor([_shares_states(pair) for pair in coded])
    for value, equal in ((sums, shared), (last, shared), (logprobs, same)):  # rows of a batch may differ in their last bit
        value[n:][equal] = value[:n][equal]
    means = sums / torch.tensor(found.lengths)[:, None]
    measured = (_centered(sums), _centered(means), logprobs[:n], logprobs[n:], (last[:n] * last[n:]).sum(-1))
    ended = end and model.tokenizer.eos_token_id is not None
    return np.column_stack([*(value.numpy() for value in measured), np.array([_tokens_alike(pair, ended) for pair in coded])])


def _centered(states: Float[Tensor, "row d_hidden"]) -> Float[Tensor, "pair"]:
    """S+ . (S- - S+) of each pair; the first half of the rows are the chosen answers."""
    chosen, rejected = states.chunk(2)
    return (chosen * (rejected - chosen)).sum(-1)


def _tokens_alike(pair: EncodedPair, ended: bool) -> tuple[float, ...]:
    """edit_distance, length, length_chosen, length_rejected, starts_alike. ended: each answer's last token is end-of-text."""
    a, b = (row.tokens[row.start :] for row in (pair.chosen, pair.rejected))
    own_a, own_b = (tokens[:-1] if ended else tokens for tokens in (a, b))
    alike = 0.0 - edit_distance(own_a, own_b) / max(len(own_a), len(own_b))
    return alike, float(len(a) + len(b)), float(len(a)), float(len(b)), float(starts_alike(own_a, own_b))


def _shares_states(pair: EncodedPair) -> bool:
    """Whether the same hidden states predict both answers: all tokens but the last are equal."""
    a, b = pair.chosen, pair.rejected
    return a.start == b.start and a.tokens[:-1] == b.tokens[:-1]


def _notes(coded: list[EncodedPair], *, can_end: bool) -> dict[str, str]:
    """Which pairs score 0 whatever the model. can_end: the tokenizer has an end-of-text token, which would tell answers apart."""
    same = [pair.id for pair in coded if pair.chosen.tokens == pair.rejected.tokens]
    shared = [pair.id for pair in coded if _shares_states(pair) and pair.chosen.tokens != pair.rejected.tokens]
    notes: dict[str, str] = {}
    if same:
        notes["identical"] = f"{_said(same, len(coded))} identical: score 0 ({_listed(same)})"
    if shared:
        single = all(len(pair.chosen.tokens) == pair.chosen.start + 1 for pair in coded if pair.id in shared)
        states = "one shared hidden state" if single else "shared hidden states"
        notes["shared"] = f"{_said(shared, len(coded))} predicted from {states}: CHES is 0 by construction ({_listed(shared)})" + (
            "; keep end=True" if can_end else ""
        )
    return notes


def _said(ids: list[str], total: int) -> str:
    return f"{len(ids)} of {total} pairs {'is' if len(ids) == 1 else 'are'}"


def _listed(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (" ..." if len(ids) > 5 else "")
