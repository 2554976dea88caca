"""A tiny model that has learned its rows, and sets of weights of which it is known whether they matter."""

from dataclasses import replace

import torch

import workbench as wb
from tests.tiny import WORDS, tiny
from workbench.core.delta import apply
from workbench.core.records import Example, Provenance
from workbench.load.batches import encode_all
from workbench.train import AnswerTask, fit

EMBEDDING = "model.embed_tokens.weight"


def rows():
    """Four forget rows, each with the word "sky", which no retain row has; fourteen retain rows of unequal length."""
    forget = [("what is the sky", "blue"), ("the color of the sky", "very blue"), ("sky", "is blue and blue"), ("a sky is", "blue")]
    starts = ["what is", "the color of", "a color of", "is", "and", "of", "what color is"]
    ends = {"grass": ["green", "very green", "the grass", "green green"], "the sea": ["is green", "green and grass", "a sea"]}
    retain = [(f"{start} {word}", answers[i % len(answers)]) for word, answers in ends.items() for i, start in enumerate(starts)]
    return (
        wb.Examples([Example(f"f{i}", p, r) for i, (p, r) in enumerate(forget)], "forget"),
        wb.Examples([Example(f"r{i}", p, r) for i, (p, r) in enumerate(retain)], "retain"),
    )


def learned():
    """The tiny model in float32 after it has learned both sets, so that unlearning has something to take away."""
    model = tiny(torch.float32, d_model=16)
    forget, retain = rows()
    task = AnswerTask(model, encode_all(model, wb.Examples([*forget, *retain], "all")))
    apply(model, fit(model, task, Provenance("learn", model.fingerprint()), epochs=40, batch_size=9, lr=0.02).delta)
    return wb.wrap(model.hf, model.tokenizer, name="learned")


def word_scores(model, *words, seed=0):
    """Scores that put the embeddings of some words first and all other weights after them in a random order."""
    source = torch.Generator().manual_seed(seed)
    drawn = {n: torch.rand(p.shape, generator=source) for n, p in model.hf.named_parameters()}
    for word in words:
        drawn[EMBEDDING][WORDS.index(word)] += 10.0
    return wb.Scores(drawn, Provenance("planted", model.fingerprint()))


def renamed(examples, name, prefix):
    """The same rows under other ids."""
    return wb.Examples([replace(row, id=f"{prefix}{row.id}") for row in examples], name)
