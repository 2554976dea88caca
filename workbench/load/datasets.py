"""Rows from TOFU, from one's own JSON lines or parquet, or from the Hugging Face hub.

Accepted keys, TOFU's beside ours: prompt | question, response | answer, paraphrase | paraphrased_answer,
perturbed | perturbed_answer, id. Preference pairs: prompt, chosen, rejected, id.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.core.errors import DataError, InputError
from workbench.core.records import Example, Examples, PreferencePair, PreferencePairs
from workbench.core.store import existing, open_text

TOFU_HUB = "locuslab/TOFU"
_ALIASES = {
    "prompt": ("prompt", "question"),
    "response": ("response", "answer"),
    "paraphrase": ("paraphrase", "paraphrased_answer"),
    "perturbed": ("perturbed", "perturbed_answer"),
}


def examples(source: str | Path, *, root: str | Path | None = None) -> Examples:
    """Rows of prompt and response.

    Args:
        source: a .jsonl, .json (one object a line) or .parquet file; "tofu:SPLIT" for a split of TOFU under `root`, or
            from the hub without it ("tofu:forget10"); "hub:OWNER/NAME" or "hub:OWNER/NAME:CONFIG" for another data set.
        root: folder with TOFU's files; SPLIT_perturbed is preferred to SPLIT, for it adds paraphrase and false answers.
    Raises: DataError naming file and line for a broken row; InputError for a missing file or an unreachable hub.
    """
    name = str(source)
    return Examples((_example(row, where, i) for i, (row, where) in enumerate(_rows(name, root))), name)


def pairs(source: str | Path) -> PreferencePairs:
    """Rows of prompt, chosen and rejected; sources as in `examples`, without TOFU.

    Raises: DataError naming file and line for a broken row.
    """
    name = str(source)
    return PreferencePairs(
        (
            PreferencePair(str(row.get("id", i)), *(text_of(row, (key,), where) for key in ("prompt", "chosen", "rejected")))
            for i, (row, where) in enumerate(_rows(name, None))
        ),
        name,
    )


def _rows(name: str, root: str | Path | None) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Every row with the words that say where it stands."""
    if name.startswith("tofu:"):
        split = name.removeprefix("tofu:")
        if root is None:
            plain = split == "full" or re.fullmatch(r"retain\d\d", split)  # TOFU has no false answers for these
            yield from _hub_rows(TOFU_HUB, split if plain else f"{split}_perturbed")
            return
        name = str(_tofu_file(existing(root), split))
    elif name.startswith("hub:"):
        _, repository, *config = name.split(":")
        yield from _hub_rows(repository, config[0] if config else None)
        return
    path = existing(name)
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix in (".jsonl", ".json"):
        yield from json_rows(path)
    else:
        raise InputError(f"{path}: expected a .jsonl, .json or .parquet file of rows.")


def _tofu_file(root: Path, split: str) -> Path:
    for stem in (f"{split}_perturbed", split):
        for suffix in (".jsonl", ".json"):
            if (root / (stem + suffix)).exists():
                return root / (stem + suffix)
    there = sorted(p.stem for p in root.glob("*.json*"))
    raise InputError(f"tofu:{split}: no {split}.jsonl under {root}. There: {', '.join(there) or 'no .json or .jsonl file'}.")


def json_rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Every object of a JSON lines file, with file and line for messages; DataError for a line that is none."""
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: not a JSON object ({error.msg} at column {error.colno}).") from error
            if not isinstance(row, dict):
                raise DataError(f"{where}: a {type(row).__name__}, expected an object with prompt and response.")
            yield row, where


def _parquet_rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file ({error}).") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield row, f"{path}, row {number}"


def _hub_rows(repository: str, config: str | None) -> Iterator[tuple[Mapping[str, Any], str]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        table = load_dataset(repository, config, split="train")
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            f"data set {repository!r}: the Hugging Face hub could not be reached or does not have it. Check the name and the "
            "network (HF_HUB_OFFLINE must not be set), or give a local file or root=."
        ) from error
    for number, row in enumerate(table):
        yield dict(row), f"{repository}, row {number}"


def text_of(row: Mapping[str, Any], keys: Sequence[str], where: str) -> str:
    """The text under the first of `keys` that the row has; DataError naming file and line if there is none."""
    value = next((row[key] for key in keys if row.get(key) is not None), None)
    if not isinstance(value, str) or not value:
        found = ", ".join(map(str, row)) or "nothing"
        raise DataError(f"{where}: no text under {' or '.join(map(repr, keys))} (the row has {found}).")
    return value


def _example(row: Mapping[str, Any], where: str, number: int) -> Example:
    optional = {key: next((row[k] for k in _ALIASES[key] if row.get(k)), None) for key in ("paraphrase", "perturbed")}
    perturbed = optional["perturbed"] or ()
    if isinstance(perturbed, str) or not all(isinstance(text, str) and text for text in perturbed):
        raise DataError(f"{where}: 'perturbed' must be a list of texts.")
    if optional["paraphrase"] is not None and not isinstance(optional["paraphrase"], str):
        raise DataError(f"{where}: 'paraphrase' must be a text.")
    return Example(
        id=str(row.get("id", number)),
        prompt=text_of(row, _ALIASES["prompt"], where),
        response=text_of(row, _ALIASES["response"], where),
        paraphrase=optional["paraphrase"],
        perturbed=tuple(perturbed),
    )
