"""Influence with EK-FAC and its simpler relatives, row by row with autograd; slow, nothing from workbench or kronfluence."""

import numpy as np
import torch


def drawn(p, u):
    """The first label whose cumulative probability is above u."""
    total, cumulative = float(p.sum()), 0.0
    for label, mass in enumerate(p.tolist()):
        cumulative += mass
        if cumulative > u * total:
            return label
    return len(p) - 1


def per_map(hf, names, row, targets, power):
    """For each map: inputs with a 1 for the bias [token in], and d loss / d outputs [token out], of one row.

    The loss is the NLL of the targets (one for each answer token) summed and divided by their number to a power.
    """
    tokens, start = row
    inputs, outputs, handles = {}, {}, []
    for name in names:

        def keep(module, given, made, name=name):
            ones = given[0].new_ones(*given[0].shape[:-1], 1 if module.bias is not None else 0)
            inputs[name], outputs[name] = torch.cat([given[0], ones], -1)[0].detach(), made

        handles.append(hf.get_submodule(name).register_forward_hook(keep))
    logprob = hf(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    loss = -sum(logprob[start - 1 + k, target] for k, target in enumerate(targets)) / len(targets) ** power
    slopes = torch.autograd.grad(loss, [outputs[name] for name in names])
    for handle in handles:
        handle.remove()
    return {name: (inputs[name].numpy(), slope[0].numpy()) for name, slope in zip(names, slopes, strict=True)}


def influence(hf, names, query, train, draws, *, strategy, damping):
    """[query train]; rows are (tokens, index of the first answer token), draws one number in [0, 1) for each answer token."""

    def gradients(rows):
        return [{n: s.T @ a for n, (a, s) in per_map(hf, names, row, row[0][row[1] :], 1.0).items()} for row in rows]

    sampled = []
    for (tokens, start), numbers in zip(train, draws, strict=True):
        with torch.no_grad():
            p = hf(input_ids=torch.tensor([tokens])).logits[0].softmax(-1)
        labels = [drawn(p[start - 1 + k], u) for k, u in enumerate(numbers)]
        sampled.append(per_map(hf, names, (tokens, start), labels, 0.5))
    queries, rows = gradients(query), gradients(train)
    out = np.zeros((len(query), len(train)))
    for name in names:
        a, s = (np.concatenate([one[name][side] for one in sampled]) for side in (0, 1))
        squares = [one[name][1].T @ one[name][0] for one in sampled]
        if strategy in ("ekfac", "kfac"):
            at, along_a = np.linalg.eigh(a.T @ a / len(a))
            st, along_s = np.linalg.eigh(s.T @ s / len(s))
        else:
            at, along_a, st, along_s = None, np.eye(a.shape[1]), None, np.eye(s.shape[1])
        eigenvalues = np.outer(st, at) if strategy == "kfac" else np.mean([(along_s.T @ g @ along_a) ** 2 for g in squares], axis=0)
        added = 0.1 * eigenvalues.mean() if damping is None else damping
        inverse = np.ones_like(eigenvalues) if strategy == "identity" else 1 / (eigenvalues + added)
        for q, one in enumerate(queries):
            turned = along_s @ (along_s.T @ one[name] @ along_a * inverse) @ along_a.T
            out[q] += [float((turned * row[name]).sum()) for row in rows]
    return out
