"""Colours: JPEG planes and RGB against the standards' formulas in floating point."""

import numpy as np
import pytest
from av.video.frame import VideoFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from video.picture import Picture, jfif, kept_format

BT709, BT601, BT2020, UNSPECIFIED = 1, 6, 9, 2
KR_KB = {BT709: (0.2126, 0.0722), BT601: (0.299, 0.114), BT2020: (0.2627, 0.0593), UNSPECIFIED: (0.299, 0.114)}


def to_rgb(planes, colorspace, full):
    """(H,W,3) float64, 0-255, unclipped, of planes of full chroma: ITU-R BT.601, BT.709, BT.2020."""
    y, u, v = (plane.astype(np.float64) for plane in planes)
    if not full:
        y, u, v = (y - 16) * 255 / 219, (u - 128) * 255 / 224 + 128, (v - 128) * 255 / 224 + 128
    kr, kb = KR_KB[colorspace]
    r, b = y + 2 * (1 - kr) * (v - 128), y + 2 * (1 - kb) * (u - 128)
    return np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], -1)


def coded(rgb, colorspace, full):
    """Planes (uint8) of RGB, by the same standards."""
    kr, kb = KR_KB[colorspace]
    y = rgb @ [kr, 1 - kr - kb, kb]
    u, v = (rgb[..., 2] - y) / (2 - 2 * kb), (rgb[..., 0] - y) / (2 - 2 * kr)
    levels = (y, u + 128, v + 128) if full else (y * 219 / 255 + 16, u * 224 / 255 + 128, v * 224 / 255 + 128)
    return tuple(np.rint(plane).clip(0, 255).astype(np.uint8) for plane in levels)


COLOURS = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).integers(0, 256, (12, 18, 3)).astype(float)
)


@settings(deadline=None)
@given(COLOURS, st.sampled_from(list(KR_KB)), st.booleans())
def test_jpeg_planes_mean_the_same_colours(rgb, colorspace, full):
    """BT.601 at full range shows what was coded, within the rounding of the two steps, without a shift."""
    source = coded(rgb, colorspace, full)
    found = to_rgb(jfif(source, colorspace, full), BT601, True).clip(0, 255)
    wanted = to_rgb(source, colorspace, full).clip(0, 255)
    assert np.abs(found - wanted).max() < 4 and np.abs((found - wanted).mean()) < 0.5


def test_halved_chroma_of_odd_sizes_keeps_its_shape():
    planes = (np.full((5, 7), 100, np.uint8), np.full((3, 4), 90, np.uint8), np.full((3, 4), 160, np.uint8))
    for colorspace in KR_KB:
        found = jfif(planes, colorspace, full_range=False)
        assert [p.shape for p in found] == [(5, 7), (3, 4), (3, 4)]
        whole = jfif(tuple(np.full((5, 7), p[0, 0], np.uint8) for p in planes), colorspace, full_range=False)
        assert [p[0, 0] for p in found] == [p[0, 0] for p in whole]


@pytest.mark.parametrize("colorspace", [BT709, BT601])
@pytest.mark.parametrize("full", [True, False])
def test_rgb_and_jpeg_planes_of_a_frame_agree_with_the_standard(colorspace, full):
    rgb = np.random.default_rng(7).integers(0, 256, (32, 48, 3)).astype(float)
    planes = coded(rgb, colorspace, full)
    frame = VideoFrame(48, 32, "yuv444p")
    frame.colorspace, frame.color_range = colorspace, 2 if full else 1
    for plane, data in zip(frame.planes, planes):
        row = np.zeros((plane.height, plane.line_size), np.uint8)
        row[:, : plane.width] = data
        plane.update(row)
    picture, wanted = Picture(frame, 0), to_rgb(planes, colorspace, full).clip(0, 255)
    assert np.abs(picture.rgb() - wanted).max() <= 2
    assert np.abs(to_rgb(picture.planes(), BT601, True).clip(0, 255) - wanted).max() < 4


@pytest.mark.parametrize(
    "pixels, for_jpeg, for_rgb",
    [
        ("yuv420p", "yuv420p", "yuv444p"),
        ("yuvj420p", "yuv420p", "yuv444p"),
        ("yuv420p10le", "yuv420p", "yuv444p"),
        ("nv12", "yuv420p", "yuv444p"),
        ("yuv422p", "yuv444p", "yuv444p"),
        ("yuv444p10le", "yuv444p", "yuv444p"),
        ("gray", "yuv444p", "yuv444p"),
        ("rgb24", "rgb24", "rgb24"),
        ("bgra", "rgb24", "rgb24"),
        ("pal8", "rgb24", "rgb24"),
    ],
)
def test_what_a_source_is_kept_in(pixels, for_jpeg, for_rgb):
    assert (kept_format(pixels, half_chroma=True), kept_format(pixels, half_chroma=False)) == (for_jpeg, for_rgb)
