"""What a forward pass says about each answer token, from float32 logits, in chunks: the columns of a token table.

    logprob   ln p(token | tokens before it), nats
    top       id of the most likely token
    rank      number of vocabulary entries more likely than the token: 0 = the most likely
    mean      mu = E_v[ln p(v)] over the vocabulary v under the model's own p, nats: minus the entropy
    variance  E_v[(ln p(v) - mu)^2] under the same p, nats squared

mean and variance are what Min-K++ standardizes with (Zhang et al. 2024, arXiv:2404.02936). OpenUnlearning takes them from
bfloat16 logits as E[x^2] - E[x]^2, which cancels where mu is large beside sigma, as for a model that is nearly uniform.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.numerics import wide

CHUNK = {"cpu": 1 << 18}  # logits in float32 at a time: 1 MiB, so that the passes over a chunk stay in a CPU's cache
CHUNK_ELSEWHERE = 1 << 24  # 64 MiB: few launches
FLOOR = -1e4  # stands for ln 0: exp of it is 0 in every float type, and 0 * FLOOR is 0 where 0 * inf is NaN


class Columns:
    """One value per answer token and column, filled batch by batch, kept on the model's device until read."""

    def __init__(self, length: int, device: torch.device) -> None:
        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(length, dtype=dtype, device=device)

        self.logprob = column(torch.float32)
        self.top = column(torch.int32)
        self.rank = column(torch.int32)
        self.mean = column(torch.float32)
        self.variance = column(torch.float32)

    def write(
        self,
        at: Int[Tensor, "token"],
        logits: Float[Tensor, "row d_vocab"],
        row: Int[Tensor, "token"],
        target: Int[Tensor, "token"],
    ) -> None:
        """Fill the entries `at`: `target[t]` is predicted by `logits[row[t]]`.

        A row may predict several tokens (the first ones of several answers to one prompt); the rows are gathered and turned
        to float32 a chunk at a time, so that no second copy of all logits exists.
        """
        size = max(1, CHUNK.get(logits.device.type, CHUNK_ELSEWHERE) // logits.shape[-1])
        for into, source, token in zip(at.split(size), row.split(size), target.split(size), strict=True):
            chosen = wide(logits[source])
            aim = chosen.gather(-1, token[:, None])
            self.top[into] = chosen.argmax(-1).int()
            self.rank[into] = (chosen > aim).count_nonzero(dim=-1).int()
            logprob = chosen.log_softmax(-1)
            self.logprob[into] = logprob.gather(-1, token[:, None]).squeeze(-1).float()
            probability = logprob.exp()
            logprob = logprob.clamp_min(FLOOR)
            mean = torch.linalg.vecdot(probability, logprob)
            deviation = logprob.sub_(mean[:, None]).square_()
            self.mean[into] = mean.float()
            self.variance[into] = torch.linalg.vecdot(probability, deviation).float()

    def numpy(self) -> dict[str, np.ndarray]:
        """The columns by name, on the CPU: int32 and float32."""
        return {name: getattr(self, name).cpu().numpy() for name in ("logprob", "top", "rank", "mean", "variance")}
