"""Preprocessing, bit for bit that of the official code."""

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from stages.embed_imagebind.preprocess import (
    audio_clip,
    audio_clips,
    clip_frames,
    clip_starts,
    decode_image,
    heard,
    image_array,
    read_wav,
    resample,
    video_clips,
)

IMAGES = ("img_320x240.png", "img_187x301_odd.png", "img_151x97_rgba.png")
SOUNDS = ("tone_3s_16k_mono.wav", "tone_2p5s_44k_stereo.wav", "tone_1p2s_16k_mono.wav")


@pytest.mark.parametrize("name", IMAGES)
def test_image_bits(shared, name):
    folder = shared("golden/imagebind")
    expected = load_file(folder / "golden_prep_vision.safetensors")[f"vision/{name}"][0]
    found = image_array(decode_image((folder / "inputs" / name).read_bytes()))
    assert torch.equal(torch.from_numpy(found), expected)


@pytest.mark.parametrize("name", SOUNDS)
def test_audio_bits(shared, name):
    folder = shared("golden/imagebind")
    expected = load_file(folder / "golden_prep_audio_text.safetensors")
    waveform, rate = read_wav((folder / "inputs" / name).read_bytes())
    before = waveform.clone()
    assert torch.equal(audio_clips(waveform, rate)[None], expected[f"audio/{name}"])
    assert torch.equal(waveform, before), "the caller's waveform was changed"
    if f"resampled16k/{name}" in expected:
        assert torch.equal(resample(waveform, rate), expected[f"resampled16k/{name}"])


@pytest.mark.parametrize("name", SOUNDS)
def test_one_clip_is_what_the_official_code_hears_without_overlaps(shared, name):
    waveform, rate = read_wav((shared("golden/imagebind") / "inputs" / name).read_bytes())
    clip = waveform[:, : 2 * rate]  # of at most 2 s the three official clips are one; the first has its mean off once
    before = clip.clone()
    assert torch.equal(audio_clip(clip, rate), audio_clips(clip, rate)[0]) and torch.equal(clip, before)


def test_a_short_clip_is_padded_and_what_is_no_clip_is_told():
    noise = torch.rand(2, 16000, generator=torch.Generator().manual_seed(0)) - 0.5
    found = audio_clip(noise, 16000)
    assert found.shape == (1, 128, 204) and found[..., :98].std() > 0.05
    assert torch.allclose(found[..., 98:], torch.tensor(4.268 / 9.138))
    assert heard(551, 22050) and not heard(549, 22050) and heard(400, 16000) and not heard(399, 16000)
    for wrong in (noise[:, :399], noise.repeat(1, 3), torch.full((1, 16000), torch.nan)):
        with pytest.raises(ValueError):
            audio_clip(wrong, 16000)


def test_clips_of_sounds_and_videos(shared):
    facts = json.loads(shared("golden/imagebind/golden_prep.json").read_text())
    for name in SOUNDS:
        expected = facts[name]
        seconds = expected.get("resampled", [0, expected["shape"][1]])[1] / 16000
        assert [[float(s), float(s) + 2] for s in clip_starts(seconds, 3)] == expected["clip_timepoints"]
    video = facts["clip_4s_10fps_160x120.mp4"]
    found = clip_frames(video["duration"], video["fps"], video["n_frames"])
    assert [list(pair) for pair in found] == video["frame_indices"]
    frames = torch.randint(0, 256, (5, 2, 120, 160, 3), dtype=torch.uint8)
    assert [1, *video_clips(frames).shape] == video["shape"]


def test_video_crops_lie_along_the_long_side():
    ramp = torch.linspace(0, 255, 448).round().to(torch.uint8).expand(5, 2, 3, 224, 448).permute(0, 1, 3, 4, 2)
    wide, tall = video_clips(ramp), video_clips(ramp.transpose(2, 3))
    assert wide.shape == tall.shape == (15, 3, 2, 224, 224) and torch.equal(wide.transpose(3, 4), tall)
    left, centre, right = (wide[place, 0, 0, 0] for place in range(3))
    assert torch.equal(torch.cat([left, right])[112:336], centre)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from(["RGB", "L", "RGBA", "P", "1", "CMYK"]))
def test_any_image_becomes_a_square(width: int, height: int, mode: str):
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "TIFF")
    found = image_array(decode_image(file.getvalue()))
    assert found.shape == (3, 224, 224) and found.dtype == np.float32 and np.isfinite(found).all()


def test_what_is_too_short_or_no_pcm_is_told():
    with pytest.raises(ValueError, match="25 ms"):
        audio_clips(torch.zeros(1, 399), 16000)
    with pytest.raises(OSError):
        decode_image(b"GIF89a nothing")
