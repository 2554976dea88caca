"""Random models of two or three layers for every architecture whose weights lie differently; nothing is downloaded."""

import torch
import transformers as hf
from transformers import PreTrainedModel

D_VOCAB, D_MODEL, D_MLP, N_HEADS, N_KV_HEADS = 50, 32, 48, 4, 2

_SIZES = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": 3,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": 64,
}
_GQA = {**_SIZES, "num_key_value_heads": N_KV_HEADS}
_SHORT = {
    "vocab_size": D_VOCAB,
    "n_embd": D_MODEL,
    "n_inner": D_MLP,
    "n_layer": 3,
    "n_head": N_HEADS,
    "n_positions": 64,
}
_OPT = {"vocab_size": D_VOCAB, "hidden_size": D_MODEL, "word_embed_proj_dim": D_MODEL, "ffn_dim": D_MLP}
_FALCON = {"vocab_size": D_VOCAB, "hidden_size": D_MODEL, "ffn_hidden_size": D_MLP, "num_hidden_layers": 3}

CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**_GQA, attention_bias=True, mlp_bias=True),
    "gpt2": lambda: hf.GPT2Config(**_SHORT),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_SIZES, rotary_pct=0.5),
    "gpt_neox_sequential": lambda: hf.GPTNeoXConfig(**_SIZES, rotary_pct=0.5, use_parallel_residual=False),
    "gemma2": lambda: hf.Gemma2Config(**_GQA, head_dim=16, final_logit_softcapping=2.0, sliding_window=4),
    "qwen3": lambda: hf.Qwen3Config(**_GQA, head_dim=16),
    "olmo": lambda: hf.OlmoConfig(**_GQA),
    "olmo2": lambda: hf.Olmo2Config(**_GQA),
    "phi3": lambda: hf.Phi3Config(**_GQA, pad_token_id=0),
    "opt": lambda: hf.OPTConfig(**_OPT, num_hidden_layers=3, num_attention_heads=N_HEADS, max_position_embeddings=64),
    "gptj": lambda: hf.GPTJConfig(**_SHORT, rotary_dim=4),
    "falcon": lambda: hf.FalconConfig(**_FALCON, num_attention_heads=N_HEADS, bias=True),
}


def tiny_model(name: str, *, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A model of this architecture in eval mode; every parameter random, norm gains and biases too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval().to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens() -> torch.Tensor:
    """Three rows of seven token ids."""
    return torch.randint(1, D_VOCAB, (3, 7), generator=torch.Generator().manual_seed(1))
