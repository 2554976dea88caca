"""Queries that are training rows too, of which an influence should say so."""

from workbench.core.records import Examples


def same_rows(query: Examples, train: Examples) -> dict[str, str]:
    """A note for the provenance that says how many queries are also a training row, by prompt and response; empty if none is."""
    seen = {(row.prompt, row.response) for row in train}
    both = sum((row.prompt, row.response) in seen for row in query)
    if not both:
        return {}
    said = "1 query is a training row: it is its" if both == 1 else f"{both} queries are training rows: they are their"
    return {"same rows": f"{said} own best match"}
