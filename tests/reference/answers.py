"""Answers read one sequence at a time by a plain Hugging Face model, without cache, padding or batch; float64 sums.

Imports nothing from workbench.
"""

import torch


@torch.no_grad()
def answer_statistics(hf, tokens: list[int], start: int) -> list[dict[str, float]]:
    """logprob, top, rank, mean and variance of each token from `start` on, from the model's logits in float64."""
    logits = hf(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double()
    out = []
    for position in range(start, len(tokens)):
        logp = logits[position - 1].log_softmax(-1)
        p = logp.exp()
        mean = sum(float(x * y) for x, y in zip(p, logp, strict=True))
        out.append(
            {
                "logprob": float(logp[tokens[position]]),
                "top": int(logp.argmax()),
                "rank": int((logp > logp[tokens[position]]).sum()),
                "mean": mean,
                "variance": sum(float(x * (y - mean) ** 2) for x, y in zip(p, logp, strict=True)),
            }
        )
    return out


@torch.no_grad()
def greedy(hf, prompt: list[int], *, most: int, ends: set[int], context: int) -> list[int]:
    """The most likely next token, again and again."""
    made: list[int] = []
    while len(made) < most and len(prompt) + len(made) < context:
        token = int(hf(input_ids=torch.tensor([prompt + made]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        made.append(token)
    return made
