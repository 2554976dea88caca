"""Token tables made by hand or at random, without a model."""

from dataclasses import replace

import numpy as np

from workbench.core.records import Provenance
from workbench.evaluate.table import TokenTable

END = 7  # id of the end-of-text token in these tables
VALUES = ("token", "top", "logprob", "rank", "mean", "variance")


def table(responses, *, paraphrases=None, name="rows", truth=None, generated=None, end=END, ids=None):
    """A token table from a list of answers, each a list of tokens as dicts; what a token leaves out is made up."""
    n = len(responses)
    cells = [(i, 0, answer) for i, answer in enumerate(responses)]
    cells += [(i, 1, answer) for i, answer in enumerate(paraphrases or []) if answer]
    cells.sort(key=lambda cell: cell[:2])
    default = {"token": 1, "top": 1, "logprob": -1.0, "rank": 0, "mean": -1.5, "variance": 1.0}
    flat = [{**default, **t, "row": i, "variant": v, "position": p} for i, v, answer in cells for p, t in enumerate(answer)]
    column = lambda key, dtype: np.array([t[key] for t in flat], dtype=dtype)  # noqa: E731
    return TokenTable(
        name=name,
        ids=tuple(ids or (f"r{i}" for i in range(n))),
        truth=tuple(truth or (f"the answer {i}" for i in range(n))),
        generated=tuple(generated or [None] * n),
        variants=("response", "paraphrase"),
        **{key: column(key, np.int32) for key in ("row", "variant", "position", "token", "top", "rank")},
        **{key: column(key, np.float32) for key in ("logprob", "mean", "variance")},
        prompt_tokens=3 * n,
        provenance=Provenance("tokens", "model"),
        end=end,
    )


def tokens(right, *, end=True, logprobs=None):
    """Tokens that are the first choice or not; the last is the end-of-text token unless end is False."""
    values = [{"token": 1, "top": 1 if r else 2} for r in right]
    if end:
        values[-1] = {"token": END, "top": END if right[-1] else 2}
    for value, logprob in zip(values, logprobs or [-1.0] * len(values), strict=True):
        value["logprob"] = logprob
    return values


def random_answers(n, *, seed=0, longest=12):
    """n answers of 1 to `longest` tokens and an end-of-text token, exact in float32."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        size = int(draw.integers(1, longest + 1))
        answer = [
            {
                "token": int(draw.integers(0, 3)),
                "top": int(draw.integers(0, 3)),
                "logprob": float(np.float32(-draw.exponential(2))),
                "mean": float(np.float32(-draw.exponential(2))),
                "variance": float(np.float32(draw.exponential(1))),
            }
            for _ in range(size)
        ]
        made.append([*answer, {"token": END, "top": int(draw.integers(6, 8)), "logprob": -0.125, "mean": -0.25, "variance": 0.5}])
    return made


def shuffled(given, seed=0):
    """The same table with its token lines in another order: the order of lines carries nothing."""
    order = np.random.default_rng(seed).permutation(len(given))
    names = ("row", "variant", "position", *VALUES)
    return replace(given, **{name: getattr(given, name)[order] for name in names})
