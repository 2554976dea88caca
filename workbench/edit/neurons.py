"""Ablation of MLP neurons: what they write becomes zero, or what they write on average."""

from collections.abc import Sequence

from workbench.core.components import Place
from workbench.core.delta import Delta
from workbench.core.registry import edit
from workbench.edit.hold import How, Unit, check_kind, hold
from workbench.edit.means import Texts
from workbench.edit.places import check_control, chosen_of, elsewhere, listed, tensor_of
from workbench.load.models import Model


@edit(where="places", unit="neuron")
def ablate_neurons(
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
    """Hold the coefficients of some MLP neurons at a constant.

    With m_j the coefficient of neuron j (site mlp.post: what its value vector v_j is multiplied by), MLP(x) = sum_j m_j v_j + b:

        zero       m_j v_j <- 0
        mean       m_j v_j <- E[m_j] v_j            E over the tokens of `texts`
        resample   m_j v_j <- m_j(t) v_j            t one token of `texts`, the same for all neurons and at every position

    Args:
        places: (layer, neuron), from 0.
        kind: zero and the others in the sense above. Zero is done in the weights. A constant goes into the bias of the
            down-projection where it has one (GPT-2, NeoX), rounded once to the model's dtype; elsewhere (Llama) it is a hook at
            mlp.post, which works in generation and in views, but in no exported checkpoint. provenance.notes["by"] says which.
        texts: the declared set, Examples (prompt and answer) or texts, that means are over and the token is drawn from.
        bos: count the special tokens before a text too.
        control: "place", as many other neurons of every layer by chance; "change", the same neurons, a random change as large.
        seed: of the drawn token and of the controls. One draw is one sample: compare several seeds.
    Returns: columns of W_out (rows in GPT-2), biases, hooks. Its values are float32: in a float64 model zero is 1e-8 of the weight.
    Raises: InputError for a neuron that does not exist, no place, the same twice, or missing texts; ModelError in a mixture of
        experts.
    Reference: mean ablation, Wang et al. 2023, arXiv:2211.00593; resampling, Chan et al. 2022, causal scrubbing, which draws a new
        token for every run and position where this takes one.
    """
    check_control(control)
    check_kind(kind)
    sizes = [len(model.sites.value_vectors(layer).indices()) for layer in range(model.n_layers)]
    chosen = chosen_of("neuron", places, sizes)
    options = {"places": listed(chosen), "kind": kind, "bos": bos, "control": control}
    if control == "place":
        chosen = elsewhere(chosen, {layer: range(sizes[layer]) for layer in chosen}, seed=seed)
    units = [Unit(f"blocks.{layer}.mlp.post", f"blocks.{layer}.mlp.out", tensor_of(found)) for layer, found in chosen.items()]
    how = How(kind, texts, bos, seed, batch_tokens)
    return hold(model, "ablate_neurons", units, how, options=options | {"edited": listed(chosen)}, control=control)
