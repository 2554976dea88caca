"""Probes the slow way: loops over rows and pairs, textbook formulas in float64; nothing imported from workbench."""

import math

import numpy as np
import torch


def pooled(hf, rows, layer, *, pool, bos):
    """Features of rows (tokens, start), one unpadded row at a time, from transformers' own hidden states; not the last layer's,
    which transformers norms."""
    found = []
    for tokens, start in rows:
        with torch.no_grad():
            states = hf(torch.tensor([tokens]), output_hidden_states=True, use_cache=False).hidden_states[layer + 1][0].double()
        used = [states[t].numpy() for t in range(0 if bos else start, len(tokens))]
        if pool == "mean":
            found.append(sum(used) / len(used))
        elif pool == "last":
            found.append(used[-1])
        else:
            found.append(np.array([max(u[j] for u in used) for j in range(len(used[0]))]))
    return np.array(found)


def auc(scores, positive):
    """Every pair of a positive and a negative row."""
    wins, pairs = 0.0, 0
    for i, a in enumerate(scores):
        for j, b in enumerate(scores):
            if positive[i] and not positive[j]:
                pairs += 1
                wins += 1.0 if a > b else 0.5 if a == b else 0.0
    return wins / pairs if pairs else math.nan


def ranks(values):
    """Mean rank among all values."""
    return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]


def correlation(a, b):
    a, b = [x - sum(a) / len(a) for x in a], [y - sum(b) / len(b) for y in b]
    top, size = sum(x * y for x, y in zip(a, b, strict=True)), math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return top / size if size else math.nan


def spearman(a, b):
    return correlation(ranks(a), ranks(b))


def r_squared(predicted, targets):
    mean = sum(targets) / len(targets)
    return 1 - sum((y - f) ** 2 for y, f in zip(targets, predicted, strict=True)) / sum((y - mean) ** 2 for y in targets)


def balanced_accuracy(right, codes, n_classes):
    shares = [[r for r, code in zip(right, codes, strict=True) if code == c] for c in range(n_classes)]
    return sum(sum(share) / len(share) if share else math.nan for share in shares) / n_classes


def scaled(x):
    mean = sum(x) / len(x)
    std = np.sqrt(sum((row - mean) ** 2 for row in x) / len(x))
    return mean, std


def softmax_regression(x, codes, *, c, steps=60):
    """(weight, intercept) where |V|^2 / 2 + c sum of negative log-likelihoods is least, by Newton; one logit for two classes."""
    mean, std = scaled(x)
    z = np.hstack([(x - mean) / std, np.ones((len(x), 1))])
    k = int(codes.max()) + 1
    rows = 1 if k == 2 else k
    penalty = np.tile(np.append(np.ones(x.shape[1]), 0.0), rows)
    theta = np.zeros(rows * z.shape[1])
    for _ in range(steps):
        logits = z @ theta.reshape(rows, -1).T
        if rows == 1:
            p = 1 / (1 + np.exp(-logits))
            y = codes[:, None].astype(float)
        else:
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            y = np.eye(k)[codes]
        gradient = c * ((p - y).T @ z).ravel() + penalty * theta
        hessian = np.zeros((len(theta), len(theta)))
        for i in range(len(x)):
            curve = np.diag(p[i]) - np.outer(p[i], p[i])
            hessian += c * np.kron(curve, np.outer(z[i], z[i]))
        hessian += np.diag(penalty)
        theta = theta - np.linalg.lstsq(hessian, gradient, rcond=None)[0]
    theta = theta.reshape(rows, -1)
    weight = theta[:, :-1] / std
    intercept = theta[:, -1] - weight @ mean
    return weight, intercept - (intercept.mean() if rows > 1 else 0)


def ledoit_wolf(x):
    """The shrunk covariance of rows, toward the mean of its diagonal."""
    x = x - sum(x) / len(x)
    n, p = x.shape
    sample = sum(np.outer(row, row) for row in x) / n
    mean = np.trace(sample) / p
    spread = ((sample - mean * np.eye(p)) ** 2).sum() / p
    noise = sum(((np.outer(row, row) - sample) ** 2).sum() for row in x) / n**2 / p
    share = min(noise, spread) / spread
    return (1 - share) * sample + share * mean * np.eye(p)


def lda(x, codes):
    """(weight, intercept), a row a class and centered; the difference of the two for two classes."""
    covariance, means, priors = 0, [], []
    for c in range(int(codes.max()) + 1):
        mine = x[codes == c]
        mean, std = scaled(mine)
        covariance = covariance + len(mine) / len(x) * np.outer(std, std) * ledoit_wolf((mine - mean) / std)
        means.append(mean)
        priors.append(len(mine) / len(x))
    weight = np.array([np.linalg.solve(covariance, mean) for mean in means])
    intercept = np.array([-w @ m / 2 + math.log(p) for w, m, p in zip(weight, means, priors, strict=True)])
    if len(means) == 2:
        return (weight[1] - weight[0])[None], (intercept[1] - intercept[0])[None]
    return weight - weight.mean(0), intercept - intercept.mean()


def ridge(x, y, alpha):
    mean, std = scaled(x)
    z = (x - mean) / std
    v = np.linalg.solve(z.T @ z + alpha * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    weight = v / std
    return weight, y.mean() - weight @ mean


def best_alpha(x, y, alphas):
    """Leave-one-out, each row left out in turn of the standardized features of all rows (as scikit-learn's RidgeCV has them)."""
    mean, std = scaled(x)
    z = (x - mean) / std
    errors = []
    for alpha in alphas:
        total = 0.0
        for i in range(len(y)):
            keep = np.arange(len(y)) != i
            centered, target = z[keep] - z[keep].mean(0), y[keep] - y[keep].mean()
            v = np.linalg.solve(centered.T @ centered + alpha * np.eye(z.shape[1]), centered.T @ target)
            total += (y[i] - y[keep].mean() - (z[i] - z[keep].mean(0)) @ v) ** 2
        errors.append(total)
    return alphas[int(np.argmin(errors))]


def calibration_error(confidence, right, bins):
    """Rows in order of confidence, cut into bins that differ by at most one row, the first ones larger."""
    order = sorted(range(len(confidence)), key=lambda i: confidence[i])
    size, larger = divmod(len(order), bins)
    total, at = 0.0, 0
    for b in range(bins):
        part = order[at : at + size + (b < larger)]
        at += len(part)
        total += abs(sum(confidence[i] for i in part) - sum(right[i] for i in part))
    return total / len(order)
