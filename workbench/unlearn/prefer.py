"""Tune a model to preference pairs on the one training loop: pairs and an objective in, a Delta with its history and audit out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.mask import Mask
from workbench.core.numerics import Forward
from workbench.core.records import PreferencePairs, Provenance
from workbench.core.registry import preference
from workbench.load.batches import EncodedPair, collate, encode_pairs
from workbench.load.models import Model
from workbench.trace.forward import check_predicted, forward, split
from workbench.train.lora import Lora
from workbench.unlearn.cache import answer_logprob_rows, reference_pass
from workbench.unlearn.training import Training, Unlearned, read_lora

PairObjective = Callable[[Forward, Forward, Forward | None, Forward | None], Float[Tensor, "batch"]]


class Preferences:
    """Preference pairs, each with one loss from its two answers, which are forwarded together.

    What the passes show beside the loss is kept until `observed` asks for it.

    Args:
        references: log-probability under the reference of every token of each pair's chosen answer and of its rejected one; None if
            the objective needs none.
    """

    def __init__(
        self,
        model: Model,
        pairs: Sequence[EncodedPair],
        *,
        objective: PairObjective,
        references: Sequence[tuple[Float[Tensor, "_"], Float[Tensor, "_"]]] | None = None,
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.objective = objective
        self.references = references
        self._seen: list[Float[Tensor, "4"]] = []
        self._pairs_seen = 0

    def __len__(self) -> int:
        return len(self.pairs)

    def names(self, chosen: Sequence[int], epoch: int) -> list[str]:
        """Ids of the chosen pairs."""
        del epoch
        return [self.pairs[i].id for i in chosen]

    def tokens(self, chosen: Sequence[int], epoch: int) -> int:
        """Tokens of both answers, with the prompt, of the chosen pairs."""
        del epoch
        return sum(len(row.tokens) for i in chosen for row in (self.pairs[i].chosen, self.pairs[i].rejected))

    def losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """Loss of each chosen pair, from one forward pass over preferred and rejected answers; the same in every epoch."""
        del epoch
        rows = [self.pairs[i].chosen for i in chosen] + [self.pairs[i].rejected for i in chosen]
        passed = forward(self.model, collate(rows, device=self.model.device))
        better, worse = split(passed, len(chosen))
        if self.references is None:
            self._see(better, worse, None, None)
            return self.objective(better, worse, None, None)
        kept = [self.references[i][0] for i in chosen] + [self.references[i][1] for i in chosen]
        before = split(reference_pass(kept, passed), len(chosen))
        self._see(better, worse, *before)
        return self.objective(better, worse, *before)

    @torch.no_grad()
    def _see(self, better: Forward, worse: Forward, *before: Forward | None) -> None:
        chosen, rejected = (side.logprob.double().sum(-1) for side in (better, worse))
        gains = [
            now if was is None else now - was.logprob.double().sum(-1) for now, was in zip((chosen, rejected), before, strict=True)
        ]
        margin = gains[0] - gains[1]
        self._seen.append(torch.stack([chosen.sum(), rejected.sum(), margin.sum(), (margin > 0).double().sum()]))
        self._pairs_seen += len(chosen)

    def observed(self) -> dict[str, float]:
        """Means over the pairs forwarded since the last call, taken from the passes of their losses.

        logp_chosen, logp_rejected: ln pi(answer | prompt), the sum over its tokens, in nats.   margin: h, see `preference`, or
        ln pi(chosen) - ln pi(rejected) where the objective needs no reference; nats.   accuracy: share of the pairs with
        margin > 0; with a reference h is 0 but for rounding before the first step, so the first accuracy says nothing.
        """
        if not self._seen:
            return {}
        means = (torch.stack(self._seen).sum(0) / self._pairs_seen).tolist()
        self._seen, self._pairs_seen = [], 0
        return dict(zip(("logp_chosen", "logp_rejected", "margin", "accuracy"), means, strict=True))


def pair_logprob_rows(model: Model, pairs: Sequence[EncodedPair]) -> list[tuple[Float[Tensor, "_"], Float[Tensor, "_"]]]:
    """Log-probability of every answer token of each pair under `model`, chosen and rejected, in nats."""
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    found = answer_logprob_rows(model, rows)
    return list(zip(found[::2], found[1::2], strict=True))


def pair_logprobs(model: Model, pairs: Sequence[EncodedPair]) -> Float[Tensor, "pair 2"]:
    """ln pi(chosen | prompt) and ln pi(rejected | prompt) of each pair, sums over the answer's tokens, in nats (float64, CPU)."""
    return torch.tensor(
        [[float(side.double().sum()) for side in pair] for pair in pair_logprob_rows(model, pairs)], dtype=torch.float64
    )


def prefer(
    model: Model,
    pairs: PreferencePairs,
    *,
    objective: str = "dpo",
    options: Mapping[str, Any] | None = None,
    mask: Mask | None = None,
    lora: Lora | Mapping[str, Any] | None = None,
    epochs: int = 1,
    batch_size: int = 16,
    micro_batch: int | None = None,
    lr: float = 1e-4,
    schedule: str = "linear",
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    sharpness: float = 0.0,
    seed: int = 0,
    end: bool = True,
    show: bool = False,
) -> Unlearned:
    """Tune to prefer each pair's chosen answer to its rejected one; the model is left as it was, the result is a Delta.

    The reference is the model before the first step. Its log-probabilities are computed once, before training, so one model is in
    memory and a step has one forward pass.

    Args:
        objective: a registered preference objective: dpo, ipo, dpo_sft.
        options: the objective's own options, such as {"beta": 0.1}.
        mask: only these weights can move; the others keep their bits.   lora: train low-rank adapters in place of the weights.
        lr: peak rate of AdamW. The default suits small models such as `data/organism/full`; models of billions of weights are
            tuned with 1e-7 to 1e-5.
        end: whether answers end with the end-of-text token. Scores of the same pairs must have the same; see `score.ches`.
        lora, sharpness, epochs, batch_size, micro_batch, schedule, warmup, weight_decay, clip_norm, seed: see `train.fit`; an
            example is a pair.
    Returns: the Delta, its audit, and a history whose lines also have logp_chosen, logp_rejected, margin and accuracy of the step's
        pairs before the step, see `Preferences.observed`.
    Raises: UnknownNameError for the objective or an option; TooLongError naming every pair that does not fit the context; DataError
        for an empty answer, or one that nothing predicts; InputError for mask and lora together; MismatchError for another model's
        mask; TrainingStopped, a NumericsError, if a loss is not finite.
    """
    member = preference[objective]
    given = member.check_options(dict(options or {}))
    training = Training(
        epochs=epochs,
        batch_size=batch_size,
        micro_batch=micro_batch,
        lr=lr,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        sharpness=sharpness,
        lora=read_lora(lora),
        mask=mask,
        seed=seed,
        show=show,
    )
    coded = encode_pairs(model, pairs, end=end)
    check_predicted([side for pair in coded for side in (pair.chosen, pair.rejected)])
    task = Preferences(
        model,
        coded,
        objective=lambda *passes: member.function(*passes, **given),
        references=pair_logprob_rows(model, coded) if member.about["needs_reference"] else None,
    )
    about = Provenance(
        member.name,
        model.fingerprint(),
        {"pairs": pairs.fingerprint()},
        {"objective": member.options | given, "end": end} | training.recorded(),
        seed,
        str(model.dtype),
        "mean over pairs",
    )
    trained = training.fit(model, task, about)
    return Unlearned(trained.delta, trained.history, trained.audit, trained.delta.by_layer(model))
