"""Value vectors and their comparison, entry by entry in float64."""

from math import exp, log

import numpy as np


def extremes(rows, columns, k):
    """By row the k largest and k smallest entries of rows @ columns.T as lists of (column, value); equal ones by column."""
    found = []
    for row in rows:
        values = [float(np.dot(row.astype(np.float64), column.astype(np.float64))) for column in columns]
        top = sorted(range(len(values)), key=lambda j: (-values[j], j))[:k]
        bottom = sorted(range(len(values)), key=lambda j: (values[j], j))[:k]
        found.append(([(j, values[j]) for j in top], [(j, values[j]) for j in bottom]))
    return found


def coherence(vectors):
    """Mean cosine over all pairs."""
    pairs = [(a, b) for i, a in enumerate(vectors) for b in vectors[:i]]
    return sum(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs) / len(pairs)


def contrast(texts, against):
    """Standardized difference of two lists of coefficients, turned so that the texts' mean counts as positive."""
    spread = np.sqrt((np.var(texts) + np.var(against)) / 2)
    return (-1 if np.mean(texts) < 0 else 1) * (np.mean(texts) - np.mean(against)) / spread


def write(texts, against, norm):
    """How much longer the vector is that is added on the texts, in the quadratic mean."""
    return norm * (np.sqrt(np.mean(np.square(texts))) - np.sqrt(np.mean(np.square(against))))


def mean_logprob(logits, tokens, start):
    """Mean ln p of tokens[start:], from logits [pos d_vocab] of one row."""
    total = 0.0
    for p in range(start, len(tokens)):
        row = logits[p - 1].astype(np.float64)
        total += row[tokens[p]] - (row.max() + log(np.exp(row - row.max()).sum()))
    return total / (len(tokens) - start)


def bleu(reference, hypothesis):
    """BLEU of one sentence of words, at most 4-grams, zero counts smoothed by 1 / 2^k, k the number of zero orders so far."""
    said, made = reference.split(), hypothesis.split()
    orders, zeros, total = min(4, len(made)), 0, 0.0
    for n in range(1, orders + 1):
        there = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
        count, hits = len(made) - n + 1, 0
        for i in range(count):
            gram = tuple(made[i : i + n])
            if gram in there:
                there.remove(gram)
                hits += 1
        if n == 1 and hits == 0:
            return 0.0
        if hits == 0:
            zeros += 1
            total += log(1 / (2**zeros * count))
        else:
            total += log(hits / count)
    short = 1.0 if len(made) > len(said) else exp(1 - len(said) / len(made))
    return short * exp(total / orders)


def rouge_l_f(said, made):
    """2 LCS / (|said| + |made|) of two lists of words."""
    table = np.zeros((len(said) + 1, len(made) + 1), dtype=int)
    for i, a in enumerate(said):
        for j, b in enumerate(made):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return 2 * table[-1, -1] / (len(said) + len(made))


def jaccard(one, other):
    """Shared ids over all ids."""
    return len(set(one) & set(other)) / len(set(one) | set(other))
