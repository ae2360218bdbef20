"""A tiny random Llama with a tokenizer of its own, written as a Hugging Face directory."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch

from demo.tiny_language_model import write_tiny_llm


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
