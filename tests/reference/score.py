"""Numbers about rows and pairs the slow way: loops, float64, the papers' definitions; nothing imported from workbench."""

import numpy as np
import torch


def final_states(hf, tokens):
    """Final hidden states and logits of one unpadded row: transformers' last `hidden_states` are behind the final norm. float64."""
    with torch.no_grad():
        out = hf(torch.tensor([tokens]), output_hidden_states=True, use_cache=False)
    return out.hidden_states[-1][0].double().numpy(), out.logits[0].double().numpy()


def predicting(states, start, length):
    """The states that predict the tokens start .. length - 1: from the last prompt token to the one before the last token."""
    return [states[t] for t in range(start - 1, length - 1)]


def ches(plus, minus):
    """Definition 2: the product of the two sums minus the square of the first."""
    s_plus, s_minus = sum(plus), sum(minus)
    return float(s_plus @ s_minus - s_plus @ s_plus)


def ches_normalized(plus, minus):
    """Definition 3: every sum over its length."""
    s_plus, s_minus = sum(plus), sum(minus)
    return float(s_plus @ s_minus / (len(plus) * len(minus)) - s_plus @ s_plus / len(plus) ** 2)


def library_ches(chosen, rejected, last_prompt, *, normalize):
    """The authors' `ches.py` on one pair: left-padded states [pos, d], index of the last prompt token of each; the row ends in
    end-of-text, whose position is dropped; the length is what is left of the padded row."""
    sums = []
    for states, last in zip((chosen, rejected), last_prompt, strict=True):
        kept = states[:-1] * (np.arange(len(states)) >= last)[:-1, None]
        sums.append(kept.sum(0) / ((len(states) - 1 - last) if normalize else 1))
    return float(sums[0] @ sums[1] - sums[0] @ sums[0])


def log_softmax(logits):
    top = logits.max()
    return logits - (top + np.log(np.exp(logits - top).sum()))


def logprob(logits, tokens, start):
    """ln p of the tokens from `start` on."""
    return sum(float(log_softmax(logits[t - 1])[tokens[t]]) for t in range(start, len(tokens)))


def el2n(logits, tokens, start):
    """Mean over the answer's tokens of |softmax - onehot|."""
    norms = []
    for t in range(start, len(tokens)):
        error = np.exp(log_softmax(logits[t - 1]))
        error[tokens[t]] -= 1.0
        norms.append(float(np.sqrt((error**2).sum())))
    return sum(norms) / len(norms)


def grad_norm(hf, tokens, start):
    """Norm of autograd's gradient of the mean negative log-likelihood of one unpadded row."""
    hf.zero_grad(set_to_none=True)
    logits = hf(torch.tensor([tokens]), use_cache=False).logits[0]
    picked = [logits[t - 1].log_softmax(-1)[tokens[t]] for t in range(start, len(tokens))]
    (-sum(picked) / len(picked)).backward()
    total = sum(float(p.grad.double().square().sum()) for p in hf.parameters() if p.grad is not None)
    hf.zero_grad(set_to_none=True)
    return total**0.5


def levenshtein(a, b):
    """The textbook table."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a):
        now = [i + 1]
        for j, y in enumerate(b):
            now.append(min(now[j] + 1, before[j + 1] + 1, before[j] + (x != y)))
        before = now
    return before[-1]


def mass_shift(weight, hidden, chosen, rejected):
    """d p_z / dt of every token when the hidden state moves along W_chosen - W_rejected, token by token."""
    logits = [float(w @ hidden) for w in weight]
    p = np.exp(log_softmax(np.array(logits)))
    rises = [float(w @ (weight[chosen] - weight[rejected])) for w in weight]
    drift = sum(float(p[v]) * rises[v] for v in range(len(weight)))
    return np.array([p[z] * (rises[z] - drift) for z in range(len(weight))]), rises[chosen] - drift


def project(values, size):
    """The nearest point of {0 <= w <= 1, sum w = size}, by trying every set of entries at 0 and at 1 (n small)."""
    n, best, found = len(values), np.inf, None
    for code in range(3**n):
        kinds = [(code // 3**i) % 3 for i in range(n)]  # 0: at zero, 1: at one, 2: between
        free = [i for i in range(n) if kinds[i] == 2]
        w = np.array([float(kind == 1) for kind in kinds])
        left = size - w.sum()
        if free:
            shift = (sum(values[i] for i in free) - left) / len(free)
            w[free] = [values[i] - shift for i in free]
        if abs(w.sum() - size) > 1e-9 or (w < -1e-12).any() or (w > 1 + 1e-12).any():
            continue
        distance = float(((w - values) ** 2).sum())
        if distance < best - 1e-15:
            best, found = distance, w
    return found
