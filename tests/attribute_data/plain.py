"""Rows as the references take them, and rows from texts."""

from workbench.core.records import Example, Examples
from workbench.load.batches import encode_all


def plain(model, rows):
    """(tokens, start) of every row."""
    return [(row.tokens, row.start) for row in encode_all(model, rows)]


def examples(name, *pairs):
    """Rows of (prompt, response), named by the set's first letter."""
    return Examples([Example(f"{name[0]}{i}", prompt, response) for i, (prompt, response) in enumerate(pairs)], name)
