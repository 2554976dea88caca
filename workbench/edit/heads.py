"""Ablation of attention heads: what they hand to the output projection becomes zero, or what it is on average."""

from collections.abc import Sequence

import torch

from workbench.core.components import Place
from workbench.core.delta import Delta
from workbench.core.registry import edit
from workbench.edit.hold import How, Unit, check_kind, hold
from workbench.edit.lines import readers
from workbench.edit.means import Texts
from workbench.edit.places import check_control, chosen_of, elsewhere, listed
from workbench.load.models import Model


@edit(where="places", unit="head")
def ablate_heads(
    model: Model,
    places: Sequence[Place | tuple[int, int]],
    *,
    kind: str = "zero",
    texts: Texts | None = None,
    bos: bool = False,
    control: str = "",
    seed: int = 0,
    batch_tokens: int = 4096,
) -> Delta:
    """Hold the outputs of some attention heads at a constant.

    With z_h the output of head h (site attn.hook_z) and W_O^h its columns of the output projection, Attn(x) = sum_h W_O^h z_h + b:

        zero       W_O^h z_h <- 0
        mean       W_O^h z_h <- W_O^h E[z_h]        E over the tokens of `texts`
        resample   W_O^h z_h <- W_O^h z_h(t)        t one token of `texts`, the same for all heads and at every position

    Args:
        places: (layer, query head), from 0. Grouped-query attention changes nothing: keys and values stay as they are.
        kind: zero and the others in the sense above. Zero is done in the weights. A constant goes into the bias of the
            output projection where it has one, rounded once to the model's dtype; elsewhere it is a hook at attn.hook_z, which
            works in generation and in views, but in no exported checkpoint. provenance.notes["by"] says which.
        texts, bos, seed: as in `ablate_neurons`.
        control: "place", as many other heads of the same layers by chance; "change", the same heads, a random change as large.
    Returns: columns of W_O (rows in GPT-2), biases, hooks.
    Raises: InputError for a head that does not exist, no place, the same twice, or missing texts.
    Reference: mean ablation over a declared distribution, Wang et al. 2023, arXiv:2211.00593; their mean is taken position by
        position of one template, this one over all tokens.
    """
    check_control(control)
    check_kind(kind)
    n_heads = model.sites.n_heads
    chosen = chosen_of("head", places, [n_heads] * model.n_layers)
    options = {"places": listed(chosen), "kind": kind, "bos": bos, "control": control}
    if control == "place":
        chosen = elsewhere(chosen, {layer: range(n_heads) for layer in chosen}, seed=seed)
    units = []
    for layer, heads in chosen.items():
        reader = f"blocks.{layer}.attn.o"
        d_head = len(readers(model, reader)) // n_heads
        features = torch.cat([torch.arange(head * d_head, (head + 1) * d_head) for head in heads])
        units.append(Unit(f"blocks.{layer}.attn.hook_z", reader, features))
    how = How(kind, texts, bos, seed, batch_tokens)
    return hold(model, "ablate_heads", units, how, options=options | {"edited": listed(chosen)}, control=control)
