"""How alike two answers are as tokens, without a model: edit distance and equal beginnings."""

from collections.abc import Hashable, Sequence


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Levenshtein distance of two sequences: the fewest insertions, deletions and exchanges that turn one into the other.

    A column of the table of distances is held as the bits of two integers, where the entry below is larger (up) or smaller (down)
    by one, so a whole column is one step of integer arithmetic.

    Reference: Myers 1999, doi:10.1145/316542.316550, as put by Hyyrö 2003. The same number as the plain table, which the code of
    CHES fills entry by entry.
    """
    if not a:
        return len(b)
    where: dict[Hashable, int] = {}
    for i, token in enumerate(a):
        where[token] = where.get(token, 0) | 1 << i
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = full, 0, len(a)
    for token in b:
        equal = where.get(token, 0)
        diagonal = ((((equal & up) + up) ^ up) | equal | down) & full
        right = down | (~(diagonal | up) & full)
        left = diagonal & up
        distance += bool(right & last) - bool(left & last)
        right = (right << 1 | 1) & full
        up = (left << 1 & full) | (~(diagonal | right) & full)
        down = right & diagonal
    return distance


def starts_alike(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """How many first tokens two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
