"""What the tests of a diagnosis share: a loss and influences by definition, a small change, and a model that learns lies."""

import copy

import numpy as np
import torch

import workbench as wb
from tests.tiny import tiny, tiny_sets
from workbench.core.delta import Delta
from workbench.core.influence import Influence
from workbench.core.records import Example, Examples, Provenance
from workbench.core.registry import Member, influence
from workbench.load.batches import encode
from workbench.train.loop import fit
from workbench.train.task import AnswerTask

FORGET, RETAIN = tiny_sets()
RECIPE = {"epochs": 2, "lr": 1e-2, "batch_size": 2}
LIES = Examples([Example(f"lie{i}", row.prompt, "a a a a") for i, row in enumerate(RETAIN)], "lies")  # wrong answers


def nll(model, row):
    """Mean NLL of one row, by itself."""
    return float(loss(model, row).detach())


def loss(model, row):
    """The same as a tensor, token by token."""
    coded = encode(model, row.prompt, row.response)
    said = model.hf(torch.tensor([coded.tokens])).logits[0].log_softmax(-1)
    picked = [said[i - 1, coded.tokens[i]] for i in range(coded.start, len(coded.tokens))]
    return -torch.stack(picked).mean()


def gradient(model, row):
    """Gradient of one row's mean NLL, flat."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(model, row), list(model.hf.parameters()))])


def dots(model, query, train, *, scale: float = 1.0, checkpoints: list | None = None):
    """An influence by definition: <g_q, g_j>, a loop over rows."""
    values = [[scale * float(gradient(model, q) @ gradient(model, j)) for j in train] for q in query]
    return Influence(np.array(values), tuple(query.ids), tuple(train.ids), Provenance("dots", model.fingerprint()))


def words(model, query, train):
    """Likeness in words as the share of words that two rows have in common."""
    bags = [[set(f"{row.prompt} {row.response}".split()) for row in rows] for rows in (query, train)]
    values = [[len(a & b) / len(a | b) for b in bags[1]] for a in bags[0]]
    return Influence(np.array(values), tuple(query.ids), tuple(train.ids), Provenance("words", model.fingerprint()))


def slow_influences(monkeypatch):
    """Influences by their definition in the place of the registered ones."""
    members = {"dots": Member("dots", dots), "gradient_similarity": Member("gradient_similarity", dots)}
    monkeypatch.setattr(influence, "_import_members", lambda: None)
    monkeypatch.setattr(influence, "_members", members | {"text_match": Member("text_match", words)})


def moved_a_little(model):
    """Every weight moved a little, at random."""
    g = torch.Generator().manual_seed(0)
    moved = {n: 0.05 * torch.randn(p.shape, generator=g) for n, p in model.hf.named_parameters()}
    return Delta.of(moved, Provenance("random", model.fingerprint()))


def changed_to(model, delta, names=None):
    """A copy of the model with (some tensors of) the change written into its weights."""
    other = wb.wrap(copy.deepcopy(model.hf), model.tokenizer, name="after")
    with torch.no_grad():
        for name, p in other.hf.named_parameters():
            if name in delta.changes and (names is None or name in names):
                p.add_(delta.changes[name].dense().to(p.dtype))
    return other


def fine_tuned(model, rows, **recipe):
    """The change that training on the rows makes."""
    about = Provenance("fine-tuning", model.fingerprint())
    task = AnswerTask(model, [encode(model, r.prompt, r.response, id=r.id) for r in rows])
    return fit(model, task, about, **(RECIPE | recipe)).delta


def knows_by_heart():
    """A model that knows the rows by heart."""
    model = tiny()
    return changed_to(model, fine_tuned(model, Examples([*FORGET, *RETAIN], "all"), epochs=25, lr=3e-2))
