"""Products and norms of per-example gradients, influence and edits, against bare passes over the same rows."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.cases import Row, Sets, batches, forward_backward, forward_only
from benchmarks.timing import peak_gib, versus
from workbench.attribute.data import edit_to_data, gradient_similarity
from workbench.core.delta import Delta
from workbench.core.numerics import generator
from workbench.core.records import Examples, Provenance
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.trace.dots import gradient_dots, gradient_norms, row_gradients

QUERIES = 16


def influence(model: Model, sets: Sets, tokens: int, *, repeats: int = 5) -> Iterator[Row]:
    """Every job over the rows of both sets; directions are gradients of the first rows, made beforehand but for the similarity."""
    examples = Examples([*sets.forget, *sets.retain], "both sets")
    rows = encode_all(model, examples)
    groups = batches(model, rows, tokens)
    directions = row_gradients(model, rows[:QUERIES], batch_tokens=tokens)
    backward = lambda: forward_backward(model, groups)  # noqa: E731
    jobs: list[tuple[str, Callable[[], object]]] = [
        ("gradient products, 1 direction", lambda: gradient_dots(model, rows, directions[:1], batch_tokens=tokens)),
        (f"gradient products, {QUERIES} directions", lambda: gradient_dots(model, rows, directions, batch_tokens=tokens)),
        ("gradient norms", lambda: gradient_norms(model, rows, batch_tokens=tokens)),
        (
            f"gradient similarity, {QUERIES} queries",
            lambda: gradient_similarity(model, examples[:QUERIES], examples, batch_tokens=tokens),
        ),
    ]
    for name, job in jobs:
        took, bare = versus(job, backward, model.device, repeats=repeats)
        yield Row(name, "forward+backward", took, bare, "none set", peak_gib(job, model.device))
    delta = _edit(model)
    for method in ("forward", "difference"):

        def move(method: str = method) -> None:
            edit_to_data(model, delta, examples, method=method, batch_tokens=tokens)  # pyright: ignore[reportArgumentType]

        took, bare = versus(move, lambda: forward_only(model, groups), model.device, repeats=repeats)
        yield Row(f"rows an edit moves, {method}", "one forward", took, bare, "none set", peak_gib(move, model.device))


def _edit(model: Model) -> Delta:
    """A random change of every weight, a thousandth of its size."""
    source = generator(0)
    moved = {
        name: 1e-3 * float(p.detach().float().std()) * torch.randn(p.shape, generator=source)
        for name, p in model.hf.named_parameters()
    }
    return Delta.of(moved, Provenance("random", model.fingerprint()))
