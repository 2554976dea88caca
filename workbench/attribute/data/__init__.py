"""Which training rows: the influence of every training row on every query, and back to weights."""
