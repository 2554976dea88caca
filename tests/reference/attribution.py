"""Slow truths for weight scores: one autograd pass an example, float64, nothing shared with the package.

A row is (tokens, start): token ids without padding and the index of the first answer token. `hf` is any Hugging Face causal LM.
"""

import torch


def row_loss(hf, row):
    """Mean negative log-likelihood of the answer's tokens, by a loop over them."""
    tokens, start = row
    logits = hf(input_ids=torch.tensor([tokens])).logits[0]
    total = 0.0
    for p in range(start, len(tokens)):
        total = total - torch.log_softmax(logits[p - 1], -1)[tokens[p]]
    return total / (len(tokens) - start)


def example_gradients(hf, rows):
    """One dict of gradients a row."""
    found = []
    for row in rows:
        hf.zero_grad()
        row_loss(hf, row).backward()
        found.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in hf.named_parameters()})
    hf.zero_grad()
    return found


def mean_gradient(hf, rows):
    each = example_gradients(hf, rows)
    return {n: sum(g[n] for g in each) / len(each) for n in each[0]}


def fisher(hf, rows):
    each = example_gradients(hf, rows)
    return {n: sum(g[n] ** 2 for g in each) / len(each) for n in each[0]}


def gauss_newton_mean_diagonal(hf, rows, name):
    """Mean diagonal of (1/n) sum_e (1/T_e) sum_t J_t' H_t J_t for one parameter, H_t = diag(p) - p p' of the softmax.

    tr(J' H J) = sum_v p_v ||grad(logit_v - mean logit)||^2, with the mean under p.
    """
    parameter = dict(hf.named_parameters())[name]
    total = 0.0
    for tokens, start in rows:
        logits = hf(input_ids=torch.tensor([tokens])).logits[0]
        for p in range(start, len(tokens)):
            z = logits[p - 1]
            jacobian = torch.stack([torch.autograd.grad(z[v], parameter, retain_graph=True)[0].flatten() for v in range(len(z))])
            prob = z.detach().softmax(-1)
            centered = jacobian - (prob[:, None] * jacobian).sum(0)
            total = total + float((prob[:, None] * centered**2).sum()) / (len(tokens) - start)
    return total / len(rows) / parameter.numel()
