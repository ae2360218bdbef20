"""From a decoded frame to the picture that is kept: scaled, upright, as planes for a JPEG or as RGB.

Scaling is done in the frame's own YUV and range, which costs half of scaling into RGB and does not shift
colours; what follows works on the small picture.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter

from video.errors import DamagedVideo
from video.plan import Plan

# Bicubic for luma, FFmpeg's own default; bilinear for chroma, which halves the time of large pictures and costs less
# than 0.1 dB (docs/decisions.md). Bit-exact: the same bytes on every kind of CPU.
SCALING = Interpolation.BICUBLIN | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
SCALING_NAMES = "bicublin+accurate_rnd+bitexact"  # the same for FFmpeg's scale filter
FULL_RANGE = 2  # AVCOL_RANGE_JPEG
# (Kr, Kb) of AVCOL_SPC_* (ITU-T H.273, table 4); all else, and what is not said, is read as BT.601, as FFmpeg does.
LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
BT601 = (0.299, 0.114)


@dataclass(frozen=True)
class Picture:
    """One taken frame. `frame`: scaled 8-bit YUV (4:2:0 or 4:4:4) or RGB, as coded; `rotation`: what is left to do."""

    frame: VideoFrame
    rotation: int  # degrees counterclockwise

    def planes(self) -> tuple[np.ndarray, ...] | None:
        """Y (H,W), U and V (H,W) or (ceil(H/2), ceil(W/2)), uint8, as JPEG (JFIF) defines its samples: BT.601 matrix,
        full range. None where the video is RGB."""
        if self.frame.format.is_rgb:
            return None
        coded = tuple(
            np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in self.frame.planes
        )
        return tuple(map(self._turned, jfif(coded, self.frame.colorspace, self.frame.color_range == FULL_RANGE)))

    def rgb(self) -> np.ndarray:
        """(H,W,3) uint8."""
        frame = self.frame
        if not frame.format.is_rgb:
            interpolation = SCALING | Interpolation.FULL_CHR_H_INT
            frame = frame.reformat(format="rgb24", interpolation=interpolation, threads=1)
        return self._turned(frame.to_ndarray())

    def _turned(self, array: np.ndarray) -> np.ndarray:
        return np.rot90(array, self.rotation // 90).copy() if self.rotation else np.ascontiguousarray(array)


def kept_format(pixels: str, half_chroma: bool) -> str:
    """The 8-bit format that frames of pixel format `pixels` are scaled to: RGB stays RGB ("rgb24"), YUV becomes
    4:4:4 ("yuv444p"), or with `half_chroma` stays 4:2:0 ("yuv420p") where it is that."""
    source = VideoFormat(pixels)
    if source.is_rgb or source.has_palette:
        return "rgb24"
    halved = len(source.components) >= 3 and (source.chroma_width(16), source.chroma_height(16)) == (8, 8)
    return "yuv420p" if half_chroma and halved else "yuv444p"


def preparer(plan: Plan, path: str | os.PathLike[str], half_chroma: bool) -> Callable[[VideoFrame], Picture]:
    """A function from decoded frames of the planned video to pictures. It raises DamagedVideo for another size."""
    kept, scaler = kept_format(plan.pixels, half_chroma), VideoReformatter()

    def prepare(frame: VideoFrame) -> Picture:
        if (frame.width, frame.height) != plan.coded:
            raise DamagedVideo(
                f"{path}: its picture changes from {plan.coded[0]}x{plan.coded[1]} to {frame.width}x{frame.height}"
            )
        scaled = scaler.reformat(plain(frame), *plan.scaled, format=kept, interpolation=SCALING, threads=1)
        return Picture(scaled, plan.rotation)

    return prepare


def plain(frame: VideoFrame) -> VideoFrame:
    """The frame's samples with its matrix and range, and nothing else that it says of itself.

    FFmpeg's library scales the fields of frames that are marked interlaced apart, and minds where chroma lies; its
    scale filter does neither, nor do other readers. The samples are shared where PyAV can, else copied.
    """
    samples = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    views = tuple(_rows(plane).view(samples)[:, : plane.width] for plane in frame.planes)
    try:
        other = VideoFrame.from_dlpack(views, frame.format.name)
    except (NotImplementedError, ValueError, TypeError):  # packed or palette formats, odd sizes
        other = VideoFrame(frame.width, frame.height, frame.format.name)
        for source, target in zip(frame.planes, other.planes):
            rows, there = _rows(source), _rows(target)
            width = min(rows.shape[1], there.shape[1])
            there[:, :width] = rows[:, :width]
    other.colorspace, other.color_range = frame.colorspace, frame.color_range
    return other


def _rows(plane: VideoPlane) -> np.ndarray:
    """(height, bytes of a row with its padding) uint8: a view, not a copy."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)


def jfif(planes: tuple[np.ndarray, ...], colorspace: int, full_range: bool) -> tuple[np.ndarray, ...]:
    """Y, U, V planes (uint8, chroma whole or halved) from matrix `colorspace` (AVCOL_SPC_*) and their range to
    BT.601 at full range."""
    kr_kb, luma = LUMA.get(colorspace, BT601), planes[0]
    if kr_kb == BT601 and full_range:
        return planes
    levels = _level_tables()
    if not full_range:
        luma = _looked_up(luma, levels[0])
    if kr_kb == BT601:
        return luma, *(_looked_up(plane, levels[1]) for plane in planes[1:])
    pairs = planes[1].astype(np.uint16) << 8 | planes[2]
    added, u, v = (table.take(pairs, mode="wrap") for table in _chroma_tables(*kr_kb, full_range))
    if added.shape != luma.shape:
        halved, added = added, np.empty((2 * added.shape[0], 2 * added.shape[1]), np.int16)
        added[::2, ::2] = added[::2, 1::2] = halved
        added[1::2] = added[::2]
    return (luma + added[: luma.shape[0], : luma.shape[1]]).clip(0, 255).astype(np.uint8), u, v


def _looked_up(plane: np.ndarray, table: bytes) -> np.ndarray:
    return np.frombuffer(plane.tobytes().translate(table), np.uint8).reshape(plane.shape)


@cache
def _full_levels() -> tuple[np.ndarray, np.ndarray]:
    """(256,) float64 each: the full-range value of every limited-range one, of luma and of chroma."""
    code = np.arange(256.0)
    return (code - 16) * 255 / 219, (code - 128) * 255 / 224 + 128


@cache
def _level_tables() -> tuple[bytes, bytes]:
    """`_full_levels`, rounded, for bytes.translate."""
    luma, chroma = (np.rint(levels).clip(0, 255).astype(np.uint8).tobytes() for levels in _full_levels())
    return luma, chroma


@cache
def _chroma_tables(kr: float, kb: float, full_range: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(65536,) each, by 256 U + V as coded: what is added to Y (int16), U and V (uint8) of BT.601 at full range."""
    chroma = (np.arange(256.0) if full_range else _full_levels()[1]) - 128
    u, v = chroma[:, None], chroma[None, :]
    added, *other = (np.rint(row[1] * u + row[2] * v).ravel() for row in _to_601(kr, kb))
    return added.astype(np.int16), *((plane + 128).clip(0, 255).astype(np.uint8) for plane in other)


@cache
def _to_601(kr: float, kb: float) -> np.ndarray:
    """(3,3) float64: full-range Y, Cb, Cr by (Kr, Kb) to those of BT.601; Y enters Y alone, with factor 1."""

    def from_rgb(kr: float, kb: float) -> np.ndarray:
        y = np.array([kr, 1 - kr - kb, kb])
        return np.stack([y, (np.array([0, 0, 1]) - y) / (2 - 2 * kb), (np.array([1, 0, 0]) - y) / (2 - 2 * kr)])

    return from_rgb(*BT601) @ np.linalg.inv(from_rgb(kr, kb))
