"""Which heads copy from a long context: retrieval heads.

    score(h) = |{p in needle : at some step t, p = argmax_j attention_h(t, j) and token[p] = token said at t}| / |needle|

t runs over the steps of the answer, and the attention is that of the position that predicts it. A position counts once, so the
score is a share, 0 to 1.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from rouge_score import rouge_scorer
from torch import Tensor, nn

from workbench.attribute.needles import Needle
from workbench.core.components import Components, Place
from workbench.core.errors import DataError, InputError, ModelError, unknown
from workbench.core.records import Provenance
from workbench.core.runtime import progress
from workbench.core.store import text_sha256
from workbench.load.batches import Encoded, collate
from workbench.load.models import Model
from workbench.trace.forward import check_eval, logits


def retrieval_heads(
    model: Model,
    needles: Sequence[Needle],
    *,
    decode: str = "greedy",
    min_recall: float = 0.5,
    max_new_tokens: int = 50,
    seed: int = 0,
    show: bool = False,
) -> Components:
    """Share of the needle's tokens that each head copies into the answer, averaged over needles.

    score(h) = |distinct needle positions copied| / |needle positions|, with "copied" as in the module.

    Args:
        needles: from `needles`, of any lengths and depths; each is one forward pass with eager attention, one layer's
            attention matrix at a time.
        decode: "greedy": the answer is what the model says; "teacher": the true answer is put in its mouth, so a model that
            cannot find the needle is scored too.
        min_recall: only with "greedy": needles whose answer has ROUGE-1 recall of the true one at or below this are left out,
            because a head cannot be seen copying an answer that was not given. Below 0 keeps all.
        max_new_tokens: only with "greedy".   seed: of the bootstrap over needles.
    Returns: Components of kind "head"; provenance.notes: needles kept and left out, and their mean recall.
    Raises: DataError without needles, or if all of them are left out; ModelError if the model's attention cannot be seen.
    Reference: Wu et al. 2024, arXiv:2404.15574. Their code adds 1/|needle| at every step without looking whether the position
        was counted before, so that its scores can exceed 1, and takes needles with ROUGE-1 recall above 0.5. The model's
        attention implementation is eager during this call and set back after it.
    """
    if decode not in ("greedy", "teacher"):
        raise unknown("decode", decode, ("greedy", "teacher"))
    if not needles:
        raise DataError("retrieval_heads: needles is empty; build some with `needles`.")
    if max_new_tokens < 1 or not min_recall < 1:
        raise InputError(f"retrieval_heads: max_new_tokens is {max_new_tokens}, min_recall {min_recall}; expected >= 1 and < 1.")
    check_eval(model)
    scores, recalls = [], []
    with torch.no_grad():
        for needle in progress(needles, label=f"retrieval heads: {decode}", show=show):
            prompt = needle.row.tokens[: needle.row.start]
            said = _greedy(model, prompt, max_new_tokens) if decode == "greedy" else needle.row.tokens[needle.row.start :]
            if decode == "greedy":
                recalls.append(_recall(model, said, needle.answer))
                if not said or recalls[-1] <= min_recall:
                    continue
            looked = attended(model, prompt + said[:-1], steps=len(said))
            scores.append(copied(looked, prompt, said, needle.first, needle.stop))
    if not scores:
        raise DataError(
            f"retrieval_heads: the model found none of the {len(needles)} needles (best ROUGE-1 recall {max(recalls):.2f}, above "
            f"{min_recall} needed). Use decode='teacher', shorter texts, or a model that can answer the question."
        )
    notes = {"kept": len(scores), "left_out": len(needles) - len(scores)}
    about = Provenance(
        "retrieval_heads",
        model.fingerprint(),
        {"needles": text_sha256([[n.row.tokens, n.row.start, n.first, n.stop, n.answer] for n in needles])},
        {"decode": decode} | ({"min_recall": min_recall, "max_new_tokens": max_new_tokens} if recalls else {}),
        seed,
        str(model.dtype),
        "mean over needles, float64",
        sum(len(n.row.tokens) for n in needles),
        notes | ({"mean_recall": sum(recalls) / len(recalls)} if recalls else {}),
    )
    table = np.stack(scores)
    places = [Place(layer, head) for layer in range(table.shape[1]) for head in range(table.shape[2])]
    unit = "share of needle tokens"
    flat = table.reshape(len(scores), -1)
    return Components.of("head", ["attn.hook_z"] * len(places), places, flat, unit=unit, direction="", provenance=about, seed=seed)


def copied(
    looked: Int[np.ndarray, "layer head step"], prompt: Sequence[int], said: Sequence[int], first: int, stop: int
) -> Float[np.ndarray, "layer head"]:
    """Share of the needle's positions, prompt[first:stop], that each head copied: see the module.

    Args: looked: position of the largest attention at each step.   said: token of each step.
    """
    tokens = np.array([*prompt, *said[:-1]])
    at_step = np.broadcast_to(np.array(said), looked.shape)
    hit = (tokens[looked] == at_step) & (looked >= first) & (looked < stop)
    found = np.zeros((*looked.shape[:2], stop - first), dtype=bool)
    layer, head, step = np.nonzero(hit)
    found[layer, head, looked[layer, head, step] - first] = True
    return found.mean(axis=-1)


def attended(model: Model, tokens: Sequence[int], *, steps: int) -> Int[np.ndarray, "layer head step"]:
    """Position that every head attends to most, from each of the last `steps` positions of one row of tokens.

    Raises: ModelError if an attention module does not return its pattern [batch head query key].
    """
    seen: dict[int, Tensor] = {}

    def read(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            pattern = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if not isinstance(pattern, Tensor) or pattern.shape != (1, model.sites.n_heads, len(tokens), len(tokens)):
                raise ModelError(
                    f"retrieval_heads: the attention of layer {layer} ({type(module).__name__}) does not return its pattern "
                    "[batch head query key]; this architecture is not supported."
                )
            seen[layer] = pattern[0, :, -steps:].argmax(-1).cpu()

        return hook

    row = collate([Encoded("needle", list(tokens), len(tokens))], device=model.device)
    with _eager(model), ExitStack() as handles:
        for layer in range(model.n_layers):
            handles.callback(model.sites.module(f"blocks.{layer}.attn").register_forward_hook(read(layer)).remove)
        logits(model, row)
    return torch.stack([seen[layer] for layer in range(model.n_layers)]).numpy()


@contextmanager
def _eager(model: Model) -> Iterator[None]:
    """Attention that computes its pattern in the open; the former implementation is back on exit."""
    before = str(model.hf.config._attn_implementation)
    model.hf.set_attn_implementation("eager")
    try:
        if model.hf.config._attn_implementation != "eager":
            raise ModelError(f"retrieval_heads: {type(model.hf).__name__} cannot switch to eager attention; its pattern is hidden.")
        yield
    finally:
        model.hf.set_attn_implementation(before)


def _greedy(model: Model, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
    """The most likely next token, again and again, up to an end-of-text token or the end of the context."""
    named: Any = getattr(model.hf.generation_config, "eos_token_id", None)
    ends = [model.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    said: list[int] = []
    now, cache = torch.tensor([prompt], device=model.device), None
    while len(said) < min(max_new_tokens, model.context - len(prompt)):
        passed: Any = model.hf(input_ids=now, past_key_values=cache, use_cache=True)
        now, cache = passed.logits[:, -1:].argmax(-1), passed.past_key_values
        if int(now) in ends:
            break
        said.append(int(now))
    return said


def _recall(model: Model, said: Sequence[int], answer: str) -> float:
    """ROUGE-1 recall of the generated text, stemmed; 0 for an empty one."""
    scorer = rouge_scorer.RougeScorer(["rouge1"], use_stemmer=True)
    text = str(model.tokenizer.decode(list(said), skip_special_tokens=True))
    return float(scorer.score(answer, text)["rouge1"].recall)
