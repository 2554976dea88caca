"""A Llama whose norms are as precise as its weights."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm


@pytest.fixture
def exact_norms(monkeypatch):
    """RMSNorm in the model's own dtype: Hugging Face's casts to float32, which hides errors below 1e-7."""

    def run(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(LlamaRMSNorm, "forward", run)
