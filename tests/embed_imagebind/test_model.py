"""The model against vectors made by the official code, and against that code on the same weights."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from stages.embed_imagebind.model import ARCHITECTURES, MODALITIES, ImageBind, ImageBindConfig
from stages.embed_imagebind.reference import ReferenceImageBind
from stages.embed_imagebind.tokenizer import prompt_lengths, tokenize
from stages.embed_imagebind.weights import build_model, expected_shapes, random_weights

INPUTS = {
    "vision_image": "vision",
    "vision_video": "vision",
    "text": "text",
    "audio": "audio",
    "depth": "depth",
    "thermal": "thermal",
    "imu": "imu",
}


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared("golden/imagebind")
    tensors = load_file(folder / "golden_tiny.safetensors") | load_file(folder / "golden_tiny_inputs.safetensors")
    return ImageBindConfig(**json.loads((folder / "golden_tiny.json").read_text())["config"]), tensors


@pytest.mark.parametrize("name", INPUTS)
def test_outputs_are_the_official_ones(golden, name):
    config, tensors = golden
    x = tensors[f"in.{name}"]
    output = build_model(config, tensors, (INPUTS[name],))(INPUTS[name], x if name == "text" else x.float())
    torch.testing.assert_close(output, tensors[f"out.{name}"], atol=1e-5, rtol=0)


def test_patches_are_the_official_trunk(golden):
    config, tensors = golden
    x = tensors["in.vision_image"].float()
    patches = build_model(config, tensors, ("vision",)).patches(x)
    assert patches.shape == (len(x), 257, config.vision_embed_dim)
    torch.testing.assert_close(patches[:1], tensors["mid.vision_image.trunk_b0"], atol=1e-5, rtol=1e-5)


def test_cropped_text_is_the_full_text(golden):
    config, tensors = golden
    model, tokens = build_model(config, tensors, ("text",)), tensors["in.text"]
    for row, length in zip(range(len(tokens)), prompt_lengths(tokens.numpy())):
        cropped = model("text", tokens[row : row + 1, :length])
        torch.testing.assert_close(cropped, tensors["out.text"][row : row + 1], atol=1e-4, rtol=0)  # 1e-6 of its norm


def test_huge_has_the_published_keys_and_shapes(shared):
    published = json.loads(shared("golden/imagebind/huge_state_dict_shapes.json").read_text())
    assert {name: list(shape) for name, shape in expected_shapes(ARCHITECTURES["huge"]).items()} == published


def test_only_wanted_modalities_are_built():
    with torch.device("meta"):
        names = ImageBind(ARCHITECTURES["huge"], ("text",)).state_dict()
    assert {name.split(".")[1] for name in names} == {"text"}


def test_engines_agree_on_random_weights():
    config = ARCHITECTURES["tiny"]
    tensors = random_weights(config, seed=5)
    ours, official = build_model(config, tensors, MODALITIES), ReferenceImageBind(config, tensors)
    draw = torch.Generator().manual_seed(1)
    inputs = {
        "vision": (2, 3, 224, 224),
        "audio": (2, 3, 1, 128, 204),
        "depth": (2, 1, 224, 224),
        "thermal": (2, 1, 224, 224),
        "imu": (2, 6, 2000),
    }
    batches = {name: torch.randn(shape, generator=draw) for name, shape in inputs.items()}
    tokens = tokenize(["is it day ?", "how many dogs are there in the park ?"])
    batches["text"] = torch.from_numpy(tokens[:, :12].astype(int))
    for modality, batch in batches.items():
        torch.testing.assert_close(ours(modality, batch), official(modality, batch), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.patches(batches["vision"]), official.patches(batches["vision"]))


def test_neither_transformers_nor_torchvision_is_imported():
    code = (
        "import sys, stages.embed_imagebind.run, stages.embed_imagebind.reference as r; r._model_module(); "
        "print([n for n in ('transformers', 'torchvision', 'torchaudio', 'open_clip') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
