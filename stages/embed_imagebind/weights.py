"""ImageBind's weights: the published file, checked key by key, or random ones for the tiny architecture."""

import hashlib
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stages.contract import BadInput
from stages.embed_imagebind.model import SCALES, ImageBind, ImageBindConfig

SHARPNESS = 1.5
REMEDY = "take imagebind_huge.pth as published (`malmm weights imagebind_huge`), or its tensors as .safetensors"


def read_weights(path: Path, config: ImageBindConfig) -> dict[str, Tensor]:
    """All tensors of a .pth or .safetensors file, mapped from disk rather than read.

    Nothing in the file is executed. The keys and shapes must be exactly the architecture's, all six
    modalities'. Raises BadInput naming the file, every key that is wrong (the first ten of a kind) and the
    remedy."""
    if not path.is_file():
        raise BadInput(f"no weights file {path}: {REMEDY}")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(f"{path} is not a weights file that can be read safely ({reason}): {REMEDY}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise BadInput(f"{path} does not hold a mapping of names to tensors: {REMEDY}")
    if problems := differences(tensors, config):
        raise BadInput(f"{path} does not fit the architecture: {'; '.join(problems)}: {REMEDY}")
    return tensors


def expected_shapes(config: ImageBindConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the architecture: 1311 of imagebind_huge."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in ImageBind(config).state_dict().items()}


def differences(tensors: Mapping[str, Tensor], config: ImageBindConfig) -> list[str]:
    """What keeps `tensors` from being the architecture's, a phrase a kind of fault; empty when they fit."""

    def told(kind: str, faults: Sequence[str]) -> list[str]:
        more = f" and {len(faults) - 10} more" if len(faults) > 10 else ""
        return [f"{len(faults)} {kind}: {', '.join(faults[:10])}{more}"] if faults else []

    expected = expected_shapes(config)
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    alien = [
        f"{name} {str(tensors[name].dtype).removeprefix('torch.')}"
        for name in expected
        if name in tensors and not tensors[name].is_floating_point()
    ]
    return [
        *told("missing", [name for name in expected if name not in tensors]),
        *told("not in the architecture", [str(name) for name in tensors if name not in expected]),
        *told("of another shape", wrong),
        *told("not floating point", alien),
    ]


def build_model(config: ImageBindConfig, tensors: Mapping[str, Tensor], modalities: Sequence[str]) -> ImageBind:
    """The encoders of `modalities` in float32, holding `tensors` themselves where they are float32."""
    with torch.device("meta"):
        model = ImageBind(config, modalities)
    weights = {name: tensors[name].float() for name in model.state_dict()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.requires_grad_(False)


def random_weights(config: ImageBindConfig, seed: int) -> dict[str, Tensor]:
    """Fixed random weights: the same bits for a seed everywhere (MT19937, whose stream NumPy keeps frozen).

    Matrices have unit gain (deviation 1 / sqrt(fan-in)), queries and keys SHARPNESS times that: attention
    then tells patches and words apart instead of averaging them, so that embeddings differ between images and
    questions while those of a picture and of its crop stay close."""
    tensors = {}
    for name, shape in expected_shapes(config).items():
        leaf = name.rsplit(".", 1)[-1]
        modality = name.split(".")[1]
        if leaf == "mask":
            tensor = torch.full(shape, -math.inf).triu_(1)
        elif leaf == "log_logit_scale":
            tensor = torch.tensor(math.log(SCALES[modality]))
        elif leaf in ("bias", "in_proj_bias"):
            tensor = torch.zeros(shape)
        elif leaf == "weight" and len(shape) == 1:  # LayerNorm
            tensor = torch.ones(shape)
        else:
            words = np.frombuffer(hashlib.sha256(f"{seed}/{name}".encode()).digest(), "<u4")
            normal = np.random.RandomState(words).standard_normal(shape).astype(np.float32)
            tensor = torch.from_numpy(normal)
            if leaf in ("weight", "in_proj_weight") and "token_embedding" not in name:
                tensor /= math.sqrt(math.prod(shape[1:]))
            if leaf == "in_proj_weight":
                tensor[: 2 * shape[1]] *= SHARPNESS
        tensors[name] = tensor
    return tensors


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes in sorted order, hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}={list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
