"""Fixtures every test may use: the two real small models, the organism, its rows, and tiny random models."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

from pathlib import Path

import pytest
import torch

import workbench as wb

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)  # the models are tiny; threads that wait for each other cost more than they give


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def stories():
    """stories260K: a Llama with grouped-query attention that somebody else trained."""
    return wb.load(ROOT / "data/models/stories260K")


@pytest.fixture
def slm():
    """slm4096: a GPT-2 with a character vocabulary and no bos, eos or pad token."""
    return wb.load(ROOT / "data/models/slm4096")


@pytest.fixture(scope="session")
def forget():
    """Ten forget rows of unequal length."""
    return wb.examples("tofu:forget", root=ROOT / "data/tofu-mini")[:10]


@pytest.fixture(scope="session")
def retain():
    """Sixteen retain rows of unequal length."""
    return wb.examples("tofu:retain", root=ROOT / "data/tofu-mini")[:16]
