"""Unlearning losses of one example from its answer's log-probabilities, logits or states, with math and loops only."""

import math


def nll(logprobs):
    return -sum(logprobs) / len(logprobs)


def gradient_ascent(logprobs, reference=None):
    return sum(logprobs) / len(logprobs)


gradient_difference = kl_minimization = gradient_ascent


def idk(logprobs, reference=None):
    return nll(logprobs)


random_label = task_vector = idk


def npo(logprobs, reference, beta=0.1):
    """-(2/beta) ln sigmoid(-beta ln(pi/pi_ref))"""
    ratio = sum(logprobs) - sum(reference)
    return -2 / beta * math.log(1 / (1 + math.exp(beta * ratio)))


npo_kl = npo


def refusal_dpo(logprobs, reference, refused, reference_refused, beta=0.1):
    """-(2/beta) ln sigmoid(beta (ln(pi/ref)(refusal) - ln(pi/ref)(answer)))"""
    h = sum(refused) - sum(reference_refused) - (sum(logprobs) - sum(reference))
    return -2 / beta * math.log(1 / (1 + math.exp(-beta * h)))


def simnpo(logprobs, reference=None, beta=4.5, margin=0.0):
    """-(2/beta) ln sigmoid(-(beta/|y|) ln pi - beta margin)"""
    return -2 / beta * math.log(1 / (1 + math.exp(-(-beta / len(logprobs) * sum(logprobs) - beta * margin))))


def wga(logprobs, reference=None, beta=1.0, at=None):
    """at: log-probabilities the weights are taken from."""
    return sum(math.exp(w) ** beta * lp for lp, w in zip(logprobs, at or logprobs, strict=True)) / len(logprobs)


def satimp(logprobs, reference=None, beta1=5.0, beta2=1.0, at=None):
    total = 0.0
    for lp, w in zip(logprobs, at or logprobs, strict=True):
        total += math.exp(w) ** beta1 * (1 - math.exp(w)) ** beta2 * lp
    return total / len(logprobs)


def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(z - top) for z in row))
    return [z - total for z in row]


def softmax(row):
    return [math.exp(lp) for lp in log_softmax(row)]


def cross_entropy(target, row):
    return -sum(q * lp for q, lp in zip(target, log_softmax(row), strict=True) if q)


def undial(logits, tokens, reference, beta=10.0):
    total = 0.0
    for row, token, before in zip(logits, tokens, reference, strict=True):
        total += cross_entropy(softmax([z - beta * (v == token) for v, z in enumerate(before)]), row)
    return total / len(logits)


def ceu(logits, tokens, reference=None, skip=1, at=None):
    """at: logits the targets are taken from."""
    total, used = 0.0, range(min(skip, len(logits) - 1), len(logits))
    for t in used:
        without = [z if v != tokens[t] else -math.inf for v, z in enumerate((at or logits)[t])]
        total += cross_entropy(softmax(without), logits[t])
    return total / len(used)


def pdu(logits, tokens, reference=None):
    return sum((max(row) - sum(row) / len(row)) ** 2 for row in logits) / len(logits)


def generic(base, reinforced, alpha=5.0):
    return [[b - alpha * max(0.0, r - b) for b, r in zip(*rows, strict=True)] for rows in zip(base, reinforced, strict=True)]


def whos_harry_potter(logits, tokens, reference, target="argmax"):
    """reference: the generic logits."""
    total = 0.0
    for row, wanted in zip(logits, reference, strict=True):
        if target == "argmax":
            total -= log_softmax(row)[wanted.index(max(wanted))]
        else:
            total += cross_entropy(softmax(wanted), row)
    return total / len(logits)


def rmu(states, wanted):
    """Mean over positions of the squared distance over d."""
    total = 0.0
    for h, a in zip(states, wanted, strict=True):
        total += sum((x - y) ** 2 for x, y in zip(h, a, strict=True)) / len(h)
    return total / len(states)


def kl(reference_rows, policy_rows):
    """Mean over positions of sum_v p_ref (ln p_ref - ln p), from rows of log-probabilities."""
    total = 0.0
    for before, now in zip(reference_rows, policy_rows, strict=True):
        total += sum(math.exp(b) * (b - n) for b, n in zip(before, now, strict=True))
    return total / len(reference_rows)
