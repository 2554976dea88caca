"""A value vector on a card: its tokens, and the snippets of text where its coefficient is largest."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from workbench.core.components import Place
from workbench.core.numerics import check_finite, wide
from workbench.core.picture import table
from workbench.core.runtime import progress
from workbench.core.svg import BLUE, ORANGE, clean, number, tag
from workbench.load.batches import Batch, Encoded, by_length, collate
from workbench.load.models import Model
from workbench.load.texts import encode_texts
from workbench.trace.forward import check_eval, logits
from workbench.trace.hooks import patch

AROUND = 10  # tokens on each side of the one where the coefficient is largest
_STRONGEST = 0.6  # opacity of the largest coefficient, so that the text over it can be read


class Snippet(NamedTuple):
    """A stretch of a text. coefficient: m_j at its peak; tokens, coefficients: of the stretch; text: which text it is from."""

    coefficient: float
    text: int
    tokens: tuple[str, ...]
    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class Card:
    """One value vector: where it is, how long, what it writes, and where it fires.

    norm: ||v_j||.   mean_logit: over the vocabulary.   top, bottom: (token, logit).   read_as: the norm convention of the logits.
    snippets: largest |coefficient| first; None if no texts were read.
    """

    layer: int
    neuron: int
    norm: float
    mean_logit: float
    top: tuple[tuple[str, float], ...]
    bottom: tuple[tuple[str, float], ...]
    read_as: str
    snippets: tuple[Snippet, ...] | None = None

    def __repr__(self) -> str:
        said = " ".join(visible(token) for token, _ in self.top[:8])
        return f"Card(value vector {self.layer}/{self.neuron}, norm {number(self.norm)}: {clean(said)})"

    def _repr_html_(self) -> str:
        head = tag(
            "p",
            tag("b", f"value vector {self.layer}/{self.neuron}"),
            f": norm {number(self.norm)}, mean logit {number(self.mean_logit)}, logits {self.read_as}",
        )
        rows = [(visible(t), number(x), visible(b), number(y)) for (t, x), (b, y) in zip(self.top, self.bottom, strict=True)]
        return str(head + table(("top token", "logit", "bottom token", "logit"), rows) + self._snippets())

    def _snippets(self) -> Markup:
        if self.snippets is None:
            return Markup("")
        most = max((abs(m) for snippet in self.snippets for m in snippet.coefficients), default=0.0)
        lines = [
            tag(
                "p",
                tag("span", f"{number(s.coefficient)} ", style="opacity:0.7"),
                *(_colored(token, m, most) for token, m in zip(s.tokens, s.coefficients, strict=True)),
                tag("span", f" text {s.text}", style="opacity:0.7"),
                style="margin:0.3em 0",
            )
            for s in self.snippets
        ]
        return tag("p", "coefficient m (orange > 0, blue < 0) where it is largest in size:") + Markup("").join(lines)


def visible(token: str) -> str:
    """A token with its white space made visible: a space as ␣, a line break as ⏎, a tab as ⇥."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def _colored(token: str, coefficient: float, most: float) -> Markup:
    color = ORANGE if coefficient > 0 else BLUE
    red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
    opacity = _STRONGEST * abs(coefficient) / most if most else 0.0
    style = f"background-color:rgba({red},{green},{blue},{opacity:.3f})"
    return tag("span", token.replace("\n", "⏎"), title=f"{coefficient:.3g}", style=style)


@torch.no_grad()
def snippets(
    model: Model,
    places: Sequence[Place],
    texts: Sequence[str],
    *,
    count: int = 5,
    max_tokens: int | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> list[tuple[Snippet, ...]]:
    """The stretches of text where each value vector's coefficient m_j (site mlp.post) is largest in size, one a text at most.

    One forward pass over the texts for all vectors; of every batch the coefficients of these vectors alone are kept, and of all
    texts `count` a vector. Tokens before the text's own (a beginning-of-text token) do not count.

    Args: max_tokens: as in `load.texts.encode_texts`.
    Returns: by place, largest first; equal ones in the order of the texts.
    Raises: what `encode_texts` raises; NumericsError naming the vector if a coefficient is not finite.
    """
    check_eval(model)
    rows = encode_texts(model, texts, max_tokens=max_tokens)
    best: list[list[tuple[float, int, np.ndarray]]] = [[] for _ in places]
    for chosen, batch, seen in coefficients(model, places, rows, batch_tokens=batch_tokens, show=show):
        for j, place in enumerate(places):
            check_finite(f"coefficients of value vector {place.layer}/{place.index}", seen[j])
            for i, values, real in zip(chosen, seen[j], batch.attention, strict=True):
                own = values[real].float().cpu().numpy()
                heapq.heappush(best[j], (float(np.abs(own[rows[i].start :]).max()), -i, own))
                if len(best[j]) > count:
                    heapq.heappop(best[j])
    return [tuple(_cut(model, rows[-i], -i, own) for _, i, own in sorted(found, reverse=True, key=_rank)) for found in best]


def _rank(entry: tuple[float, int, np.ndarray]) -> tuple[float, int]:
    return entry[:2]


def coefficients(
    model: Model, places: Sequence[Place], rows: Sequence[Encoded], *, batch_tokens: int, show: bool
) -> Iterator[tuple[list[int], Batch, Float[Tensor, "place batch pos"]]]:
    """Batch by batch: which rows it holds, the padded batch, and m_j of every place at every position."""
    by_layer: dict[int, list[int]] = {}
    for j, place in enumerate(places):
        by_layer.setdefault(place.layer, []).append(j)
    for chosen in progress(list(by_length(rows, max_tokens=batch_tokens)), label="coefficients", show=show):
        batch = collate([rows[i] for i in chosen], device=model.device)
        seen = torch.empty(len(places), *batch.tokens.shape, dtype=torch.float32)

        def keep(wanted: list[int], into: Tensor = seen) -> Callable[[Tensor], None]:
            def read(value: Tensor) -> None:
                into[wanted] = wide(value[..., [places[j].index for j in wanted]]).movedim(-1, 0).to(into)

            return read

        with patch(model, {f"blocks.{layer}.mlp.post": keep(wanted) for layer, wanted in by_layer.items()}):
            logits(model, batch)
        yield chosen, batch, seen


def _cut(model: Model, row: Encoded, text: int, values: np.ndarray) -> Snippet:
    peak = row.start + int(np.abs(values[row.start :]).argmax())
    first, last = max(row.start, peak - AROUND), min(len(row.tokens), peak + AROUND + 1)
    words = tuple(str(model.tokenizer.decode([token])) for token in row.tokens[first:last])
    return Snippet(float(values[peak]), text, words, tuple(values[first:last].tolist()))
