"""Unlearning losses of one example from its answer's log-probabilities, with math and loops only."""

import math


def nll(logprobs):
    return -sum(logprobs) / len(logprobs)


def gradient_ascent(logprobs, reference):
    return sum(logprobs) / len(logprobs)


gradient_difference = gradient_ascent


def npo(logprobs, reference, beta=0.1):
    """-(2/beta) ln sigmoid(-beta ln(pi/pi_ref))"""
    ratio = sum(logprobs) - sum(reference)
    return -2 / beta * math.log(1 / (1 + math.exp(beta * ratio)))


def simnpo(logprobs, reference, beta=4.5, margin=0.0):
    """-(2/beta) ln sigmoid(-(beta/|y|) ln pi - beta margin)"""
    return -2 / beta * math.log(1 / (1 + math.exp(-(-beta / len(logprobs) * sum(logprobs) - beta * margin))))


def kl(reference_rows, policy_rows):
    """Mean over positions of sum_v p_ref (ln p_ref - ln p), from rows of log-probabilities."""
    total = 0.0
    for before, now in zip(reference_rows, policy_rows, strict=True):
        total += sum(math.exp(b) * (b - n) for b, n in zip(before, now, strict=True))
    return total / len(reference_rows)
