"""What a set of texts does at some places, in one streaming pass: the mean activation, one token's, the mean norm.

All real tokens count once, whatever the batches: of rows with prompt and answer both, padding never. Without `bos` the special
tokens before the text are left out; models park activations a hundred times larger there. Sums are float64. A place is an
`ActivationChange` whose values do not matter yet, so that what is read is the very thing that will be held or moved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.activation import ActivationChange, hook_tensor
from workbench.core.errors import DataError, InputError, NumericsError
from workbench.core.numerics import generator, wide
from workbench.core.records import Examples
from workbench.core.store import text_sha256
from workbench.load.batches import Batch, Encoded, by_length, collate, encode_all
from workbench.load.models import Model
from workbench.load.texts import encode_texts
from workbench.trace.forward import logits

Texts = Examples | Sequence[str]


@dataclass(frozen=True)
class Declared:
    """The set an edit takes its means over. tokens: how many count.   fingerprint: of the texts.

    rows: `start` is the first token that counts.
    """

    rows: list[Encoded]
    tokens: int
    fingerprint: str


def declared(model: Model, texts: Texts | None, *, job: str, bos: bool) -> Declared:
    """The texts as tokens.

    Raises: InputError if there are none given; DataError for an empty list, or a text without a token that counts.
    """
    if texts is None:
        raise InputError(
            f"{job} takes means over a declared set; give texts, Examples or a list of str, that the model usually reads."
        )
    if isinstance(texts, Examples):
        found, fingerprint = encode_all(model, texts), texts.fingerprint()
        special = set(model.tokenizer.all_special_ids)
        found = [row._replace(start=next((i for i, t in enumerate(row.tokens) if t not in special), 0)) for row in found]
    else:
        found, fingerprint = list(encode_texts(model, texts)), text_sha256(list(texts))
    rows = [row._replace(start=0) for row in found] if bos else found
    return Declared(rows, sum(len(row.tokens) - row.start for row in rows), fingerprint)


def mean_activations(
    model: Model, places: Sequence[ActivationChange], texts: Declared, *, batch_tokens: int = 4096
) -> list[Float[Tensor, "k"]]:
    """Mean over the tokens of the features `index` of each place, float64."""
    sums = [torch.zeros(len(place.index), dtype=torch.float64) for place in places]

    def add(i: int, x: Float[Tensor, "token k"]) -> None:
        sums[i] += x.sum(0, dtype=torch.float64).cpu()

    _read(model, places, texts.rows, add, batch_tokens)
    return [_finite(total / texts.tokens, place.site) for total, place in zip(sums, places, strict=True)]


def one_token(
    model: Model, places: Sequence[ActivationChange], texts: Declared, *, seed: int
) -> tuple[list[Float[Tensor, "k"]], tuple[str, int]]:
    """The features `index` of each place at one token, drawn with equal chances from all of them; and its row and position."""
    number = int(torch.randint(texts.tokens, (1,), generator=generator(seed)))
    for row in texts.rows:
        own = len(row.tokens) - row.start
        if number < own:
            break
        number -= own
    else:
        raise DataError("resample: the set has fewer tokens than were counted.")
    found: dict[int, Tensor] = {}

    def keep(i: int, x: Float[Tensor, "token k"]) -> None:
        found[i] = x[number].double().cpu()

    _read(model, places, [row], keep, len(row.tokens))
    return [_finite(found[i], place.site) for i, place in enumerate(places)], (row.id, row.start + number)


def mean_norm(model: Model, place: ActivationChange, texts: Declared, *, batch_tokens: int = 4096) -> float:
    """Mean over the tokens of the norm of the features `index` of a place."""
    total = torch.zeros((), dtype=torch.float64)

    def add(i: int, x: Float[Tensor, "token k"]) -> None:
        del i
        total.add_(torch.linalg.vector_norm(x, dim=-1).sum(dtype=torch.float64).cpu())

    _read(model, [place], texts.rows, add, batch_tokens)
    return float(_finite(total / texts.tokens, place.site))


def with_values(place: ActivationChange, values: Float[Tensor, "k"]) -> ActivationChange:
    """The place with what it is to be held at, or moved by."""
    return replace(place, values=values.float())


@torch.no_grad()
def _read(
    model: Model,
    places: Sequence[ActivationChange],
    rows: Sequence[Encoded],
    visit: Callable[[int, Tensor], None],
    batch_tokens: int,
) -> None:
    """Run the rows once, and hand each place's features at every token that counts to `visit`, [token k], float32 or wider."""
    batch: Batch

    def reader(i: int, place: ActivationChange) -> Callable[[Tensor], None]:
        def read(x: Tensor) -> None:
            whole = x if place.part is None else x[..., slice(*place.part)]
            real = whole.reshape(-1, whole.shape[-1])[batch.answer.reshape(-1)]  # OPT flattens batch and positions in its MLP
            visit(i, wide(real[:, place.index.to(real.device)]))

        return read

    handles = []
    try:
        for i, place in enumerate(places):
            handles.append(hook_tensor(model.hf.get_submodule(place.module), place.side, reader(i, place), place.site))
        for chosen in by_length(rows, max_tokens=batch_tokens):
            batch = collate([rows[j] for j in chosen], device=model.device)
            logits(model, batch)
    finally:
        for handle in handles:
            handle.remove()


def _finite(value: Tensor, site: str) -> Tensor:
    if not bool(torch.isfinite(value).all()):
        raise NumericsError(
            f"{site}: the mean over the texts is NaN or infinite. The weights may hold NaN, or half precision overflowed: load the "
            "model with dtype='float32'."
        )
    return value
