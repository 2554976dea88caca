"""Slow truths about edits, line by line and row by row of text, in float64; nothing of workbench.

Where weights lie is written by hand in tests/reference/units.py, modules here. Models are those of tests/reference/tiny_models.py.
"""

import math

import torch

from tests.reference.units import ARCHITECTURES, D, M

LAYERS, HEADS, HEAD = 3, 4, 8
KINDS = {"gate": "gate_row", "up": "up_row", "in": "in_row", "down": "down_column"}
MLP_OUT = {
    "llama": "model.layers.{}.mlp.down_proj",
    "phi3": "model.layers.{}.mlp.down_proj",
    "gemma2": "model.layers.{}.mlp.down_proj",
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "opt": "model.decoder.layers.{}.fc2",
}
ATTN_OUT = {
    "llama": "model.layers.{}.self_attn.o_proj",
    "phi3": "model.layers.{}.self_attn.o_proj",
    "gemma2": "model.layers.{}.self_attn.o_proj",
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
    "opt": "model.decoder.layers.{}.self_attn.out_proj",
}


def lines(architecture, matrix, layer):
    """Every line of a matrix as its D coordinates in order: [(parameter, i, j), ...] by line number."""
    part = ARCHITECTURES[architecture]
    if matrix in KINDS:
        return [sorted(part(layer, n)[KINDS[matrix]], key=lambda c: (c[1], c[2])) for n in range(M)]
    found = []
    for head in range(HEADS):
        block = sorted(part(layer, head)[matrix]) if _has(architecture, matrix, layer, head) else []
        axis = 1 if len({c[1] for c in block}) == HEAD else 2  # which coordinate counts the lines: 8 of them, 32 entries each
        for number in sorted({c[axis] for c in block}):
            found.append([c for c in block if c[axis] == number])
    return found


def _has(architecture, matrix, layer, head):
    """Key-value heads are fewer than query heads in Llama and Phi-3 (2 of 4), and one in Falcon."""
    served = {"llama": 2, "phi3": 2, "falcon": 4}.get(architecture, 1) if matrix in "kv" else 1
    return head < HEADS // served


def cosine(weights, coordinates, direction):
    """w . u / ||w|| of one line."""
    w = [float(weights[name][i, j]) for name, i, j in coordinates]
    norm = math.sqrt(math.fsum(x * x for x in w))
    return math.fsum(x * u for x, u in zip(w, direction, strict=True)) / norm, norm


def surgery(weights, architecture, matrix, directions, count, *, choose="bottom", layers=range(LAYERS), per_layer=False):
    """The chosen lines as {(layer, line): (coordinates, norm, cosine)}: sorted by cosine, the lower layer and line first."""
    every = []
    for layer in layers:
        for number, coordinates in enumerate(lines(architecture, matrix, layer)):
            value, norm = cosine(weights, coordinates, directions[layer])
            every.append((value if choose == "bottom" else -value, layer, number, coordinates, norm, value))
    every.sort(key=lambda line: line[:3])
    if per_layer:
        share = [count // len(layers) + (i < count % len(layers)) for i in range(len(layers))]
        taken = [line for layer, n in zip(layers, share, strict=True) for line in [x for x in every if x[1] == layer][:n]]
    else:
        taken = every[:count]
    return {(layer, number): (coordinates, norm, value) for _, layer, number, coordinates, norm, value in taken}


def inputs(hf, module, tokens):
    """What goes into a module in a pass over one row, [position, feature] in float64."""
    seen = []
    handle = hf.get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double()))
    with torch.no_grad():
        hf(input_ids=torch.tensor([tokens]), use_cache=False)
    handle.remove()
    return seen[0].reshape(len(tokens), -1)


def outputs(hf, module, tokens):
    """What comes out of a module in a pass over one row, [position, feature] in float64."""
    seen = []

    def hook(_, args, output):
        del args
        seen.append((output[0] if isinstance(output, tuple) else output).detach().double())

    handle = hf.get_submodule(module).register_forward_hook(hook)
    with torch.no_grad():
        hf(input_ids=torch.tensor([tokens]), use_cache=False)
    handle.remove()
    return seen[0].reshape(len(tokens), -1)


def mean(hf, read, module, rows):
    """Mean over all tokens of all rows of `read(hf, module, row)`, one row at a time."""
    total, n = 0.0, 0
    for tokens in rows:
        for vector in read(hf, module, tokens):
            total = total + vector
            n += 1
    return total / n


def project(weights, direction, *, axis):
    """W - r r' W by entries, where `axis` of W runs over the features of r."""
    w, r = weights.double(), direction.double()
    out = w.clone()
    for n in range(w.shape[1 - axis]):
        line = w[:, n] if axis == 0 else w[n]
        new = line - r * sum(r[i] * line[i] for i in range(len(r)))
        if axis == 0:
            out[:, n] = new
        else:
            out[n] = new
    return out


assert D == HEADS * HEAD
