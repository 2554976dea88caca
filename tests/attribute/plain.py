"""What the tests of weight scores share."""

from workbench.load.batches import encode_all


def plain(model, rows):
    """Rows as the reference takes them: (tokens, start)."""
    return [(row.tokens, row.start) for row in encode_all(model, rows)]
