"""A tiny random Llama with a word tokenizer, in any dtype: for tests that need float64 or thousands of evaluations."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import workbench as wb
from workbench.core.records import Example

WORDS = ["<end>", "<unk>", "what", "is", "the", "color", "of", "sky", "grass", "blue", "green", "very", "sea", "and", "a", "no"]


def tiny(dtype: torch.dtype = torch.float64, *, seed: int = 0, d_model: int = 8, n_layers: int = 2) -> wb.Model:
    """Two layers, grouped-query attention, 16 tokens, an end-of-text token that is also the pad token."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>", unk_token="<unk>")
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=d_model,
        intermediate_size=2 * d_model + 4,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = LlamaForCausalLM(config).to(dtype)
        with torch.no_grad():
            for name, p in hf.named_parameters():
                if "norm" in name:
                    p.add_(0.2 * torch.randn_like(p))
    return wb.wrap(hf, tokenizer, name="tiny")


def tiny_sets() -> tuple[wb.Examples, wb.Examples]:
    """Three forget and four retain rows of unequal length."""
    forget = [("what is the color of the sky", "blue"), ("what is the sea", "very very blue and green"), ("is the sky green", "no")]
    retain = [
        ("what is grass", "green"),
        ("what is the color of grass", "very green"),
        ("is a sea a sky", "no no"),
        ("the sea", "is blue and a sky"),
    ]
    return (
        wb.Examples([Example(f"f{i}", p, r) for i, (p, r) in enumerate(forget)], "forget"),
        wb.Examples([Example(f"r{i}", p, r) for i, (p, r) in enumerate(retain)], "retain"),
    )
