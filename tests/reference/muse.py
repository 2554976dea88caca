"""MUSE's verbatim memorization the slow way: one passage at a time, nothing from the package."""

import re

import torch


def rouge_l_f(truth, made):
    """2 P R / (P + R) of the longest common subsequence of lower-case words of a-z and 0-9, no stemmer."""
    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (truth, made))
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    shared = table[-1][-1]
    return 2 * shared / (len(a) + len(b)) if shared else 0.0


def greedy(hf, tokenizer, prompt, count):
    """The most likely next token, `count` times or up to the end of the text; one full pass a token."""
    tokens = tokenizer(prompt)["input_ids"]
    first = len(tokens)
    with torch.no_grad():
        for _ in range(count):
            new = int(hf(torch.tensor([tokens])).logits[0, -1].argmax())
            if new == tokenizer.eos_token_id:
                break
            tokens.append(new)
    return tokenizer.decode(tokens[first:], skip_special_tokens=True)


def min_k(hf, tokenizer, text, share):
    """Minus the mean of the lowest share of ln p of the tokens behind the first word."""
    tokens = tokenizer(text)["input_ids"]
    head = len(tokenizer(text.split()[0])["input_ids"])
    with torch.no_grad():
        logprob = hf(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    values = sorted(float(logprob[t - 1, tokens[t]]) for t in range(head, len(tokens)))
    count = max(1, int(share * len(values) + 1e-9))
    return -sum(values[:count]) / count


def auc(members, others):
    """P(other > member) + P(equal) / 2 over all pairs."""
    return sum((o > m) + (o == m) / 2 for m in members for o in others) / (len(members) * len(others))
