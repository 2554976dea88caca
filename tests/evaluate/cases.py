"""Answers and rows the tests of this folder share."""

from pathlib import Path

import numpy as np

from workbench.core.records import Example, Examples
from workbench.evaluate.answers import Answers

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
FULL = GOLDEN / "llama2-7b_full_eval_log_aggregated.json"
RETAIN = GOLDEN / "llama2-7b_retain90_eval_log_aggregated.json"
NAN = float("nan")


def answers(response, *, paraphrase=None, perturbed=None, generated=None, truth=None, recall=None, name="rows", ids=None):
    """Answers from lists; rows without a paraphrase get NaN, without false answers none."""
    n = len(response)
    return Answers(
        name=name,
        ids=tuple(ids or (f"r{i}" for i in range(n))),
        response=np.array(response, dtype=np.float64),
        paraphrase=np.array(paraphrase or [NAN] * n, dtype=np.float64),
        perturbed=np.array(perturbed if perturbed is not None else np.zeros((n, 0)), dtype=np.float64),
        generated=tuple(generated or [None] * n),
        truth=tuple(truth or [None] * n),
        recall=None if recall is None else np.array(recall, dtype=np.float64),
    )


def random_answers(n, *, options=3, seed=0, shift=0.0, name="rows"):
    """n rows of NLLs between 0.1 and 4 nats per token, with texts."""
    draw = np.random.default_rng(seed)
    return answers(
        draw.uniform(0.1, 4, n),
        paraphrase=list(draw.uniform(0.1, 4, n) + shift),
        perturbed=draw.uniform(0.1, 4, (n, options)),
        generated=[f"a b {i}" for i in range(n)],
        truth=[f"a {i} b" for i in range(n)],
        name=name,
    )


# Unequal lengths everywhere; rows 0 and 2 share a prompt, row 3's answers split the prompt's last token differently.
STORY = Examples(
    [
        Example("a", "Once upon a time", "there was a cat.", "He was happy", ("a small dog ran to the big red house", "x")),
        Example(
            "b",
            "A small dog ran to the big red house",
            "The girl said no and she went home to see her mom.",
            None,
            ("no",),
        ),
        Example("c", "Once upon a time", "I"),
        Example("d", "He said ", "hello to him", "yes", (", and ran",)),
    ],
    "story",
)
# A tokenizer of single characters without beginning- or end-of-text token: answers of one token, prompts of 2 to 31.
LETTERS = Examples(
    [
        Example("a", "Q: What is SLM?\nA:", "SLM is a Small Language Model", "A small model", ("a page", "x")),
        Example("b", "Q:", "What", None, ("a", "SLM is web scale and it is a page of memory")),
        Example("c", "SLM is a Small Language Model tr", "ained on a single page"),
    ],
    "letters",
)
