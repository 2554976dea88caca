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


def input_mean_squares(hf, rows, path):
    """Mean over all tokens of all rows of each squared input feature of the linear map at `path`, one token at a time."""
    seen = []
    handle = hf.get_submodule(path).register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()[0]))
    for tokens, _ in rows:
        hf(input_ids=torch.tensor([tokens]))
    handle.remove()
    every = [vector for row in seen for vector in row]
    total = torch.zeros_like(every[0])
    for vector in every:
        total = total + vector**2
    return total / len(every)


def cosine_rows(g_f, g_r):
    """|g_f| (1 - cosine of the rows) / 2 of one [out in] matrix, or of a vector as one row."""
    if g_f.ndim == 1:
        return cosine_rows(g_f[None], g_r[None])[0]
    out = torch.zeros_like(g_f)
    for i in range(len(g_f)):
        length = float((g_f[i] ** 2).sum() ** 0.5 * (g_r[i] ** 2).sum() ** 0.5)
        cosine = float((g_f[i] * g_r[i]).sum()) / length if length else 0.0
        out[i] = g_f[i].abs() * (1 - cosine) / 2
    return out


def path_integral(hf, rows, end, *, steps):
    """(end - theta) times the mean gradient at the midpoints of `steps` equal pieces of the straight path to `end`."""
    start = {n: p.detach().clone() for n, p in hf.named_parameters()}
    total = {n: torch.zeros_like(p) for n, p in start.items()}
    for k in range(steps):
        with torch.no_grad():
            for n, p in hf.named_parameters():
                p.copy_(start[n] + (k + 0.5) / steps * (end[n] - start[n]))
        here = mean_gradient(hf, rows)
        total = {n: total[n] + here[n] / steps for n in total}
    with torch.no_grad():
        for n, p in hf.named_parameters():
            p.copy_(start[n])
    return {n: (end[n] - start[n]) * total[n] for n in total}
