"""Slow truths in float64: log-probabilities by a loop over tokens, top-k by a full sort."""

import math

import numpy as np


def answer_logprobs(logits, tokens, answer):
    """logprob[b][p] = logits[b][p-1][tokens[b][p]] - ln sum_v exp logits[b][p-1][v] where answer, else 0."""
    out = np.zeros(np.shape(tokens))
    for b in range(len(tokens)):
        for p in range(len(tokens[b])):
            if answer[b][p]:
                row = [float(x) for x in logits[b][p - 1]]
                top = max(row)
                out[b, p] = row[tokens[b][p]] - top - math.log(sum(math.exp(x - top) for x in row))
    return out


def top_k(tensors, k):
    """Names and flat positions of the k largest, ties to the earlier tensor and then to the lower position."""
    ranked = sorted(
        (
            (-float(value), order, position, name)
            for order, (name, t) in enumerate(tensors.items())
            for position, value in enumerate(t.flatten().tolist())
        ),
    )
    return {(name, position) for _, _, position, name in ranked[:k]}
