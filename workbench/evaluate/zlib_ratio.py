"""How improbable an answer is, beside how well a compressor that was never trained does on it."""

import zlib

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError
from workbench.core.registry import metric
from workbench.evaluate.nll import mean_nll
from workbench.evaluate.spans import RESPONSE
from workbench.evaluate.table import Table, answers

LEVEL = 6  # zlib's default


@metric(unit="nats/token/byte", better="reference")
def zlib_ratio(table: Table, reference: Table | None = None, *, end: bool = True) -> Float[np.ndarray, "example"]:
    """NLL of each answer over the size of its compressed text. Higher = less of a member.

    (-(1/|y|) * sum_t ln p(y_t | x, y_<t)) / |zlib(y)|, |zlib(y)| the bytes of the UTF-8 text compressed at level 6: text that is
    easy for anybody, such as a repetition, is not taken for a member. The numerator is the mean, as in OpenUnlearning and in the
    paper, whose log-perplexity it is. The sum in its place would be nats per compressed byte and another ranking, for the mean over
    a size favors long answers. Libraries that stand in for zlib may compress to other sizes.

    Args:
        table: a token table or Answers, with the true texts.   reference: not used.
        end: whether the end-of-text token counts in the NLL; it is not in the text.
    Returns: [example] >= 0.
    Raises: DataError naming a row without its true text; else as `nll`.
    Reference: Carlini et al. 2021, arXiv:2012.07805.
    """
    values = mean_nll("zlib_ratio", table, variant=RESPONSE, end=end)
    given = answers(table)
    sizes = [_size(given.name, *row) for row in zip(given.ids, given.truth, strict=True)]
    return values / np.array(sizes, dtype=np.float64)


def _size(name: str, id: str, text: str | None) -> int:
    if text is None:
        raise DataError(f"zlib_ratio: {name!r} has no true text for row {id!r}; use a token table, or a log with texts.")
    return len(zlib.compress(text.encode("utf-8"), LEVEL))
