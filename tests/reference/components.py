"""Slow truths about components, one prompt, one component and one hook at a time, in the model's dtype; nothing of workbench."""

import torch


def answer_difference(logits, correct, incorrect):
    """ln of the summed probabilities of the correct tokens, less that of the incorrect ones."""
    p = torch.softmax(logits, -1)
    return torch.log(sum(p[t] for t in correct)) - torch.log(sum(p[t] for t in incorrect))


def mean_logit_difference(logits, correct, incorrect):
    """Linear in the logits."""
    return sum(logits[t] for t in correct) / len(correct) - sum(logits[t] for t in incorrect) / len(incorrect)


def run(hf, tokens, correct, incorrect, *, module=None, change=None, measure=answer_difference):
    """M of one prompt; `change` maps the input of `module` to another, and what came in is returned beside M."""
    seen = []

    def hook(_, args, kwargs):
        value = args[0] if args else kwargs["hidden_states"]
        seen.append(value.detach())
        if change is None:
            return None
        new = change(value)
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    handle = hf.get_submodule(module).register_forward_pre_hook(hook, with_kwargs=True) if module else None
    logits = hf(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    if handle:
        handle.remove()
    return measure(logits, correct, incorrect), seen


def effects(hf, base, source, correct, incorrect, module, selection, *, measure=answer_difference):
    """(directional derivative, true effect) of taking `selection` of the input of `module` from the source prompt.

    selection: index of [pos, features] of the component's entries. The derivative is d/dt of M at a + t (a_source - a), t = 0.
    """
    with torch.no_grad():
        _, [a_source] = run(hf, source, correct, incorrect, module=module, measure=measure)
        before, [a_base] = run(hf, base, correct, incorrect, module=module, measure=measure)
    step = torch.zeros_like(a_base)
    step[0][selection] = (a_source - a_base)[0][selection]
    t = torch.zeros((), dtype=step.dtype, requires_grad=True)
    moved, _ = run(hf, base, correct, incorrect, module=module, change=lambda a: a + t * step, measure=measure)
    derivative = torch.autograd.grad(moved, t)[0]
    with torch.no_grad():
        patched, _ = run(hf, base, correct, incorrect, module=module, change=lambda a: a + step, measure=measure)
    return float(derivative), float(patched - before)


def without_double_counting(looked, prompt, said, first, stop):
    """Retrieval score of one head: a set of positions; and the count of the published code, a sum over steps."""
    found, naive = set(), 0.0
    tokens = list(prompt) + list(said)
    for at, token in zip(looked, said, strict=True):
        if first <= at < stop and tokens[at] == token:
            found.add(at)
            naive += 1 / (stop - first)
    return len(found) / (stop - first), naive


@torch.no_grad()
def contributions_llama(hf, tokens, correct, incorrect):
    """{(site, layer, index): contribution} of a Llama, by its formula: RMS norm with gain, eps from the config."""
    n_heads, layers = hf.config.num_attention_heads, hf.model.layers
    seen = _inputs(hf, tokens, [layer.self_attn.o_proj for layer in layers], layers, [hf.model.norm], [b.mlp for b in layers])
    z, resid, [x], mlp_in = seen
    u = hf.lm_head.weight[correct].mean(0) - hf.lm_head.weight[incorrect].mean(0)
    v = hf.model.norm.weight * u / torch.sqrt(x.square().mean() + hf.config.rms_norm_eps)
    found = {("embed", -1, -1): float(v @ resid[0])}
    for at, layer in enumerate(layers):
        d_head = len(z[at]) // n_heads
        for head in range(n_heads):
            part = slice(head * d_head, (head + 1) * d_head)
            found["attn.hook_z", at, head] = float(v @ layer.self_attn.o_proj.weight[:, part] @ z[at][part])
        found["mlp_out", at, -1] = float(v @ layer.mlp(mlp_in[at]))
    return found


@torch.no_grad()
def contributions_gpt2(hf, tokens, correct, incorrect):
    """The same of a GPT-2: layer norm, Conv1D weights [in out], biases."""
    n_heads, blocks = hf.config.n_head, hf.transformer.h
    norm = hf.transformer.ln_f
    z, resid, [x], mlp_in = _inputs(hf, tokens, [b.attn.c_proj for b in blocks], blocks, [norm], [b.mlp for b in blocks])
    u = hf.lm_head.weight[correct].mean(0) - hf.lm_head.weight[incorrect].mean(0)
    scale = torch.sqrt(x.var(correction=0) + norm.eps)

    def through(part):
        return float(u @ (norm.weight * (part - part.mean()) / scale))

    found = {("embed", -1, -1): through(resid[0]), ("ln_final.bias", -1, -1): float(u @ norm.bias)}
    for at, block in enumerate(blocks):
        d_head = len(z[at]) // n_heads
        for head in range(n_heads):
            part = slice(head * d_head, (head + 1) * d_head)
            found["attn.hook_z", at, head] = through(z[at][part] @ block.attn.c_proj.weight[part])
        found["attn.o.bias", at, -1] = through(block.attn.c_proj.bias)
        found["mlp_out", at, -1] = through(block.mlp(mlp_in[at]))
    return found


@torch.no_grad()
def _inputs(hf, tokens, *groups):
    """Input of every module at the last token."""
    seen = [[] for _ in groups]
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, kept=kept: kept.append((args[0] if args else kwargs["hidden_states"])[0, -1]),
            with_kwargs=True,
        )
        for kept, group in zip(seen, groups, strict=True)
        for module in group
    ]
    hf(input_ids=torch.tensor([tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen
