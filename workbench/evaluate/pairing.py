"""Two texts of one example, for the metrics that compare what was generated with something else."""

from workbench.core.errors import DataError, InputError
from workbench.evaluate.table import Table, answers


def paired(name: str, table: Table, reference: Table | None) -> list[tuple[str, str]]:
    """(text to compare with, generated text) of every example: the reference's generated text, or without one the true answer.

    Raises: InputError if a text is missing; DataError if the reference holds other rows, or a text to compare with has no word.
    """
    mine = answers(table)
    said = mine.truth if reference is None else mine.aligned(answers(reference)).generated
    for id, one, made in zip(mine.ids, said, mine.generated, strict=True):
        if made is None or one is None:
            lacks = mine.name if made is None or reference is None else f"the reference of {mine.name}"
            raise InputError(
                f"{name}: {lacks!r} has no text for row {id!r}. Read the set with generate=200, or use a log with texts."
            )
        if not one.split():
            raise DataError(f"{name}: {mine.name!r}, row {id!r}: the text to compare with has no word, so nothing can be shared.")
    return [(one, made) for one, made in zip(said, mine.generated, strict=True) if one is not None and made is not None]
