"""The PyPI package `imagebind-packaged` 0.1.2 as an engine: its own model modules, on this environment's
torch.

The package's `__init__` imports torchaudio, torchvision and pytorchvideo, and timm's imports torchvision;
none of them has a place here. So both packages are entered by their submodules: their `__init__` never runs.
Of timm, the model needs two functions, from files that need only torch.
"""

import dataclasses
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stages.contract import WrongConfig
from stages.embed_imagebind.model import ImageBindConfig
from stages.embed_imagebind.stems import CONTEXT_LENGTH


class ReferenceImageBind(nn.Module):
    """`ImageBind` with the official code inside: the same `forward(modality, x)` and `patches(x)`,
    the same tensors.

    Raises WrongConfig when the package is not installed."""

    def __init__(self, config: ImageBindConfig, tensors: Mapping[str, Tensor]):
        super().__init__()
        with torch.device("meta"), _RealLinspace():  # else it draws 1.2 billion random numbers first
            self.model = _model_module().ImageBindModel(**dataclasses.asdict(config))
        weights = {name: tensor.float() for name, tensor in tensors.items()}
        self.model.load_state_dict(weights, strict=True, assign=True)
        self.requires_grad_(False).eval()

    def forward(self, modality: str, x: Tensor) -> Tensor:
        if modality == "text":  # its causal mask is for the full context alone
            x = F.pad(x, (0, CONTEXT_LENGTH - x.shape[1]))
        return self.model({modality: x})[modality]

    def patches(self, x: Tensor) -> Tensor:
        tokens = self.model.modality_preprocessors["vision"](vision=x)["trunk"]
        return self.model.modality_trunks["vision"](**tokens)


class _RealLinspace(TorchFunctionMode):
    """The official constructor reads numbers out of one `linspace`, which a meta tensor does not have."""

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        return func(*args, **((kwargs or {}) | ({"device": "cpu"} if func is torch.linspace else {})))


@cache
def _model_module() -> types.ModuleType:
    for name in ("imagebind", "timm", "timm.layers"):
        _enter(name)
    layers = types.ModuleType("timm.models.layers")
    layers.DropPath = importlib.import_module("timm.layers.drop").DropPath
    layers.trunc_normal_ = importlib.import_module("timm.layers.weight_init").trunc_normal_
    sys.modules["timm.models"] = types.ModuleType("timm.models")
    sys.modules["timm.models.layers"] = layers
    return importlib.import_module("imagebind.models.imagebind_model")


def _enter(name: str) -> None:
    """Make `name`'s submodules importable without running its `__init__`."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise WrongConfig(
            f"engine: reference needs the package {name}: run `malmm env sync embed_imagebind`, "
            "or take engine: malmm, which gives the same embeddings"
        )
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package
