"""Vectors made by the official code: MALMM_GOLDEN, or golden/memory_bank of the reference data."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from malmm.qformer import QFormer, QFormerConfig


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@dataclass(frozen=True)
class Golden:
    """One file of vectors and what the JSON beside them says."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    @classmethod
    def read(cls, shared: Callable[[str], Path], name: str, about: str) -> "Golden":
        named = os.environ.get("MALMM_GOLDEN")
        folder = Path(named) if named else shared("golden/memory_bank")
        return cls(load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{about}.json").read_text()))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    @property
    def sizes(self) -> QFormerConfig:
        config = self.about["config"]
        return QFormerConfig(
            vocab_size=config["vocab"],
            hidden=config["hidden"],
            layers=config["layers"],
            heads=config["heads"],
            intermediate=config["intermediate"],
            cross_attention_every=config["cross_attention_freq"],
            encoder_width=config["encoder_width"],
            query_tokens=config["num_query_tokens"],
            max_positions=config["max_position"],
            eps=config["layer_norm_eps"],
        )

    def qformer(self) -> QFormer:
        """In evaluation mode, with the official weights."""
        model = QFormer(self.sizes).eval()
        model.load_state_dict(self.under("weights.Qformer."))
        return model
