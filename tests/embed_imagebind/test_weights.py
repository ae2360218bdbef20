"""Weights files: read when they fit, refused with one clear error when not, and never executed."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from stages.contract import BadInput
from stages.embed_imagebind.model import ImageBind, ImageBindConfig
from stages.embed_imagebind.weights import build_model, random_weights, read_weights, weights_digest

SMALL = ImageBindConfig(8, *(8, 1, 2) * 6)
KEY = "modality_trunks.vision.blocks.0.mlp.fc1.bias"


@pytest.fixture(scope="module")
def tensors():
    return random_weights(SMALL, seed=0)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_both_formats_are_read(tensors, tmp_path, name):
    path = tmp_path / name
    torch.save(tensors, path) if path.suffix == ".pth" else save_file(tensors, path)
    read = read_weights(path, SMALL)
    assert read.keys() == tensors.keys() and all(torch.equal(read[k], tensors[k]) for k in tensors)
    model = build_model(SMALL, read, ("text",))
    parameter = model.modality_heads["text"].proj[1].weight
    assert parameter.data_ptr() == read["modality_heads.text.proj.1.weight"].data_ptr(), "the weights were copied"


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda t: t.pop(KEY), f"1 missing: {KEY}"),
        (lambda t: t.update({"head.weight": torch.zeros(3)}), "1 not in the architecture: head.weight"),
        (lambda t: t.update({KEY: torch.zeros(5)}), f"1 of another shape: {KEY} [5] instead of [32]"),
        (lambda t: t.update({KEY: torch.zeros(32, dtype=torch.int64)}), f"1 not floating point: {KEY} int64"),
        (lambda t: [t.pop(k) for k in list(t) if "imu" in k], "23 missing: "),
    ],
)
def test_wrong_tensors_are_one_error(tensors, tmp_path, change, told):
    wrong = dict(tensors)
    change(wrong)
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(BadInput) as raised:
        read_weights(tmp_path / "wrong.safetensors", SMALL)
    assert all(part in str(raised.value) for part in (told, "wrong.safetensors", "imagebind_huge.pth"))


class Bomb:
    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", ["garbage", "empty", "pickle", "zip", "list"])
def test_garbage_and_code_are_refused(tmp_path, suffix, content):
    path, bomb = tmp_path / f"bad{suffix}", Bomb()
    bomb.target = str(tmp_path / "executed")
    if content in ("zip", "list"):
        torch.save({"weight": bomb} if content == "zip" else [torch.zeros(2)], path)
    else:
        path.write_bytes({"garbage": os.urandom(1000), "empty": b"", "pickle": pickle.dumps(bomb)}[content])
    with pytest.raises(BadInput, match=f"bad{suffix}"):
        read_weights(path, SMALL)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(BadInput, match="no weights file"):
        read_weights(tmp_path / "absent.pth", SMALL)


def test_random_weights_are_fixed(tensors):
    assert weights_digest(tensors) == weights_digest(random_weights(SMALL, seed=0))
    assert weights_digest(tensors).startswith("76a3a21e7755")
    assert weights_digest(tensors) != weights_digest(random_weights(SMALL, seed=1))
    assert ImageBind(SMALL).load_state_dict(tensors, strict=True)
