"""Preference pairs of unequal length for the tests of scores."""

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

import workbench as wb
from tests.tiny import tiny
from workbench.core.records import PreferencePair, PreferencePairs
from workbench.load.batches import encode_pairs


def small(dtype=torch.float64):
    """The tiny model with torch's own attention: transformers' eager one takes its softmax in float32, where the mask of a float64
    model is minus infinity, so that pads on the left become NaN."""
    model = tiny(dtype)
    model.hf.set_attn_implementation("sdpa")
    return model


def capped():
    """A tiny Gemma-2 in float64, whose logits pass through a softcap behind the unembedding."""
    config = Gemma2Config(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=32,
        initializer_range=0.5,
        final_logit_softcapping=1.0,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return wb.wrap(Gemma2ForCausalLM(config).double(), tiny().tokenizer, name="capped")


def tiny_pairs():
    """Five pairs in the words of the tiny model: unequal lengths, one shared beginning, one of equal answers."""
    texts = [
        ("what is the color of the sky", "blue", "very very green"),
        ("what is the sea", "very very blue and green", "no"),
        ("is the sky green", "no", "no no"),
        ("the sea", "is blue", "is blue"),
        ("what is grass", "a very green sea", "a very blue sky and grass"),
    ]
    return PreferencePairs([PreferencePair(f"p{i}", *text) for i, text in enumerate(texts)], "tiny pairs")


def story_pairs():
    """Three pairs both real small models can read."""
    texts = [
        ("Once upon a time", "there was a cat.", "there was a big red dog who ran."),
        ("The girl", "was happy.", "cried."),
        ("One day Tom", "saw a bird in the tree.", "saw a bee."),
    ]
    return PreferencePairs([PreferencePair(f"s{i}", *text) for i, text in enumerate(texts)], "story pairs")


def states_of(truth, model, pairs, *, end=True):
    """The states that predict each pair's two answers, one unpadded row at a time: [(chosen, rejected)]."""
    found = []
    for pair in encode_pairs(model, pairs, end=end):
        sides = []
        for row in (pair.chosen, pair.rejected):
            states, _ = truth.final_states(model.hf, row.tokens)
            sides.append(truth.predicting(states, row.start, len(row.tokens)))
        found.append(tuple(sides))
    return found


def double(model):
    """The same weights in float64."""
    torch.nn.Module.to(model.hf, torch.float64)
    return model
