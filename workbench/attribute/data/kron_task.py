"""What kronfluence asks of a task, for answers after prompts: the rows with what draws their labels, and two losses."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from workbench.core.numerics import answer_length, answer_logits, generator
from workbench.core.store import text_sha256
from workbench.load.batches import Batch, Encoded, collate
from workbench.load.models import Model
from workbench.trace.forward import logits


class Drawn:
    """Rows as tokens, each answer token with a number from [0, 1) that will pick its label from the model's distribution.

    The numbers depend on the seed, on which of the `draws` of a row this is, and on the row's tokens, not on its place.
    """

    def __init__(self, rows: Sequence[Encoded], seed: int, draws: int = 1) -> None:
        self.rows = [row for _ in range(draws) for row in rows]
        self.draws = [_numbers(row, seed, k) for k in range(draws) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Encoded, Float[Tensor, "answer_token"]]:
        return self.rows[index], self.draws[index]

    @staticmethod
    def batch(items: Sequence[tuple[Encoded, Tensor]]) -> dict[str, Tensor]:
        """One padded batch; `draws` are those of all answer tokens, row after row."""
        return {**collate([row for row, _ in items])._asdict(), "draws": torch.cat([draws for _, draws in items])}


def _numbers(row: Encoded, seed: int, draw: int) -> Float[Tensor, "answer_token"]:
    source = generator(int(text_sha256([seed, draw, row.tokens, row.start])[:15], 16))
    return torch.rand(len(row.tokens) - row.start, generator=source, dtype=torch.float64)


class Answers(NamedTuple):
    """logprob [answer_token d_vocab] of the answer tokens of a batch, row after row; answer [batch pos], where they stand."""

    logprob: Float[Tensor, "answer_token d_vocab"]
    answer: Bool[Tensor, "batch pos"]


class KronTask:
    """What kronfluence asks of a task (its `Task`, by shape), for answers after prompts. It passes batch and model by keyword."""

    enable_post_process_per_sample_gradient = False

    def __init__(self, copied: Model, tracked: Mapping[str, nn.Module]) -> None:
        self.copied, self.tracked = copied, tracked

    def get_influence_tracked_modules(self) -> list[str]:
        """Paths of the linear maps whose gradients count."""
        return list(self.tracked)

    def get_attention_mask(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[batch pos], true on real tokens: padding is no part of the mean over tokens."""
        return batch["attention"]

    def compute_train_loss(self, batch: Mapping[str, Tensor], model: nn.Module, sample: bool = False) -> Tensor:
        """Sum over rows of the mean NLL of the answer; with drawn labels of sum NLL / sqrt(T)."""
        del model  # the copy, with its modules wrapped in place
        found = self._answers(batch)
        target = batch["tokens"][found.answer]
        power = 1.0
        if sample:
            target, power = labels(found.logprob.detach(), batch["draws"]), 0.5
        length = answer_length(found.answer)
        weight = (length.double() ** -power).repeat_interleave(length).to(found.logprob.dtype)
        return -(weight * found.logprob.gather(-1, target[:, None]).squeeze(-1)).sum()

    def compute_measurement(self, batch: Mapping[str, Tensor], model: nn.Module) -> Tensor:
        """Sum over queries of the mean NLL of the answer."""
        return self.compute_train_loss(batch, model)

    def _answers(self, batch: Mapping[str, Tensor]) -> Answers:
        padded = Batch(*(batch[name] for name in Batch._fields))
        return Answers(answer_logits(logits(self.copied, padded), padded.answer).log_softmax(-1), padded.answer)


def labels(logprob: Float[Tensor, "token d_vocab"], draws: Float[Tensor, "token"]) -> Int[Tensor, "token"]:
    """The label at which each token's cumulative probability passes its number from [0, 1): a draw from the model."""
    cumulative = logprob.double().exp().cumsum(-1)
    found = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)
    return found.squeeze(-1).clamp_max(logprob.shape[-1] - 1)
