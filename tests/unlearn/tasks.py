"""The task of any objective on the tiny model, and what each of its pairs should lose: rows one by one, without padding."""

import torch

from tests.reference import objectives as truth
from tests.tiny import tiny, tiny_sets
from workbench.core.delta import applied
from workbench.core.records import Provenance
from workbench.core.registry import objective
from workbench.load.batches import encode_all
from workbench.train import AnswerTask, fit
from workbench.unlearn.prepare import Asked, prepare, weighting_of
from workbench.unlearn.training import Training

SEED = 2


def training(**given):
    """Options of a run; small and plain."""
    plain = {"epochs": 2, "batch_size": 3, "micro_batch": None, "lr": 1e-3, "schedule": "linear", "warmup": 0.0}
    rest = {"weight_decay": 0.0, "clip_norm": 1.0, "sharpness": 0.0, "lora": None, "mask": None, "seed": SEED, "show": False}
    return Training(**{**plain, **rest, **given})


def task_of(model, name, *, term=None, weights=(None, None), refusals=None, options=None, **given):
    """What `run` trains on, with the model as the reference."""
    member = objective[name]
    used = term or member.about["retain"]
    weighting = weighting_of(member, term, weights[0], None if used == "none" else weights[1])
    asked = Asked(member, member.options | (options or {}), weighting, refusals, training(**given))
    return prepare(model, *tiny_sets(), asked)[0]


def changed(model):
    """The model itself, no longer its own reference."""
    with torch.no_grad():
        for p in model.hf.parameters():
            p.mul_(1.2)
    return model


@torch.no_grad()
def logit_rows(model, row):
    """Logits that predict each answer token of a row."""
    return model.hf(torch.tensor([row.tokens])).logits[0, row.start - 1 : -1].tolist()


def logprobs(model, row):
    """Log-probability of each answer token of a row."""
    return [truth.log_softmax(z)[token] for z, token in zip(logit_rows(model, row), row.tokens[row.start :], strict=True)]


@torch.no_grad()
def state_rows(model, row, layer):
    """States after a layer, at all tokens; the last layer's would be read behind the final norm."""
    return model.hf(torch.tensor([row.tokens]), output_hidden_states=True).hidden_states[layer + 1][0].tolist()


def generic_rows(before, rows, given, alpha=5.0, lr=1e-4, epochs=3):
    """Generic logits of rows, from a model trained on them."""
    about = Provenance("test", before.fingerprint())
    options = {"batch_size": given.batch_size, "lr": lr, "epochs": epochs, "seed": given.seed}
    stronger = fit(before, AnswerTask(before, rows), about, **options).delta
    base = [logit_rows(before, row) for row in rows]
    with applied(before, stronger):
        return [truth.generic(b, logit_rows(before, row), alpha) for b, row in zip(base, rows, strict=True)]


def expected_forget(name, before, model, task, i, *, layer=None):
    """The objective of one forget row."""
    rows = [side.rows[i] for side in task.sides]
    if name == "rmu":
        states = state_rows(model, rows[0], layer)
        return truth.rmu(states, [task.targets[i].tolist()] * len(states))
    if objective[name].about["reads"] == "logits":
        targets = rows[0].tokens[rows[0].start :]
        wanted = (
            generic_rows(before, task.sides[0].rows, training())[i] if name == "whos_harry_potter" else logit_rows(before, rows[0])
        )
        return getattr(truth, name)(logit_rows(model, rows[0]), targets, wanted)
    return getattr(truth, name)(*(value for row in rows for value in (logprobs(model, row), logprobs(before, row))))


def expected_kept(before, model, task, i, epoch, *, layer=None):
    """The retain term of one forget row's partner."""
    row, term = task.retain[task.partner(i, epoch)], task.weighting.retain_term
    if term == "nll":
        return truth.nll(logprobs(model, row))
    if term == "kl":
        return truth.kl(*([truth.log_softmax(z) for z in logit_rows(one, row)] for one in (before, model)))
    return truth.rmu(state_rows(model, row, layer), state_rows(before, row, layer)) if term == "states" else 0.0


def three_layers(dtype=torch.float64):
    """So that the middle layer is not the last."""
    return tiny(dtype, n_layers=3)


def rows_of(model):
    """The tiny sets as tokens."""
    return [encode_all(model, rows) for rows in tiny_sets()]
