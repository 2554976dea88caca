"""The weights of a unit, written by hand from each architecture's own code as coordinates in its Hugging Face parameters.

For the models of tests/reference/tiny_models.py: d_model 32, 48 neurons, 4 query heads of size 8. Llama and Phi-3 have 2 key-value
heads, each serving 2 query heads; Falcon has 1 for all 4. A coordinate is (parameter, i, j); a unit is a set of them.
"""

from math import fsum

D, M, H = 32, 48, 8  # d_model, d_mlp, d_head


def rows(name, numbers, width):
    return {(name, i, j) for i in numbers for j in range(width)}


def columns(name, numbers, height):
    return {(name, i, j) for j in numbers for i in range(height)}


def span(first):
    """The H lines of a head that begin at `first`."""
    return range(first, first + H)


def _llama(layer, head_or_neuron):
    n, base = head_or_neuron, f"model.layers.{layer}."
    attention, mlp = base + "self_attn.", base + "mlp."
    return {
        "gate_row": rows(mlp + "gate_proj.weight", [n], D),
        "up_row": rows(mlp + "up_proj.weight", [n], D),
        "down_column": columns(mlp + "down_proj.weight", [n], D),
        "q": rows(attention + "q_proj.weight", span(H * n), D),
        "k": rows(attention + "k_proj.weight", span(H * n), D),
        "v": rows(attention + "v_proj.weight", span(H * n), D),
        "o": columns(attention + "o_proj.weight", span(H * n), D),
    }


def _phi3(layer, head_or_neuron):
    n, base = head_or_neuron, f"model.layers.{layer}."
    qkv, gate_up = base + "self_attn.qkv_proj.weight", base + "mlp.gate_up_proj.weight"
    return {
        "gate_row": rows(gate_up, [n], D),
        "up_row": rows(gate_up, [M + n], D),
        "down_column": columns(base + "mlp.down_proj.weight", [n], D),
        "q": rows(qkv, span(H * n), D),  # 32 rows of q, 16 of k, 16 of v
        "k": rows(qkv, span(32 + H * n), D),
        "v": rows(qkv, span(48 + H * n), D),
        "o": columns(base + "self_attn.o_proj.weight", span(H * n), D),
    }


def _gpt2(layer, head_or_neuron):
    n, base = head_or_neuron, f"transformer.h.{layer}."
    qkv = base + "attn.c_attn.weight"  # every matrix is stored [in, out]: 32 columns of q, 32 of k, 32 of v
    return {
        "in_row": columns(base + "mlp.c_fc.weight", [n], D),
        "down_column": rows(base + "mlp.c_proj.weight", [n], D),
        "q": columns(qkv, span(H * n), D),
        "k": columns(qkv, span(32 + H * n), D),
        "v": columns(qkv, span(64 + H * n), D),
        "o": rows(base + "attn.c_proj.weight", span(H * n), D),
    }


def _gpt_neox(layer, head_or_neuron):
    n, base = head_or_neuron, f"gpt_neox.layers.{layer}."
    qkv = base + "attention.query_key_value.weight"  # head by head: 8 rows of q, 8 of k, 8 of v
    return {
        "in_row": rows(base + "mlp.dense_h_to_4h.weight", [n], D),
        "down_column": columns(base + "mlp.dense_4h_to_h.weight", [n], D),
        "q": rows(qkv, span(24 * n), D),
        "k": rows(qkv, span(24 * n + 8), D),
        "v": rows(qkv, span(24 * n + 16), D),
        "o": columns(base + "attention.dense.weight", span(H * n), D),
    }


def _falcon(layer, head_or_neuron):
    n, base = head_or_neuron, f"transformer.h.{layer}."
    qkv = base + "self_attention.query_key_value.weight"  # 32 rows of q, then the 8 of k and the 8 of v that all heads share
    return {
        "in_row": rows(base + "mlp.dense_h_to_4h.weight", [n], D),
        "down_column": columns(base + "mlp.dense_4h_to_h.weight", [n], D),
        "q": rows(qkv, span(H * n), D),
        "k": rows(qkv, span(32 + H * n), D),
        "v": rows(qkv, span(40 + H * n), D),
        "o": columns(base + "self_attention.dense.weight", span(H * n), D),
    }


ARCHITECTURES = {"llama": _llama, "phi3": _phi3, "gpt2": _gpt2, "gpt_neox": _gpt_neox, "falcon": _falcon}
SERVED = {"llama": 2, "phi3": 2, "gpt2": 1, "gpt_neox": 1, "falcon": 4}  # query heads of a key-value head
GATED = ("llama", "phi3")


def kinds(architecture):
    """Every kind of unit of the architecture, with the number of them a layer has."""
    mlp = ("gate_row", "up_row") if architecture in GATED else ("in_row",)
    return {**dict.fromkeys((*mlp, "down_column", "neuron"), M), "head": 4, "kv_group": 4 // SERVED[architecture]}


def weights_of(architecture, unit, layer, index):
    """The coordinates of one unit."""
    part, served = ARCHITECTURES[architecture], SERVED[architecture]
    if unit == "neuron":
        return set().union(*(part(layer, index)[k] for k in ("gate_row", "up_row", "in_row", "down_column") if k in part(layer, 0)))
    if unit == "head":
        return set().union(*(part(layer, index)[k] for k in ("qkvo" if served == 1 else "qo")))
    if unit == "kv_group":
        heads = [part(layer, head)[k] for head in range(served * index, served * (index + 1)) for k in "qo"]
        return set().union(*heads, part(layer, index)["k"], part(layer, index)["v"])
    return part(layer, index)[unit]


def score(tensors, coordinates, reduce):
    """Sum or mean of the scores at the coordinates, correctly rounded (math.fsum)."""
    total = fsum(float(tensors[name][i, j]) for name, i, j in sorted(coordinates))
    return total / len(coordinates) if reduce == "mean" else total
