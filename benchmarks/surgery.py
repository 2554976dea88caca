"""Model Surgery at the shapes of Llama-2-7B: choosing the rows, and applying and undoing the change, on random bfloat16 weights.

The published procedure is re-implemented as the floor of the choice: `cosine_similarity` of every layer's rows, then a Python loop
that takes each value out with `.item()`, and a sort of the list. The floor of applying and undoing is a copy of all touched rows,
kept and then written back: no exact undo can do without.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Row
from benchmarks.timing import peak_gib, seconds, versus
from workbench.core.change import Change, Rows
from workbench.core.delta import Applied, Delta, apply, undo
from workbench.core.records import Provenance
from workbench.edit.lines import Measured, products
from workbench.edit.surgery import Rule, select

LAYERS, D_MLP, D_MODEL = 32, 11_008, 4_096
CHOSEN = 16_384
Published = list[tuple[float, int, int]]


def weights(layer: int, device: torch.device) -> Tensor:
    """One layer's random gate projection, bfloat16, [d_mlp, d_model]."""
    source = torch.Generator(device=device).manual_seed(layer)
    return torch.empty(D_MLP, D_MODEL, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=source)


def published(weight: Tensor, probe: Tensor, layer: int, found: Published) -> None:
    """One layer of the published loop: every row's cosine out of the tensor, one by one."""
    cosine = torch.cosine_similarity(weight, probe.to(weight), dim=1) * -1
    values, indices = cosine.topk(len(cosine))
    for value, index in zip(values, indices, strict=True):
        found.append((value.item(), layer, int(index.item())))


def surgery_selection(device: torch.device, *, layers: int = LAYERS) -> Iterator[Row]:
    """Choosing the rows: one product and the norms a layer and one order, against the loop. One layer in memory at a time."""
    probe = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    probe = (probe / probe.norm()).to(device)
    ours, theirs, found, listed = 0.0, 0.0, [], []
    for layer in range(layers):
        weight = weights(layer, device)
        if layer == 0:  # warm-up
            products(weight, 0, probe)
            torch.cosine_similarity(weight, probe.to(weight), dim=1)
        ours += seconds(lambda weight=weight: found.append(Measured(*products(weight, 0, probe))), device)
        theirs += seconds(lambda weight=weight, layer=layer: published(weight, probe, layer, listed), device)
    count = CHOSEN * layers // LAYERS
    ours += seconds(lambda: select(found, Rule("bottom", "global", count, 0)), device)
    theirs += seconds(lambda: sorted(listed, reverse=True)[:count], device)
    peak = peak_gib(lambda: products(weights(0, device), 0, probe), device)
    name = f"surgery: {count:,} of {layers * D_MLP:,} gate rows chosen"
    yield Row(name, "published loop with .item()", ours, theirs, "≤ 0.1", peak)


class Matrices:
    """What `apply` needs of a model, around one gate projection a layer; its fingerprint is given, not computed."""

    def __init__(self, device: torch.device, layers: int) -> None:
        self.hf: Any = nn.Module()
        for layer in range(layers):
            self.hf.register_parameter(f"gate_{layer}", nn.Parameter(weights(layer, device), requires_grad=False))
        self.tokenizer: Any = None
        self.ledger: list[Applied] = []
        self.views: list[MutableMapping[str, nn.Module]] = []

    def fingerprint(self) -> str:
        return "random"

    base_fingerprint = fingerprint


def surgery_apply(device: torch.device, *, layers: int = LAYERS) -> Iterator[Row]:
    """Applying and undoing the change of the chosen rows, against copying these rows out of the weights and back."""
    model = Matrices(device, layers)
    source, each = torch.Generator().manual_seed(0), CHOSEN // LAYERS
    changes: dict[str, Change] = {}
    plain: list[tuple[Tensor, Tensor]] = []
    for name, weight in model.hf.named_parameters():
        rows = torch.randperm(D_MLP, generator=source)[:each].sort().values
        changes[name] = Rows(rows, 0.01 * torch.randn(each, D_MODEL, generator=source), (D_MLP, D_MODEL))
        plain.append((weight.data, rows.to(device)))
    delta = Delta(changes, Provenance("surgery", "random"))

    def there_and_back() -> None:
        apply(model, delta)
        undo(model, delta)

    def copies() -> None:
        kept = [weight.index_select(0, rows) for weight, rows in plain]
        for (weight, rows), copy in zip(plain, kept, strict=True):
            weight.index_copy_(0, rows, copy)

    took, bare = versus(there_and_back, copies, device)
    name = f"surgery: apply and undo {each * layers:,} rows"
    yield Row(name, "copying the rows out and back", took, bare, "≤ 3", peak_gib(there_and_back, device))


def main() -> None:
    """Print both rows: python -m benchmarks.surgery [device]."""
    import sys

    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu")
    for row in (*surgery_selection(device), *surgery_apply(device)):
        ratio = row.seconds / row.floor_seconds
        print(f"{row.job} | {row.floor} | {row.seconds:.3f} | {row.floor_seconds:.3f} | {ratio:.3f} | {row.goal}")


if __name__ == "__main__":
    main()
