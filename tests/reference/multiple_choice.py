"""Multiple choice the slow way: one forward pass a choice, float64, nothing from the package."""

import numpy as np
import torch


def choice_logprob(hf, tokenizer, prompt, choice):
    """(sum of ln p of the choice's tokens, how many), the tokens being those of the whole text behind the prompt's."""
    head, whole = (tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {choice}"))
    with torch.no_grad():
        logprob = hf(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logprob[t - 1, whole[t]]) for t in range(len(head), len(whole))), len(whole) - len(head)


def chosen(hf, tokenizer, prompt, choices, *, length=None):
    """The number of the choice with the highest ln p, or the highest ln p over its length."""
    sizes = {
        None: lambda c, n: 1,
        "characters": lambda c, n: len(c),
        "bytes": lambda c, n: len(c.encode()),
        "tokens": lambda c, n: n,
    }
    found = [(choice, *choice_logprob(hf, tokenizer, prompt, choice)) for choice in choices]
    return int(np.argmax([total / sizes[length](choice, n) for choice, total, n in found]))
